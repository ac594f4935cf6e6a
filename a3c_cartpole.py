# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0",
#     "matplotlib==3.11.2",
#     "moviepy==2.2.1",
#     "numpy==2.4.6",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Asynchronous Advantage Actor-Critic: Mnih et al., "Asynchronous Methods for Deep Reinforcement
Learning", ICML 2016, https://arxiv.org/abs/1602.01783, on CartPole and any other environment with
discrete actions.

Algorithm S3, for each actor-learner, all at the same time
    θ, θv and the counter T = 0 are shared; θ′, θ′v are the actor-learner's own
    repeat
        dθ ← 0, dθv ← 0
        synchronise θ′ = θ and θ′v = θv
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

RMSProp (section 4), whose g all actor-learners share; θ and θv are one vector, so Δθ = dθv − dθ
    g ← α g + (1−α) Δθ²,  θ ← θ − η Δθ / √(g + ε)

Symbol → name in the code
    θ and θv, θ′ and θ′v → agent.theta, theta: each one vector, as the networks share their layers
    s, a, r, R           → observation, action, reward, R
    π, V, H              → softmax of logits, values, entropy
    Δθ, g                → gradient, agent.optimizer.g
    T, T_max, t_max      → agent.timestep, args.total_timesteps, args.t_max
    γ, β, α, ε           → args.gamma, .entropy_coef, .rmsprop_alpha, .rmsprop_epsilon
    η                    → agent.learning_rate(), which falls from args.learning_rate to 0

Deviations from the paper, and the flags that undo those that have one
    Small fully connected networks, no frames; a worker for each core.            --num-workers 16
    Rollouts are longer.                                                                --t-max 5
    The loss of V weighs less, so that in the layers which they share it does not drown that of π:
        with returns of 100 its gradient is far the longer.                          --value-coef 1
    ε is 1, so that no step is longer than η Δθ. With a small one g fades while a solved task leaves
        hardly a gradient, and the first bad episode throws the policy off. The paper gives none;
        usual is                                                             --rmsprop-epsilon 0.1
    The end of a time limit is not terminal: there R = V(s_t;θ′v).

With several workers, which comes first changes from run to run, so the same seed gives other
numbers each time. One worker gives the same each time.

Examples
    python a3c_cartpole.py
    python a3c_cartpole.py --num-workers 1
    python a3c_cartpole.py --env-id Acrobot-v1 --entropy-coef 0.5
    python a3c_cartpole.py --resume runs/RUN
    python a3c_cartpole.py --play runs/RUN --best --capture-video
"""

import argparse
import atexit
import contextlib
import csv
import difflib
import importlib.metadata
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, multiprocessing
from tqdm import tqdm


class Episode(NamedTuple):
    """What `train` tells of an episode: its undiscounted return, its steps, means of what was
    learned in it (losses, values)."""

    return_: float
    length: int
    learned: dict[str, float]


@dataclass(frozen=True)
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "CartPole-v1"  # Gymnasium environment, also as module:Env-v0
    seed: int = 1  # of everything random; with one worker, the same seed gives the same run
    total_timesteps: int = 500_000  # environment steps in all, by all workers
    run_dir: Path | None = None  # where the run goes (default: runs/ENV__SCRIPT__SEED__TIME)
    resume: Path | None = None  # continue the run in this folder
    play: Path | None = None  # play greedy episodes of the run in this folder
    eval_episodes: int = 10  # greedy episodes at the end, or with --play
    checkpoint_every: int = 10_000  # environment steps between checkpoints
    capture_video: bool = False  # record a greedy episode before and after; with --play, all
    track: bool = False  # log to Weights & Biases
    wandb_project_name: str = "minimal-rl"  # W&B project
    wandb_entity: str | None = None  # W&B user or team

    num_workers: int = os.cpu_count() or 1  # actor-learners, a process each
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # both with shared state
    learning_rate: float = 1.5e-3  # η at first; it falls to 0 over the run
    rmsprop_alpha: float = 0.99  # RMSProp: decay α of g
    rmsprop_epsilon: float = 1.0  # RMSProp: ε, inside the root
    gamma: float = 0.99  # discount factor γ
    t_max: int = 20  # steps of a rollout, at most
    entropy_coef: float = 0.01  # weight β of the entropy
    value_coef: float = 0.05  # weight of the loss of V
    max_grad_norm: float = np.inf  # longer gradients are shortened to this; inf: none is
    hidden_sizes: tuple[int, int] = (64, 64)  # units in the two hidden layers
    best: bool = False  # evaluate, or play, the best θ by the mean of 100 returns, not the last

    def __post_init__(self) -> None:
        require_common(self)  # defined, as require and flag are, in the harness below
        for name in ("learning_rate", "rmsprop_epsilon"):
            value = getattr(self, name)
            require(0 < value < np.inf, flag(name), value, "positive and finite")
        for name in ("entropy_coef", "value_coef"):
            value = getattr(self, name)
            require(0 <= value < np.inf, flag(name), value, "0 or more, and finite")
        for name in ("num_workers", "t_max"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "1 or more")
        workers, steps = self.num_workers, self.total_timesteps
        for holds, name, accepted in (
            (workers <= steps, "num_workers", f"at most --total-timesteps {steps}"),
            (0 <= self.gamma <= 1, "gamma", "in [0, 1]"),
            (0 <= self.rmsprop_alpha < 1, "rmsprop_alpha", "in [0, 1)"),
            (self.max_grad_norm > 0, "max_grad_norm", "positive"),
            (min(self.hidden_sizes) >= 1, "hidden_sizes", "1 or more each"),
        ):
            require(holds, flag(name), getattr(self, name), accepted)


# Shapes: B the steps of a rollout, S observation size, A number of actions, P all parameters.

Layers = list[tuple[Any, Any]]  # weights [fan_in, fan_out] and biases [fan_out] of each layer


def layer_shapes(S: int, A: int, hidden_sizes: tuple[int, int]) -> list[tuple[int, int]]:
    """Return fan_in and fan_out of each layer; the last gives π's logits and, beside them, V."""
    h1, h2 = hidden_sizes
    return [(S, h1), (h1, h2), (h2, A + 1)]


def initial_parameters(shapes: list[tuple[int, int]]) -> Tensor:
    """Return weights and biases from Uniform(±1/√fan_in), as torch's layers have them, [P]."""
    parts = [(2 * torch.rand((n + 1) * units) - 1) / n**0.5 for n, units in shapes]
    return torch.cat(parts)


def as_layers(theta: Any, shapes: list[tuple[int, int]]) -> Layers:
    """Return a vector [P], of torch or of NumPy, as views of it: weights and biases."""
    layers, start = [], 0
    for n, units in shapes:
        middle, end = start + n * units, start + (n + 1) * units
        layers.append((theta[start:middle].reshape(n, units), theta[middle:end]))
        start = end
    return layers


def actor_critic(layers: Layers, observation: Any) -> tuple[Any, Any]:
    """[…, S] → the logits of π(·|s;θ) […, A] and V(s;θv) […].

    It takes torch's tensors, to learn, and NumPy's arrays, to act: for a single observation NumPy
    is several times as fast.
    """
    *hidden, output = layers
    x = observation
    for weights, biases in hidden:
        x = (x @ weights + biases).clip(0)  # ReLU
    x = x @ output[0] + output[1]
    return x[..., :-1], x[..., -1]


def sample(logits: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an action from softmax(logits), [A]."""
    shares = np.exp(logits - logits.max()).cumsum()  # the largest term is 1: none overflows
    return int(shares.searchsorted(rng.random() * shares[-1]))


def n_step_returns(rewards: Sequence[float], R: float, gamma: float) -> np.ndarray:
    """Return R ← r_i + γ R for i from the last step to the first, starting from the value R of
    what comes after, [B]."""
    returns = np.empty(len(rewards), np.float32)
    for i in reversed(range(len(rewards))):
        R = rewards[i] + gamma * R
        returns[i] = R
    return returns


class SharedRMSProp:
    """RMSProp (section 4): g is shared by all workers, no lock guards it, and ε is in the root."""

    def __init__(self, theta: Tensor, alpha: float, epsilon: float) -> None:
        self.theta, self.alpha, self.epsilon = theta, alpha, epsilon
        self.g = torch.zeros_like(theta).share_memory_()

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Descend a gradient [P]."""
        self.g.lerp_(gradient.square(), 1 - self.alpha)  # g ← α g + (1−α) Δθ²
        root = (self.g + self.epsilon).sqrt_()
        self.theta.addcdiv_(gradient, root, value=-learning_rate)  # θ ← θ − η Δθ / √(g + ε)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what all updates so far have left."""
        return {"g": self.g}


class SharedAdam:
    """Adam (Kingma & Ba 2015), its moments and its count of steps shared, without a lock."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        self.mean = torch.zeros_like(theta).share_memory_()
        self.square = torch.zeros_like(theta).share_memory_()
        self.steps = torch.zeros((), dtype=torch.float64).share_memory_()

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Descend a gradient [P]."""
        self.steps += 1
        steps = self.steps.item()
        # The mean is written after the square, and read before it: so hardly ever does a worker
        # divide another's new mean by a square that is still 0.
        self.square.lerp_(gradient.square(), 1 - 0.999)
        self.mean.lerp_(gradient, 1 - 0.9)
        mean = self.mean.clone()
        root = (self.square / (1 - 0.999**steps)).sqrt_() + 1e-8
        self.theta.addcdiv_(mean, root, value=-learning_rate / (1 - 0.9**steps))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what all updates so far have left."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}


def check_discrete(env: gym.Env, env_id: str) -> tuple[int, int]:
    """Return S and A; UsageError unless observations are a Box (S,), and actions Discrete."""
    s, a = env.observation_space, env.action_space
    flat = isinstance(s, gym.spaces.Box) and len(s.shape) == 1
    require(flat, f"--env-id {env_id}: observations in", s, "a Box of shape (S,)")
    discrete = isinstance(a, gym.spaces.Discrete)
    require(discrete, f"--env-id {env_id}: actions in", a, "Discrete (for a Box there is DDPG)")
    return s.shape[0], int(a.n)


class Agent:
    """The parameters, the optimiser's state and the counter T, which the workers share.

    Attributes: episode, timestep (episodes finished and environment steps taken so far, by all).
    Raises UsageError for spaces that `check_discrete` refuses.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        S, A = check_discrete(env, args.env_id)
        self.args = args
        self.first_action = int(env.action_space.start)
        self.shapes = layer_shapes(S, A, args.hidden_sizes)
        torch.manual_seed(args.seed)  # the initial weights
        self.theta = initial_parameters(self.shapes).share_memory_()
        if args.optimizer == "rmsprop":
            self.optimizer = SharedRMSProp(self.theta, args.rmsprop_alpha, args.rmsprop_epsilon)
        else:
            self.optimizer = SharedAdam(self.theta)
        self.T = multiprocessing.get_context("spawn").Value("q", 0)
        # The rest is not shared: `train` keeps it.
        self.episodes = [0] * args.num_workers  # finished by each worker
        self.recent: deque[float] = deque(maxlen=100)  # their returns
        self.best_average, self.best_theta = -np.inf, self.theta.clone()

    @property
    def timestep(self) -> int:
        """T. No lock: a worker that was killed may hold it."""
        return self.T.get_obj().value

    @property
    def episode(self) -> int:
        """Episodes finished by all workers."""
        return sum(self.episodes)

    def count_step(self) -> bool:
        """T ← T + 1, exactly, whoever else counts; False, and no step, if T_max is reached."""
        with self.T.get_lock():
            more = self.timestep < self.args.total_timesteps
            self.T.get_obj().value += more
        return more

    def learning_rate(self) -> float:
        """Return η, which falls linearly in T to 0 at T_max."""
        return self.args.learning_rate * (1 - self.timestep / self.args.total_timesteps)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; the greedy policy needs no randomness."""

    def act(self, observation: np.ndarray) -> int:
        """Return the likeliest action, for the environment; FloatingPointError if not finite."""
        theta = self.best_theta if self.args.best else self.theta
        logits, _ = actor_critic(as_layers(theta.numpy(), self.shapes), observation)
        require_finite(self.timestep, logits=logits)
        return self.first_action + int(logits.argmax())

    def gradient(
        self, layers: Layers, observations: Tensor, actions: Tensor, returns: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Return dθ and dθv as one gradient, of a loss to be minimised, [P], and, for the log, the
        sums of the loss of V, of the entropy and of V. Observations [B, S], the others [B]."""
        logits, values = actor_critic(layers, observations)
        log_pi = F.log_softmax(logits, dim=1)
        advantages = returns - values  # R − V(s_i;θ′v)
        log_pi_a = log_pi.gather(1, actions[:, None])[:, 0]
        policy_loss = -(log_pi_a * advantages.detach()).sum()
        value_loss = advantages.square().sum()
        entropy = -(log_pi.exp() * log_pi).sum()
        args = self.args
        loss = policy_loss + args.value_coef * value_loss - args.entropy_coef * entropy
        gradients = torch.autograd.grad(loss, [part for layer in layers for part in layer])
        gradient = torch.cat([part.flatten() for part in gradients])
        return gradient, torch.stack((value_loss, entropy, values.sum())).tolist()

    def update(self, gradient: Tensor) -> None:
        """Update the shared parameters, while other workers read and write them."""
        norm = gradient.norm().item()
        require_finite(self.timestep, gradient_norm=norm)
        if norm > self.args.max_grad_norm:
            gradient = gradient * (self.args.max_grad_norm / norm)
        self.optimizer.step(gradient, self.learning_rate())

    def finish_episode(self, worker: int, return_: float) -> None:
        """Count a worker's episode; keep θ as it is now if the mean of the last 100 returns was
        never higher, or if there have not been as many."""
        self.episodes[worker] += 1
        self.recent.append(return_)
        full = len(self.recent) == self.recent.maxlen
        average = float(np.mean(self.recent)) if full else -np.inf
        if average >= self.best_average:
            self.best_average = average
            self.best_theta.copy_(self.theta)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors, numbers and strings."""
        return {
            "theta": self.theta.clone(),  # others may write while it is saved
            "optimizer": {k: v.clone() for k, v in self.optimizer.state_dict().items()},
            "timestep": self.timestep,
            "episodes": list(self.episodes),
            "recent": list(self.recent),
            "best_average": self.best_average,
            "best_theta": self.best_theta,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.theta.copy_(state["theta"])
        self.best_theta.copy_(state["best_theta"])
        for name, tensor in self.optimizer.state_dict().items():
            tensor.copy_(state["optimizer"][name])
        self.T.get_obj().value = state["timestep"]
        self.episodes, self.best_average = list(state["episodes"]), state["best_average"]
        self.recent = deque(state["recent"], self.recent.maxlen)


def actor_learner(env: gym.Env, agent: Agent, worker: int) -> Iterator[Episode]:
    """Algorithm S3, until T = T_max; yield each episode that has ended."""
    args = agent.args
    theta = agent.theta.clone()  # θ′ and θ′v
    arrays = as_layers(theta.numpy(), agent.shapes)  # to act with
    layers = as_layers(theta, agent.shapes)  # the same memory, to differentiate by
    for weights, biases in layers:
        weights.requires_grad_()
        biases.requires_grad_()
    for number in count(agent.episodes[worker]):
        rng = np.random.default_rng([args.seed, worker, number])  # the episode's randomness
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # get the state s
        return_, length, learned, ended = 0.0, 0, [], False
        while not ended:  # repeat
            theta.copy_(agent.theta)  # synchronise θ′ = θ and θ′v = θv
            observations, actions, rewards = [], [], []
            while not ended and len(rewards) < args.t_max and agent.count_step():  # T ← T + 1
                observation = np.array(observation, np.float32)  # the environment may reuse it
                logits, _ = actor_critic(arrays, observation)
                action = sample(logits, rng)  # a ~ π(a|s;θ′)
                step = env.step(agent.first_action + action)  # perform a
                next_observation, reward, terminated, truncated, _ = step  # receive r and s
                require_finite(agent.timestep, reward=reward, observation=next_observation)
                observations.append(observation)
                actions.append(action)
                rewards.append(float(reward))
                observation, ended = next_observation, terminated or truncated
            if not rewards:
                return  # T = T_max
            _, value = actor_critic(arrays, np.asarray(observation, np.float32))
            R = 0.0 if terminated else float(value)  # V(s;θ′v)
            returns = n_step_returns(rewards, R, args.gamma)
            batch = map(torch.from_numpy, (np.stack(observations), np.array(actions), returns))
            gradient, terms = agent.gradient(layers, *batch)  # dθ and dθv
            agent.update(gradient)  # θ with dθ, θv with dθv
            learned.append(terms)
            return_ += sum(rewards)
            length += len(rewards)
        means = (np.sum(learned, axis=0) / length).tolist()
        yield Episode(return_, length, dict(zip(("value_loss", "entropy", "value"), means)))


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, in whatever way; end this one."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def work(agent: Agent, worker: int, parent: Connection) -> None:
    """Be a worker's process: hand each episode to `train`, and go on when it says so."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # more would fight for the cores
    torch.set_flush_denormal(True)
    with contextlib.closing(make_env(agent.args.env_id)) as env:
        try:
            for episode in actor_learner(env, agent, worker):
                parent.send(episode)
                parent.recv()
        except FloatingPointError as error:
            parent.send(error)


@contextlib.contextmanager
def stops_blocked() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait, unless another thread of this process takes them; processes
    started meanwhile never notice them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_end(worker: int, exit_code: int, agent: Agent) -> None:
    """Raise ChildProcessError unless a worker ended as it should, when T had reached T_max."""
    if exit_code != 0 or agent.timestep < agent.args.total_timesteps:
        cause = f"ended with exit code {exit_code}"
        if exit_code < 0:
            cause = f"was killed by {signal.Signals(-exit_code).name}"
        raise ChildProcessError(f"worker {worker} {cause} at step {agent.timestep}")


def train(env: gym.Env, agent: Agent, args: Args) -> Iterator[Episode]:
    """Start the actor-learners, a process each; yield every episode that one of them has ended.

    Each makes an environment of its own, by `args.env_id`; env is not used, but `train` takes it in
    every script. The worker whose episode is yielded waits until the next one is asked for. So with
    one worker a checkpoint between two is exact; with several, the others go on: what they have
    learned is kept, and the episodes that they are in begin anew.

    Raises FloatingPointError if a worker meets NaN or infinity, and ChildProcessError if one dies.
    However this ends, no worker is left behind.
    """
    context = multiprocessing.get_context("spawn")
    agent.T = context.Value("q", agent.timestep)  # a new lock: a killed worker may hold the old one
    working, processes = {}, []  # workers by their connections; all processes
    try:
        with stops_blocked():
            for worker in range(args.num_workers):
                connection, other_end = context.Pipe()
                process = context.Process(target=work, args=(agent, worker, other_end))
                process.start()
                processes.append(process)
                atexit.register(process.kill)  # if this generator is then still open
                other_end.close()
                working[connection] = worker
        while working:
            for connection in wait(list(working)):
                worker = working[connection]
                try:
                    message = connection.recv()
                except (EOFError, ConnectionError):  # its process has ended
                    del working[connection]
                    processes[worker].join()
                    check_end(worker, processes[worker].exitcode, agent)
                    continue
                if isinstance(message, FloatingPointError):
                    raise message
                agent.finish_episode(worker, message.return_)
                yield message
                with contextlib.suppress(ConnectionError):  # if it is dead, recv will say so
                    connection.send("go on")
    finally:
        with stops_blocked():
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


# ------------------------------------------------------------------------------------------------
# The harness: the same bytes in every script. It consumes `train` and works between episodes.
# ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).stem
RECENT = 20  # episodes in the moving average of the progress bar and of the curve
EVALUATION_SEED = 10_000  # evaluation episode i is reset with seed EVALUATION_SEED + i
# What --resume and --play may be given anew; all else stays as the run began. Another
# --total-timesteps stretches what is scheduled over the run, from here on.
MAY_CHANGE = set(
    "total_timesteps device compile best run_dir resume play eval_episodes checkpoint_every "
    "capture_video track wandb_project_name wandb_entity".split()
)


class UsageError(Exception):
    """Wrong input: ends the script with one line and exit code 2, before anything is written."""


def require(condition: bool, what: str, given: Any, accepted: str) -> None:
    """Raise a UsageError such as `--gamma 2.0: must be in [0, 1]` unless the condition holds."""
    if not condition:
        raise UsageError(f"{what} {given}: must be {accepted}")


def require_common(args: Any) -> None:
    """Check the arguments that every script has."""
    require(0 <= args.seed < 2**32, "--seed", args.seed, "in [0, 2³²)")
    for name in ("total_timesteps", "eval_episodes", "checkpoint_every"):
        require(getattr(args, name) >= 1, flag(name), getattr(args, name), "1 or more")
    given = [flag(n) for n in ("run_dir", "resume", "play") if getattr(args, n) is not None]
    require(len(given) <= 1, " and ".join(given), "together", "given one at a time")


def require_finite(timestep: int, **values: Any) -> None:
    """Raise FloatingPointError if anything is NaN or infinite after that many steps."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(f"{name} became {value} at step {timestep}")


def flag(name: str) -> str:
    """Return how a field of Args is written on the command line."""
    return "--" + name.replace("_", "-")


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """Make an environment; UsageError, with near names, if there is none of that name."""
    options = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make(env_id, **options)
    except (gym.error.Error, ImportError) as error:
        near = difflib.get_close_matches(env_id, gym.registry)
        reason = " ".join(str(error).split()) + (f" Near: {', '.join(near)}." if near else "")
        raise UsageError(f"--env-id {env_id}: {reason}") from error


def evaluate(
    agent: Agent, env: gym.Env, episodes: int, traces: list[list[Any]] | None = None
) -> list[dict[str, float]]:
    """Play greedy episodes and return a row for each; add to traces, if given, what each observed.

    Episode i is reset with seed 10,000 + i in every script, whatever the seed of the run, so that
    agents, and other libraries, are compared on the same starts.
    """
    rows = []
    for episode in range(episodes):
        seed = EVALUATION_SEED + episode
        observation, _ = env.reset(seed=seed)
        agent.reset(np.random.default_rng([seed, 0]))
        return_, length, ended, trace = 0.0, 0, False, [observation]
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            return_ += float(reward)
            length += 1
            ended = terminated or truncated
            if traces is not None:
                trace.append(observation)
        if traces is not None:
            traces.append(trace)
        rows.append({"episode": episode, "seed": seed, "return": return_, "length": length})
    return rows


def record_videos(agent: Agent, env_id: str, folder: Path, prefix: str, episodes: int = 1) -> list:
    """Do as `evaluate`, and write each episode to folder/PREFIX-episode-I.mp4."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overwriting existing videos.*")
        env = gym.wrappers.RecordVideo(
            make_env(env_id, "rgb_array"),
            str(folder),
            episode_trigger=lambda _: True,
            name_prefix=prefix,
            disable_logger=True,
        )
    with contextlib.closing(env):  # closing writes the last video
        return evaluate(agent, env, episodes)


def try_video(agent: Agent, env_id: str, folder: Path, prefix: str) -> None:
    """Record a video, or say why there is none: a missing screen must not cost a training run."""
    try:
        record_videos(agent, env_id, folder, prefix)
    except Exception as error:  # whatever the renderer raises
        print(f"no video {prefix}: {error}", file=sys.stderr)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file in one step: a reader, or a kill, meets the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_args(args: Args, run_dir: Path) -> None:
    """Write args.json: the script, the versions it ran with, and every argument."""
    versions = {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy", "torch")}
    content = {"script": SCRIPT, "versions": versions, "args": asdict(args)}
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(run_dir / "args.json", lambda file: file.write(text.encode()))


def read_args(run_dir: Path) -> Args:
    """Read the arguments of an earlier run; UsageError if they are not this script's."""
    path = run_dir / "args.json"
    try:
        content = json.loads(path.read_text())
        script, saved = content["script"], content["args"]
        saved = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{run_dir}: not a run ({path.name}: {error!r})") from error
    require(script == SCRIPT, str(run_dir), f"was made by {script}.py", f"a run of {SCRIPT}.py")
    same = saved.keys() == {field.name for field in fields(Args)}
    require(same, str(path), "has other arguments", f"of this version of {SCRIPT}.py")
    return Args(**saved | {"run_dir": None, "resume": None, "play": None})


def parse_args(argv: Sequence[str] | None) -> Args:
    """Read the command line, on top of the run's own arguments with --resume and --play."""
    folders = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    either = folders.add_mutually_exclusive_group()
    for name in ("--resume", "--play"):
        either.add_argument(name, type=Path, dest="run_dir")
    run_dir = folders.parse_known_args(argv)[0].run_dir
    saved = read_args(run_dir) if run_dir else Args()
    args = tyro.cli(Args, args=argv, description=__doc__, default=saved)
    if run_dir:
        for name in (field.name for field in fields(Args) if field.name not in MAY_CHANGE):
            old, new = getattr(saved, name), getattr(args, name)
            require(new == old, flag(name), new, f"{old}, as it is in {run_dir}, or left out")
    return args


def save_checkpoint(agent: Agent, args: Args, run_dir: Path) -> None:
    """Write checkpoint.pt: tensors, numbers and strings only, nothing that can execute."""
    checkpoint = {"script": SCRIPT, "env_id": args.env_id, "agent": agent.state_dict()}
    write_atomically(run_dir / "checkpoint.pt", lambda file: torch.save(checkpoint, file))


def load_checkpoint(agent: Agent, args: Args, run_dir: Path) -> None:
    """Load checkpoint.pt; UsageError, and the file left as it is, if it is not one of this run."""
    path = run_dir / "checkpoint.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        made_by = checkpoint["script"], checkpoint["env_id"]
        require(made_by == (SCRIPT, args.env_id), str(path), f"is of {made_by}", "of this run")
        agent.load_state_dict(checkpoint["agent"])
    except UsageError:
        raise
    except Exception as error:  # the loader raises many kinds for truncated and foreign files
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UsageError(
            f"{path}: truncated, or not a checkpoint of this run ({reason})"
        ) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, all with the same keys, as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def append_csv(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file; no kill of this process loses it. The first brings the header."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def rewind_csv(path: Path, episode: int) -> list[dict[str, str]]:
    """Drop, and return the rest of, what a killed run wrote after its checkpoint at episode."""
    rows = []
    for row in read_csv(path):
        if None in row.values() or int(row["episode"]) > episode:  # None: cut off in mid-row
            break
        rows.append(row)
    write_csv(path, rows)
    return rows


def plot_learning_curve(run_dir: Path, title: str) -> None:
    """Draw the returns in episodes.csv, and their moving average, to learning_curve.png."""
    rows = read_csv(run_dir / "episodes.csv")
    if not rows:
        return
    from matplotlib.figure import Figure  # a second to import: only now

    timesteps = np.array([int(row["timestep"]) for row in rows])
    returns = np.array([float(row["return"]) for row in rows])
    window = min(RECENT, len(rows))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(timesteps, returns, color="tab:blue", alpha=0.3, label="episode")
    average = np.convolve(returns, np.ones(window) / window, "valid")
    axes.plot(timesteps[window - 1 :], average, color="tab:blue", label=f"mean of {window}")
    axes.set(title=title, xlabel="environment steps", ylabel="return (exploration included)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run_dir / "learning_curve.png", dpi=120)


def plot_traces(traces: list[list[Any]], env: gym.Env, path: Path) -> None:
    """Draw a one-dimensional observation against time, a line an episode, over the band of it that
    the environment names COMFORTABLE, if it does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for trace in traces:
        axes.plot(np.ravel(trace), color="tab:blue", alpha=0.5, linewidth=1)
    if hasattr(env.unwrapped, "COMFORTABLE"):
        axes.axhspan(*env.unwrapped.COMFORTABLE, color="tab:green", alpha=0.2, label="comfortable")
        axes.legend()
    axes.set(title=f"{len(traces)} greedy episodes", xlabel="step", ylabel="observation")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


class Tracker:
    """Weights & Biases with --track, nothing without; its failure never stops a run."""

    def __init__(self, args: Args, run_dir: Path) -> None:
        self.run: Any = None
        if args.track:
            with self.going_on():
                import wandb

                name = "-".join(run_dir.resolve().parts[-2:])  # of the run; its id, to resume it
                self.run = wandb.init(
                    project=args.wandb_project_name,
                    entity=args.wandb_entity,
                    name=name,
                    id=re.sub(r"[^\w.-]", "-", name),
                    resume="allow",
                    dir=run_dir.absolute(),
                    config=json.loads(json.dumps(asdict(args), default=str)),
                )

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Turn an error of W&B into a line on the terminal, and log no more."""
        try:
            yield
        except Exception as error:
            self.run = None
            print(f"--track: {error!r}; going on without Weights & Biases", file=sys.stderr)

    def log(self, values: dict[str, Any], timestep: int) -> None:
        """Log values at a timestep."""
        if self.run is not None:
            with self.going_on():
                self.run.log(values, step=timestep)

    def finish(self, run_dir: Path, rows: list[dict[str, float]]) -> None:
        """Log the evaluation and the videos, and close."""
        if self.run is not None:
            with self.going_on():
                import wandb

                for path in sorted(run_dir.glob("videos/*.mp4")):
                    self.run.log({path.stem: wandb.Video(str(path), format="mp4")})
                if rows:
                    self.run.summary["evaluation"] = np.mean([row["return"] for row in rows])
                self.run.finish()


class StopRequest:
    """While entered, Ctrl-C or SIGTERM sets `made`; a second one stops the script at once."""

    def __enter__(self) -> Self:
        self.made = False
        signals = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        print("\nstopping when this episode ends; once more stops now", file=sys.stderr)


def run_training(env: gym.Env, agent: Agent, args: Args, run_dir: Path, tracker: Tracker) -> bool:
    """Train, log each episode, write checkpoints; return False if the run was told to stop."""
    rows = rewind_csv(run_dir / "episodes.csv", agent.episode)
    started = time.perf_counter() - (float(rows[-1]["seconds"]) if rows else 0.0)
    recent = deque((float(row["return"]) for row in rows), maxlen=RECENT)
    saved_at = agent.timestep
    bar = tqdm(total=args.total_timesteps, initial=agent.timestep, unit="step", disable=None)
    with StopRequest() as stop, bar:
        for episode in train(env, agent, args):
            row = {
                "episode": agent.episode,
                "timestep": agent.timestep,
                "return": episode.return_,
                "length": episode.length,
                "seconds": round(time.perf_counter() - started, 3),
                **episode.learned,
            }
            append_csv(run_dir / "episodes.csv", row)
            tracker.log(row, agent.timestep)
            recent.append(episode.return_)
            bar.set_postfix_str(f"return {np.mean(recent):.1f}", refresh=False)
            bar.update(agent.timestep - bar.n)
            if stop.made or agent.timestep - saved_at >= args.checkpoint_every:
                save_checkpoint(agent, args, run_dir)
                saved_at = agent.timestep
                if stop.made:
                    break
        else:
            save_checkpoint(agent, args, run_dir)
            bar.update(agent.timestep - bar.n)
    plot_learning_curve(run_dir, f"{SCRIPT} on {args.env_id}, seed {args.seed}")
    return not stop.made


def play(agent: Agent, args: Args, run_dir: Path, drawable: bool) -> list[dict[str, float]]:
    """Play greedy episodes: to videos/ with --capture-video, or on the screen if there is one."""
    load_checkpoint(agent, args, run_dir)
    if args.capture_video:
        return record_videos(agent, args.env_id, run_dir / "videos", "play", args.eval_episodes)
    screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    mode = "human" if screen and drawable else None
    with contextlib.closing(make_env(args.env_id, mode)) as env:
        return evaluate(agent, env, args.eval_episodes)


def report(rows: list[dict[str, float]]) -> None:
    """Print the last line of a run."""
    returns = [row["return"] for row in rows]
    mean, deviation = np.mean(returns), np.std(returns)
    print(f"evaluation: mean return {mean:.1f} ± {deviation:.1f} over {len(rows)} episodes")


def new_run_dir(args: Args) -> Path:
    """Make the folder of a new run; UsageError if it is taken."""
    run_dir = args.run_dir
    try:
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            free = not any(run_dir.iterdir())
            require(free, "--run-dir", run_dir, "a new or empty folder (or use --resume)")
        while run_dir is None:
            now = time.strftime("%Y-%m-%d_%H-%M-%S")
            name = re.sub(r"[^\w.-]", "-", f"{args.env_id}__{SCRIPT}__{args.seed}__{now}")
            with contextlib.suppress(FileExistsError):  # another run began in this second
                Path("runs", name).mkdir(parents=True)
                run_dir = Path("runs", name)
    except OSError as error:
        raise UsageError(f"--run-dir {args.run_dir or 'runs/'}: {error.strerror}") from error
    return run_dir


def run(args: Args) -> int:
    """Do what the command line asks; return the exit code."""
    env = make_env(args.env_id)
    drawable = "rgb_array" in env.metadata.get("render_modes", ())
    require(drawable or not args.capture_video, "--capture-video", "of " + args.env_id, "left out")
    agent = Agent(env, args)
    if args.play is not None:
        report(play(agent, args, args.play, drawable))
        return 0
    run_dir = args.resume or new_run_dir(args)
    if (run_dir / "checkpoint.pt").exists():
        load_checkpoint(agent, args, run_dir)
    total, least = args.total_timesteps, f"at least {agent.timestep}, the steps so far"
    require(total >= agent.timestep, "--total-timesteps", total, least)
    write_args(args, run_dir)
    tracker = Tracker(args, run_dir)
    if args.capture_video and agent.timestep == 0:
        try_video(agent, args.env_id, run_dir / "videos", "before-training")
    if not run_training(env, agent, args, run_dir, tracker):
        tracker.finish(run_dir, [])
        print(f"stopped after {agent.timestep} steps; go on with --resume {run_dir}")
        return 130
    if args.capture_video:
        try_video(agent, args.env_id, run_dir / "videos", "after-training")
    with contextlib.closing(make_env(args.env_id)) as evaluation_env:
        traces = [] if evaluation_env.observation_space.shape == (1,) else None
        rows = evaluate(agent, evaluation_env, args.eval_episodes, traces)
        if traces:
            plot_traces(traces, evaluation_env, run_dir / "evaluation.png")
    write_csv(run_dir / "evaluation.csv", rows)
    tracker.finish(run_dir, rows)
    print(f"saved in {run_dir}")
    report(rows)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script as from the command line; return its exit code."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # small matrices: threads cost more than they bring
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    try:
        return run(parse_args(argv))
    except UsageError as error:
        print(f"{SCRIPT}.py: error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ChildProcessError) as error:
        print(f"{SCRIPT}.py: stopped: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
