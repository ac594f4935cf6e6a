# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0", "matplotlib==3.11.2", "moviepy==2.2.1",
#     "numpy==2.4.6", "pydantic==2.14.4", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Asynchronous Advantage Actor-Critic, after Algorithm S3 of Mnih et al., "Asynchronous Methods for
Deep Reinforcement Learning", ICML 2016, https://arxiv.org/abs/1602.01783; each actor-learner does

    repeat
        dθ ← 0, dθv ← 0; synchronise θ′ = θ and θ′v = θv, which are shared, as is the counter T
        t_start = t, get the state s_t
        repeat
            perform a_t according to the policy π(a_t|s_t;θ′)
            receive the reward r_t and the new state s_t+1
            t ← t + 1, T ← T + 1
        until s_t is terminal or t − t_start = t_max
        R = 0 if s_t is terminal, otherwise V(s_t;θ′v)
        for i = t − 1, …, t_start do
            R ← r_i + γ R
            dθ  ← dθ + ∇θ′ log π(a_i|s_i;θ′) (R − V(s_i;θ′v)) + β ∇θ′ H(π(·|s_i;θ′))    (section 4)
            dθv ← dθv + ∂(R − V(s_i;θ′v))²/∂θ′v
        update θ with dθ and θv with dθv, asynchronously: no lock, others write meanwhile
    until T > T_max

and RMSProp (section 4) with a common g: g ← α g + (1−α) Δθ², θ ← θ − η Δθ / √(g + ε)

Symbol → name in the code
    (θ, θv), (θ′, θ′v) → agent.theta, theta: one vector each
    π, V, H            → softmax of logits, values, entropy
    Δθ, g, η           → gradient (−dθ, and value_coef · dθv), agent.g, args.learning_rate
    T, T_max           → agent.timestep, args.total_timesteps
    γ, β, α, ε         → args.gamma, .entropy_coef, .rmsprop_alpha, .rmsprop_epsilon

Deviations, and the flags that undo them (letter: from the first author, in muupan's async-rl wiki)
    Two workers, longer rollouts: --num-workers 16 --t-max 5
    Rewards are divided by the standard deviation of their discounted sums: --no-scale-rewards
    The loss of V weighs less: --value-coef 1 (letter: 0.5)
    η is larger, ε smaller: --learning-rate 7e-4 --rmsprop-epsilon 0.1 (letter)

Deviations without a flag
    Small networks for vectors, no frames; π and V share no layers. Initial weights are orthogonal,
        π's last small. Time limits are not terminal, rewards not clipped; evaluation is greedy.

Examples
    python a3c_cartpole.py --num-workers 1    # with one worker, a seed repeats a run
    python a3c_cartpole.py --play runs/RUN --best --capture-video
"""

import contextlib
import copyreg
import csv
import functools
import inspect
import json
import os
import pickle
import queue
import random
import re
import signal
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, multiprocessing, nn
from torch.utils._pytree import keystr, tree_leaves_with_path
from tqdm import tqdm

Folder = Annotated[Path | None, tyro.conf.create_mutex_group(required=False)]  # at most one
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "CartPole-v1"  # Gymnasium environment, also as module:Env-v0
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # NAME VALUE …
    max_episode_steps: PositiveInt | None = None  # else the environment's own, or 1,000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # seed of all random numbers in training
    total_timesteps: PositiveInt = 500_000  # environment steps to train for, over all workers
    run_dir: Folder = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Folder = None  # continue the run in this folder
    play: Folder = None  # play greedy episodes of the run in this folder
    evaluations: NonNegativeInt = 10  # greedy evaluations in the course of the run, at most
    eval_episodes: PositiveInt = 10  # greedy episodes of each, at the end, and with --play
    checkpoint_every: NonNegativeFloat = 20.0  # least seconds between checkpoints, after episodes
    capture_video: bool = False  # film the greedy episodes
    track: bool = False  # log to Weights & Biases; WANDB_PROJECT names the project

    num_workers: PositiveInt = 2  # actor-learners, a process each; more than the cores gain nothing
    learning_rate: PositiveFloat = 2e-3  # η at first; it falls to 0 over the run
    rmsprop_alpha: Fraction = 0.99  # decay α of g
    rmsprop_epsilon: PositiveFloat = 0.01  # ε, inside the root
    gamma: Fraction = 0.99  # discount factor γ
    t_max: PositiveInt = 50  # steps of a rollout, at most
    entropy_coef: NonNegativeFloat = 0.01  # weight β of the entropy
    value_coef: NonNegativeFloat = 0.1  # weight of the loss of V
    scale_rewards: bool = True  # divide them by the standard deviation of their discounted sum
    hidden_sizes: tuple[PositiveInt, ...] = (64, 64)  # units in the hidden layers
    best: bool = False  # evaluate or play the θ with the best mean of 100 returns, not the last


# Shapes: B the steps of a rollout, S observation size, A number of actions, P all parameters.


def actor_learner(
    env: gym.Env, agent: "Agent", worker: int, lock: Any
) -> Iterator[dict[str, float]]:
    """Algorithm S3, until T = T_max; yield a row of the log after each episode."""
    args = agent.args
    theta = agent.theta.clone()  # θ′ and θ′v
    pi, v = as_layers(theta.numpy(), agent.sizes)  # views of θ′: they change with it
    # A resumed run begins here: what has to outlast an episode belongs in the agent's tensors.
    for episode in count(int(agent.episodes[worker])):
        rng = seed_episode(env, args.seed, worker, episode)  # all of the episode's randomness
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # get the state s
        return_ = discounted_sum = 0.0
        length, ended, logs = 0, False, defaultdict(list)
        while not ended:  # repeat
            theta.copy_(agent.theta)  # synchronise θ′ = θ and θ′v = θv
            observations, actions, rewards, discounted_sums = [], [], [], []
            while not ended and len(rewards) < args.t_max:
                if not agent.count_step(lock):  # T ← T + 1
                    break  # T = T_max
                observations.append(observation)
                actions.append(sample_softmax(forward(pi, observation), rng))  # a ~ π(a|s;θ′)
                observation, reward, terminated, truncated, _ = env.step(actions[-1])  # perform a
                rewards.append(float(reward))
                discounted_sum = args.gamma * discounted_sum + rewards[-1]
                discounted_sums.append(discounted_sum)
                ended = terminated or truncated
            if not rewards:
                return  # T = T_max
            R = 0.0 if terminated else forward(v, observation).item()  # V(s;θ′v)
            scale = agent.reward_scale(discounted_sums, lock) if args.scale_rewards else 1.0
            returns = np.empty(len(rewards), np.float32)
            for i in reversed(range(len(rewards))):  # for i = t − 1, …, t_start
                returns[i] = R = rewards[i] / scale + args.gamma * R  # R ← r_i + γ R
            rollout = np.stack(observations), np.array(actions), returns
            gradient, log = agent.loss_gradient(theta, *map(torch.from_numpy, rollout))  # dθ, dθv
            agent.update(gradient)  # θ with dθ, θv with dθv
            for name, value in log.items():
                logs[name].append(value)
            return_ += sum(rewards)
            length += len(rewards)
        means = {name: fmean(values) for name, values in logs.items()}
        yield dict(**{"return": return_, "length": length}, **means)


def sample_softmax(logits: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index from softmax(logits), [A]."""
    cumulative = np.exp(logits - logits.max()).cumsum()  # the largest term is 1: none overflows
    return int(cumulative.searchsorted(rng.random() * cumulative[-1]))


class Agent(nn.Module):
    """The parameters, RMSProp's g and the counter T, which the workers share, and the best θ.

    Workers, each running an actor-learner, share its tensors. If one changes anything else, that is
    an error, after 100 episodes at most; if `train` does, the workers do not see it.
    `episode` and `timestep` count finished episodes and environment steps, of all workers.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        super().__init__()
        self.args = args
        S, A = env.observation_space.shape[0], int(env.action_space.n)
        hidden = args.hidden_sizes
        self.sizes = [*pairwise([S, *hidden, A]), *pairwise([S, *hidden, 1])]  # fan_in, fan_out
        # All that is learned: a parameter elsewhere would not be trained.
        self.theta = nn.Buffer(torch.zeros(sum((n + 1) * m for n, m in self.sizes)))
        pi, v = as_layers(self.theta, self.sizes)
        torch.manual_seed(args.seed)  # the initial weights: orthogonal; biases 0
        for weights, _ in pi + v:
            nn.init.orthogonal_(weights, gain=2**0.5)
        pi[-1][0].mul_(0.01)  # so that at first all actions are about as likely
        self.g = nn.Buffer(torch.zeros_like(self.theta))
        self.T = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.reward_sums = nn.Buffer(torch.zeros(3, dtype=torch.float64))  # for `reward_scale`
        self.episodes = torch.zeros(args.num_workers, dtype=torch.int64)  # finished by each
        self.recent_returns = deque(maxlen=100)
        self.best_mean, self.best_theta = -np.inf, nn.Buffer(self.theta.clone())
        self.acting_theta = nn.Buffer(self.theta.clone())  # θ as it is evaluated
        self.share_memory()

    @property
    def timestep(self) -> int:
        return self.T.item()

    @property
    def episode(self) -> int:
        return int(self.episodes.sum())

    def act(self, observation: np.ndarray) -> int:
        """Return the likeliest action."""
        theta = self.best_theta if self.args.best else self.acting_theta
        pi, _ = as_layers(theta.numpy(), self.sizes)
        return int(forward(pi, observation).argmax())

    def loss_gradient(
        self, theta: Tensor, observations: Tensor, actions: Tensor, returns: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return Δθ, [P], of a rollout: observations [B, S], the others [B]; and what to log."""
        theta = theta.detach().requires_grad_()
        pi, v = as_layers(theta, self.sizes)
        log_pi = F.log_softmax(forward(pi, observations), dim=1)
        values = forward(v, observations)[:, 0]
        advantages = returns - values  # R − V(s_i;θ′v)
        log_pi_a = log_pi.gather(1, actions[:, None])[:, 0]
        policy_loss = -(log_pi_a * advantages.detach()).sum()
        value_loss = advantages.square().sum()
        entropy = -(log_pi.exp() * log_pi).sum()
        args = self.args
        loss = policy_loss + args.value_coef * value_loss - args.entropy_coef * entropy
        (gradient,) = torch.autograd.grad(loss, theta)
        steps = len(actions)
        log = {"value_loss": value_loss / steps, "entropy": entropy / steps, "value": values.mean()}
        return gradient, {name: value.item() for name, value in log.items()}

    def update(self, gradient: Tensor) -> None:
        """Update the shared θ by RMSProp, while other workers read and write it;
        FloatingPointError if the gradient is not finite."""
        if not gradient.isfinite().all():
            raise FloatingPointError(f"a gradient is not finite at step {self.timestep}")
        args = self.args
        rate = args.learning_rate * (1 - self.timestep / args.total_timesteps)  # η falls to 0
        self.g.lerp_(gradient.square(), 1 - args.rmsprop_alpha)  # g ← α g + (1−α) Δθ²
        root = (self.g + args.rmsprop_epsilon).sqrt_()
        self.theta.addcdiv_(gradient, root, value=-rate)  # θ ← θ − η Δθ / √(g + ε)

    def count_step(self, lock: Any) -> bool:
        """T ← T + 1, exactly, whoever else counts; False, and no step, if T_max is reached."""
        with lock:
            more = self.timestep < self.args.total_timesteps
            self.T.add_(more)
        return more

    def reward_scale(self, discounted_sums: list[float], lock: Any) -> float:
        """Return the standard deviation of the episodes' discounted sums of rewards, Σ γ^k r_t−k,
        at all steps t of all workers so far; those of a new rollout are added first."""
        x, sums = np.array(discounted_sums), self.reward_sums.numpy()
        with lock:
            sums += len(x), x.sum(), x @ x
            n, total, squares = sums
        variance = squares / n - (total / n) ** 2
        return variance**0.5 if variance > 1e-8 * squares / n else 1.0  # at first all may be equal

    def keep_best(self, return_: float) -> None:
        """Keep θ if the mean of the last 100 returns is the best yet; before 100, always."""
        self.recent_returns.append(return_)
        mean = fmean(self.recent_returns) if len(self.recent_returns) == 100 else -np.inf
        if mean >= self.best_mean:
            self.best_mean = mean
            self.best_theta.copy_(self.theta)


Layers = list[tuple[Any, Any]]  # weights [fan_in, fan_out] and biases [fan_out] of each layer


def as_layers(theta: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Layers, Layers]:
    """Return the layers of π and those of V, as views of a vector [P], torch's or NumPy's."""
    layers, start = [], 0
    for n, m in sizes:
        middle, end = start + n * m, start + (n + 1) * m
        layers.append((theta[start:middle].reshape(n, m), theta[middle:end]))
        start = end
    half = len(layers) // 2
    return layers[:half], layers[half:]


def forward(layers: Layers, x: Any) -> Any:
    """Observations […, S] → the logits of π(·|s;θ) […, A], or V(s;θv) […, 1].

    It takes torch's tensors, to learn, and NumPy's arrays, to act: for a single observation NumPy
    is about twice as fast.
    """
    *hidden, (weights, biases) = layers
    for w, b in hidden:
        x = (x @ w + b).clip(0)  # ReLU
    return x @ weights + biases


def work(worker: int, agent: Agent, lock: Any, results: Any, go_on: Any) -> None:
    """Run a worker: send each episode to `train`, and wait until it says to go on."""

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # closes the environment
    threading.Thread(target=end_with_parent, daemon=True).start()  # however the parent ends
    multiprocessing.current_process()._config["daemon"] = False  # else it may have no children
    torch.set_num_threads(1)  # more would fight for the cores
    torch.set_flush_denormal(True)
    results.cancel_join_thread()  # else a worker killed while sending keeps this from ending
    del agent.recent_returns, agent.best_mean  # the parent alone keeps them
    own = not_shared(agent)
    with contextlib.closing(make_env(agent.args)) as env:
        for number, row in enumerate(actor_learner(env, agent, worker, lock)):
            if number % 100 == 0:
                check_shared(agent, own)
            results.put((worker, row))
            while not go_on[worker].acquire(timeout=0.1):
                pass  # without a timeout, a signal that comes just before the call is not handled
        check_shared(agent, own)
    os._exit(0)  # whatever threads the environment leaves: `train` has all results


def not_shared(agent: Agent) -> dict[str, bytes]:
    """Return, by their paths, what of the agent's state is not in shared memory."""
    leaves = tree_leaves_with_path(state_of(agent))
    own = ((path, x) for path, x in leaves if not (torch.is_tensor(x) and x.is_shared()))
    return {f"agent{keystr(path)}": pickle.dumps(x) for path, x in own}


def check_shared(agent: Agent, own: dict[str, bytes]) -> None:
    """TypeError if this worker has changed what other processes do not see."""
    if changed := not_shared(agent).items() - own.items():
        raise TypeError(f"workers share the agent's buffers only, not {[*dict(changed)]}")


def train(env: gym.Env, agent: Agent) -> Iterator[dict[str, float]]:
    """Run the actor-learners; yield every episode. Each is a process with an environment of its
    own, from `make_env`: `env` itself, and what has been changed in it, is not used.

    The worker whose episode is yielded waits until the next one is asked for. So with one worker a
    checkpoint between two is exact; with several, the others go on: what they have learned is kept,
    and the episodes that they are in begin anew. However this ends, no worker is left behind: one
    that raises, is killed, or ends too early ends all, with an error.
    """
    args = agent.args
    agent.episodes = F.pad(agent.episodes, (0, max(0, args.num_workers - len(agent.episodes))))
    context = multiprocessing.get_context("spawn")
    results, go_on = context.Queue(), [context.Semaphore(0) for _ in range(args.num_workers)]
    shared = agent, context.Lock(), results, go_on
    mask = getattr(signal, "pthread_sigmask", lambda *_: None)  # Windows has none
    mask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is for the parent
    workers = multiprocessing.spawn(work, shared, args.num_workers, join=False, daemon=True)
    mask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        finished = False
        while not finished:
            finished = workers.join(timeout=0)  # whether all have ended; it raises a worker's error
            alive = all(process.is_alive() for process in workers.processes)
            if not alive and agent.timestep < args.total_timesteps:
                raise ChildProcessError(f"a worker ended early, at step {agent.timestep}")
            with contextlib.suppress(queue.Empty):
                worker, row = results.get(timeout=0.1)
                agent.episodes[worker] += 1
                agent.keep_best(row["return"])
                agent.acting_theta.copy_(agent.theta)
                yield row
                go_on[worker].release()
        agent.acting_theta.copy_(agent.theta)  # after episodes that T_max cut short
    finally:
        for process in workers.processes:
            process.terminate()
        for process in workers.processes:
            process.join(timeout=2)
            process.kill()
            process.join()


def make_env(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment; gym.error.Error if its spaces do not fit."""
    env = make(args, render_mode)
    s, a = env.observation_space, env.action_space
    if not (isinstance(s, gym.spaces.Box) and isinstance(a, gym.spaces.Discrete)):
        env.close()
        raise gym.error.Error(f"needs vectors and a Discrete(A), has {s} and {a}")
    if a.start or a.dtype != np.int64:  # torch's indices start at 0, with 64 bits
        env = gym.wrappers.TransformAction(env, lambda i: i + a.start, gym.spaces.Discrete(a.n))
    return env


# ------------------------------------------------------------------------------------------------
# The harness, the same in every script: it runs `train`, and saves and shows the results.

SCRIPT = Path(globals().get("__file__", "notebook")).stem
Rows = list[dict[str, Any]]
copyreg.pickle(deque, lambda x: (deque, (list(x), x.maxlen)))  # as weights_only reads it
NUMPY = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar]
NUMPY += {type(np.dtype(code)) for code in np.typecodes["All"]}
torch.serialization.add_safe_globals([deque, *NUMPY])
CONTAINERS = {dict, OrderedDict, list, tuple, deque}  # exactly: a subclass could not be loaded
SAVED = {torch.Tensor, nn.Parameter, np.ndarray, Counter, bool, int, float, str, type(None)}
INTERNAL = vars(nn.Module()).keys() - {"training"}
GLOBAL_SEEDS = torch.manual_seed, np.random.seed, random.seed


def seed_episode(env: gym.Env, *seed: int) -> np.random.Generator:
    """Return an episode's generator; the global ones and the spaces' are seeded from it."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2**32))
    spaces = []
    while env is not None:  # the environment and its wrappers
        spaces += [getattr(env, name, None) for name in ("action_space", "observation_space")]
        env = env.env if isinstance(env, gym.Wrapper) else None
    for seed_one in (*GLOBAL_SEEDS, *(space.seed for space in spaces if space is not None)):
        seed_one(number)
    return rng


def make(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment with a time limit; observations that can be flattened are vectors of
    float32, each in an array of its own."""
    for seed_global in GLOBAL_SEEDS:  # an environment may draw numbers as it is made
        seed_global(args.seed % 2**32)
    options = args.env_kwargs | ({"render_mode": render_mode} if render_mode else {})
    env = gym.make(args.env_id, max_episode_steps=args.max_episode_steps, **options)
    env = env if env.spec.max_episode_steps else gym.wrappers.TimeLimit(env, 1000)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) and space.is_np_flattenable:
        env = gym.wrappers.FlattenObservation(env)
        space = env.observation_space
    if not isinstance(space, gym.spaces.Box):
        return env
    box = gym.spaces.Box(*(x.astype(np.float32).ravel() for x in (space.low, space.high)))

    def vector(observation: Any) -> np.ndarray:
        return np.array(observation, np.float32).reshape(box.shape)

    return gym.wrappers.TransformObservation(env, vector, box)


def evaluate(agent: Agent, env: gym.Env, episodes: int) -> Rows:
    """Play greedy episodes; return a row for each. Episode i starts from seed 10,000 + i in every
    script and run, so that all agents meet the same starts."""
    rows = []
    for seed in range(10_000, 10_000 + episodes):
        seed_episode(env, seed)
        observation, _ = env.reset(seed=seed)
        rewards, ended = [], False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            rewards.append(float(reward))
            ended = terminated or truncated
        rows.append({"seed": seed, "return": sum(rewards), "length": len(rewards)})
    return rows


def state_of(agent: Agent) -> dict[str, Any]:
    """Return what to save: the agent's `state_dict`, and by their paths the other attributes of the
    agent and of its modules (of torch's own: their numbers), except functions, classes, devices and
    the arguments; TypeError if one cannot be restored, FloatingPointError if one has a NaN."""
    state = {"tensors": agent.state_dict()}
    state["gradients"] = {name: (p.requires_grad, p.grad) for name, p in agent.named_parameters()}
    for path, module in agent.named_modules():
        others = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        torchs = type(module).__module__.startswith("torch.")
        for name, x in (vars(module) | others).items():
            skip = name in INTERNAL or (torchs and not isinstance(x, int | float))
            if not (skip or inspect.isroutine(x) or isinstance(x, Args | type | torch.device)):
                if hasattr(x, "state_dict"):
                    name, x = f"{name}.state_dict", x.state_dict()
                state[f"{path}.{name}"] = x
    storages = [x.untyped_storage() for x in state["tensors"].values() if torch.is_tensor(x)]
    owned = [(m.data_ptr(), m.nbytes() if m.device.type == "cpu" else 1) for m in storages]
    for path, x in tree_leaves_with_path(state, is_leaf=lambda x: type(x) not in CONTAINERS):
        if not (type(x) in SAVED or isinstance(x, np.generic)):
            raise TypeError(f"agent{keystr(path)}: {type(x).__name__} is not saved; see Fork it")
        array = isinstance(x, torch.Tensor | np.ndarray)
        if array and path[0].key not in ("tensors", "gradients"):
            start = x.untyped_storage().data_ptr() if torch.is_tensor(x) else x.ctypes.data
            shared = any(0 <= start - first < size for first, size in owned)
            if shared or (torch.is_tensor(x) and x.requires_grad):
                raise TypeError(f"agent{keystr(path)} would come back as a copy: use nn.Parameter")
        if array and (x != x).any():
            raise FloatingPointError(f"agent{keystr(path)} is NaN; the last checkpoint is good")
    return state


def save(agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Write checkpoint.pt, whole or not at all, and args.json and episodes.csv, for people."""
    now = {"run_dir", "resume", "play", "capture_video", "track", "device"}  # give them anew
    args = TypeAdapter(Args).dump_json(agent.args, indent=2, exclude=now).decode()
    state = {"agent": state_of(agent), "timestep": agent.timestep}
    temporary = run_dir / f"checkpoint.{os.getpid()}.tmp"  # another process may resume the run, too
    try:
        torch.save(state | {"args": args, "rows": json.dumps(rows)}, temporary)
        torch.load(temporary, weights_only=True, mmap=True)  # or fail now
        os.replace(temporary, run_dir / "checkpoint.pt")
    except Exception as error:
        error.add_note(f"while writing {temporary}; is the disk full, or read-only?")
        raise
    finally:
        temporary.unlink(missing_ok=True)
    try:
        (run_dir / "args.json").write_text(args)
        write_csv(rows, run_dir / "episodes.csv")
    except OSError as error:  # another program may have locked them: next time
        print(f"not written: {error}", file=sys.stderr)


def load(agent: Agent, run_dir: Path) -> Rows:
    """Restore what `save` wrote; return the rows. With weights_only a checkpoint runs no code."""
    checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    saved, fresh = checkpoint["agent"], state_of(agent)
    different = saved.keys() ^ fresh.keys()
    if different := {path for path in different if path in fresh or path.endswith(".state_dict")}:
        raise ValueError(f"of another {SCRIPT}.py, or made after Agent.__init__: {different}")
    agent.load_state_dict(saved.pop("tensors"))
    for name, (requires_grad, gradient) in saved.pop("gradients").items():
        parameter = agent.get_parameter(name).requires_grad_(requires_grad)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    for path, value in saved.items():
        *names, last = path.lstrip(".").split(".")
        owner = functools.reduce(getattr, names, agent)
        if last == "state_dict":
            owner.load_state_dict(value)
        else:
            setattr(owner, last, value)
    return json.loads(checkpoint["rows"])


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows, with every column that any of them has."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)


def plot_learning_curve(rows: Rows, path: Path) -> None:
    """Draw the returns of the training episodes, and those of the evaluations between them."""
    from matplotlib.figure import Figure  # only where it is needed

    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    for name, style in (("return", {"alpha": 0.5}), ("evaluation", {"marker": "o"})):
        found = [(row["timestep"], row[name]) for row in rows if name in row]
        axes.plot(*np.reshape(found, (-1, 2)).T, **style)
    axes.set(xlabel="environment steps", ylabel="return: in training, and greedy (dots)")
    axes.figure.savefig(path, dpi=120)


def learn(env: gym.Env, agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Train; log each episode, evaluate and write checkpoints between them."""
    args, last_save, interval = agent.args, time.perf_counter(), agent.args.checkpoint_every
    started = last_save - (rows[-1]["seconds"] if rows else 0.0)
    evaluations, steps = args.evaluations, args.total_timesteps
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds between lines of a log
    bar = tqdm(total=steps, initial=agent.timestep, mininterval=pause)
    with bar, contextlib.closing(make_env(args)) as evaluation_env:
        for result in train(env, agent):
            now = time.perf_counter()
            row = {"episode": agent.episode, "timestep": agent.timestep, "seconds": now - started}
            result = {k: v.item() if hasattr(v, "item") else v for k, v in result.items()}
            row = dict(**row, **result)  # a name that comes twice is an error
            before = rows[-1]["timestep"] if rows else 0
            if before * evaluations // steps < row["timestep"] * evaluations // steps:  # one is due
                played = evaluate(agent, evaluation_env, args.eval_episodes)
                row["evaluation"] = fmean(episode["return"] for episode in played)
            rows.append(row)
            if args.track:
                import wandb

                wandb.log(row, step=agent.timestep)
            bar.set_postfix_str(f"return {fmean(row['return'] for row in rows[-20:]):.1f}", False)
            bar.update(agent.timestep - bar.n)
            if (now := time.perf_counter()) - last_save >= interval:
                save(agent, rows, run_dir)
                last_save = time.perf_counter()
                interval = interval and max(args.checkpoint_every, 9 * (last_save - now))
    save(agent, rows, run_dir)
    plot_learning_curve(rows, run_dir / "learning_curve.png")


@contextlib.contextmanager
def usage(given: Any, kinds: Any = Exception) -> Iterator[None]:
    """Turn errors of some kinds into one line that names what was given, and exit code 2."""
    try:
        yield
    except kinds as error:
        what = " ".join(str(error).splitlines()[:2]) or repr(error)  # some go on for pages
        print(f"{SCRIPT}.py: error: {given}: {what}", file=sys.stderr)
        raise SystemExit(2) from None


def parse_args(argv: Sequence[str] | None) -> Args:
    """Read the command line; the defaults are those of the run to go on with, if there is one."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if run_dir := args.resume or args.play:
        with usage(f"{run_dir}: not a run of {SCRIPT}.py"):
            path = run_dir / "checkpoint.pt"
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            saved = json.loads(checkpoint["args"]) | {"resume": args.resume, "play": args.play}
            env_kwargs = saved.pop("env_kwargs")  # with defaults, tyro would know other flags
            defaults = TypeAdapter(Args).validate_python(saved)
            args = tyro.cli(Args, args=argv, default=defaults)
            args = replace(args, env_kwargs=env_kwargs | args.env_kwargs)
    return args


def open_env(args: Args, at_exit: contextlib.ExitStack) -> gym.Env:
    """Make the environment, filmed or in a window if that is asked for; it is closed at exit."""
    known = (gym.error.Error, ModuleNotFoundError, NotImplementedError)
    with usage(f"--env-id {args.env_id}", Exception if args.env_kwargs else known):
        env = at_exit.enter_context(contextlib.closing(make_env(args)))
        if env.has_wrapper_attr("obs_rms") or env.has_wrapper_attr("return_rms"):
            raise gym.error.Error("a wrapper normalises, by statistics that no checkpoint holds")
    if not (args.max_episode_steps or gym.spec(env.unwrapped.spec.id).max_episode_steps):
        print("no time limit: it is 1,000 steps; see --max-episode-steps", file=sys.stderr)
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if args.capture_video:
        os.environ.setdefault("MUJOCO_GL", "glfw" if screen else "egl")
        with usage("--capture-video"):
            env = at_exit.enter_context(contextlib.closing(make_env(args, "rgb_array")))
            env.reset(seed=0)
            if np.ndim(env.render()) != 3:  # find out now, not after training
                raise ValueError("the environment's render mode rgb_array gives no pictures")
    elif args.play and screen and {"human", "rgb_array"} & {*env.metadata.get("render_modes", ())}:
        with usage("--play"):
            env = at_exit.enter_context(contextlib.closing(make_env(args, "human")))
    elif args.play:
        print("nothing is shown: there is no screen, or no render mode", file=sys.stderr)
    return env


def start_tracking(args: Args, run_dir: Path) -> None:
    """Log in to Weights & Biases and name the run after its folder."""
    import wandb

    run_id = re.sub(r"[^\w.-]", "-", "-".join(run_dir.absolute().parts[-2:]))
    project = os.environ.get("WANDB_PROJECT", "minimal-rl")
    resume = "allow" if args.resume or args.play else "never"
    wandb.init(project=project, name=run_id, id=run_id, resume=resume, config=vars(args))


def main(argv: Sequence[str] | None = None) -> tuple[Agent, Path]:
    """Run the script as from the command line; return the agent and the folder of its run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may not know α
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # fastest here
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # does what Ctrl-C does
    with contextlib.ExitStack() as at_exit:
        args = parse_args(argv)
        env = open_env(args, at_exit)
        with usage("memory (a smaller --buffer-size needs less)", MemoryError):
            agent = Agent(env, args)
        name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        old_run, rows = args.resume or args.play, []
        run_dir = old_run or args.run_dir or Path("runs", re.sub(r"[/:]", "-", name))
        with usage(run_dir if old_run else f"--run-dir {run_dir}"):
            if old_run:
                rows = load(agent, run_dir)
            elif run_dir.exists():
                raise FileExistsError("it is there already; --resume goes on with a run")
        if args.track:
            with usage("--track"):  # before the folder is made
                start_tracking(args, run_dir)
        with usage(f"--run-dir {run_dir}", OSError):
            run_dir.mkdir(parents=True, exist_ok=bool(old_run))
        try:
            if not args.play:
                print(f"the run is in {run_dir}", file=sys.stderr)
                save(agent, rows, run_dir)
                learn(env, agent, rows, run_dir)
            rows = evaluate(agent, env, args.eval_episodes)
            if not args.play:
                write_csv(rows, run_dir / "evaluation.csv")
            if args.capture_video:  # the same episodes once more
                film = gym.wrappers.RecordVideo(env, f"{run_dir}/videos", lambda episode: True)
                evaluate(agent, film, args.eval_episodes)
                film.close()  # writes the last
        except SystemExit as error:
            raise RuntimeError("the environment called sys.exit") from error
        except KeyboardInterrupt:
            path = run_dir / "checkpoint.pt"
            if path.exists() and not args.play:
                step = torch.load(path, weights_only=True, mmap=True)["timestep"]
                print(f"\nstopped; --resume {run_dir} goes on after step {step}", file=sys.stderr)
            raise SystemExit(130) from None
    returns = [row["return"] for row in rows]
    if args.track:
        import wandb

        videos = {path.stem: wandb.Video(str(path)) for path in run_dir.glob("videos/*.mp4")}
        wandb.log({"evaluation": fmean(returns), **videos})
        wandb.finish()
    score = f"{fmean(returns):.1f} ± {np.std(returns):.1f}"
    print(f"evaluation: mean return {score} over {len(rows)} episodes; the run is in {run_dir}")
    return agent, run_dir


if __name__ == "__main__":
    main()
