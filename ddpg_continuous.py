# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0", "matplotlib==3.11.2", "moviepy==2.2.1",
#     "numpy==2.4.6", "pydantic==2.14.4", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Deep Deterministic Policy Gradient, after Algorithm 1 of Lillicrap et al., "Continuous control
with deep reinforcement learning", ICLR 2016, https://arxiv.org/abs/1509.02971

    initialise the critic Q(s,a|θQ) and the actor μ(s|θμ) at random
    initialise the targets Q′ and μ′ with θQ′ ← θQ, θμ′ ← θμ, and the replay buffer R
    for episode = 1, …, M do
        initialise a random process 𝒩; receive the first observation s₁
        for t = 1, …, T do
            select the action a = μ(s|θμ) + 𝒩
            execute a, observe r and s′; store (s, a, r, s′) in R
            sample a minibatch of N transitions from R
            y = r + γ Q′(s′, μ′(s′|θμ′)|θQ′)
            update the critic by minimising L = 1/N Σ (y − Q(s,a|θQ))²
            update the actor by ∇θμ J ≈ 1/N Σ ∇a Q(s,a|θQ)|a=μ(s) ∇θμ μ(s|θμ)
            θQ′ ← τ θQ + (1−τ) θQ′;  θμ′ ← τ θμ + (1−τ) θμ′

Symbol → name in the code
    s, a, r, s′   → observation, action, reward, next_observation; in `update` s, a, r, s_next
    μ, Q, μ′, Q′  → actor, critic, target_actor, target_critic
    R, N, 𝒩       → buffer, args.batch_size, noise_scale * noise

Deviations from the paper's low-dimensional setting (section 7), and the flags that undo them
    The targets follow five times as fast, as runs are far shorter: --tau 0.001
    γ is smaller, for LunarLander's sake: --gamma 0.99
    The noise starts larger and shrinks over the run: --noise-sigma 0.2 --noise-final 1
    The learning rates fall to 0 over the second half of the run: --learning-rate-final 1
    The first update comes after 1,000 steps: --learning-starts 1

Deviations without a flag; benchmarks/README.md has what was measured of them
    There is no batch normalisation (section 3) and no weight decay on Q, and the action enters Q at
        its first layer. Observations whose bounds are less than 2 apart are stretched to 2.
    y omits Q′ after a terminal state, but not after a time limit; actions are clipped to their
        bounds. The paper mentions neither. It gives no time step for 𝒩 either: here it is 1, and
        actions lie in [−1, 1]; for another dt pass θ dt and σ √dt.

Examples
    python ddpg_continuous.py --env-id Pendulum-v1
    python ddpg_continuous.py --env-id HalfCheetah-v5 --total-timesteps 1000000 --noise-theta 1
    python ddpg_continuous.py --resume runs/RUN
    python ddpg_continuous.py --play runs/RUN --capture-video
"""

import contextlib
import copy
import copyreg
import csv
import functools
import inspect
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves_with_path
from tqdm import tqdm

Folder = Annotated[Path | None, tyro.conf.create_mutex_group(required=False)]  # at most one
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "Pendulum-v1"  # Gymnasium environment, also as module:Env-v0
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # NAME VALUE …
    max_episode_steps: PositiveInt | None = None  # else the environment's own, or 1,000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # seed of all random numbers in training
    total_timesteps: PositiveInt = 10_000  # environment steps to train for
    run_dir: Folder = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Folder = None  # continue the run in this folder
    play: Folder = None  # play greedy episodes of the run in this folder
    evaluations: NonNegativeInt = 10  # greedy evaluations in the course of the run, at most
    eval_episodes: PositiveInt = 10  # greedy episodes of each, at the end, and with --play
    checkpoint_every: NonNegativeFloat = 20.0  # least seconds between checkpoints, after episodes
    capture_video: bool = False  # film the greedy episodes
    track: bool = False  # log to Weights & Biases; WANDB_PROJECT names the project

    device: Literal["cpu", "cuda", "mps"] = "cpu"  # networks run here; give it anew with --resume
    compile: bool = True  # compile the update: needs a C++ compiler, takes 20 s at first
    actor_learning_rate: PositiveFloat = 1e-4  # Adam's learning rate for μ
    critic_learning_rate: PositiveFloat = 1e-3  # Adam's learning rate for Q
    learning_rate_final: Fraction = 0.0  # fraction they fall to over the second half of the run
    gamma: Fraction = 0.98  # discount factor γ
    tau: Fraction = 0.005  # rate τ at which the targets follow
    hidden_sizes: tuple[PositiveInt, ...] = (400, 300)  # units in the hidden layers of μ and of Q
    batch_size: PositiveInt = 64  # minibatch size N
    buffer_size: PositiveInt = 1_000_000  # replay buffer size
    learning_starts: PositiveInt = 1_000  # transitions in the buffer before the first update
    noise_theta: Fraction = 0.15  # Ornstein-Uhlenbeck: rate θ of the pull to 0; 1 is Gaussian noise
    noise_sigma: NonNegativeFloat = 0.5  # scale σ of the noise, where actions lie in [−1, 1]
    noise_final: Annotated[Fraction, Field(gt=0)] = 0.1  # fraction to which it shrinks over the run

    def __post_init__(self) -> None:
        if not torch.get_device_module(self.device).is_available():
            raise ValueError(f"device: {self.device} is not available here")
        if self.learning_starts > self.total_timesteps and not (self.resume or self.play):
            raise ValueError(f"learning_starts: at most {self.total_timesteps}, --total-timesteps")


# Shapes: B batch, S observation size, A action size.


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLU between them, initialised as in section 7: weights and biases
    from Uniform(±1/√fan_in), which is torch's default, those of the last from Uniform(±0.003)."""
    layers = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    last = nn.Linear(*sizes[-2:])
    for parameter in last.parameters():
        nn.init.uniform_(parameter, -3e-3, 3e-3)
    return nn.Sequential(*layers, last)


class Actor(nn.Module):
    """The policy μ(s|θμ); actions lie in [−1, 1]."""

    def __init__(self, S: int, A: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = mlp(S, *hidden_sizes, A)

    def forward(self, s: Tensor) -> Tensor:
        """[…, S] → […, A]"""
        return torch.tanh(self.layers(s))


class Critic(nn.Module):
    """The action value Q(s,a|θQ)."""

    def __init__(self, S: int, A: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = mlp(S + A, *hidden_sizes, 1)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """[B, S], [B, A] → [B]"""
        return self.layers(torch.cat((s, a), dim=1))[:, 0]


class Agent(nn.Module):
    """The networks, their targets and optimisers, and the replay buffer.

    `episode` and `timestep` count finished episodes and environment steps. All attributes, and
    those of modules that are not torch's, are saved and restored; what is kept elsewhere is lost.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        super().__init__()
        if (env.action_space.low != -1).any() or (env.action_space.high != 1).any():
            raise ValueError(f"make_env gives actions in [−1, 1], not in {env.action_space}")
        self.args, self.episode, self.timestep = args, 0, 0
        S, A = env.observation_space.shape[0], env.action_space.shape[0]
        torch.manual_seed(args.seed)  # the initial weights
        self.actor = Actor(S, A, args.hidden_sizes).to(args.device)
        self.critic = Critic(S, A, args.hidden_sizes).to(args.device)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), lr=args.actor_learning_rate)
        self.critic_optimizer = Adam(self.critic.parameters(), lr=args.critic_learning_rate)
        self.buffer = ReplayBuffer(args.buffer_size, env)

    @torch.inference_mode()
    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the greedy action μ(s), [S] → [A]."""
        s = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        return self.actor(s).cpu().numpy()

    def anneal(self) -> float:
        """Set the learning rates for this step; return the scale of its noise."""
        args, progress = self.args, self.timestep / self.args.total_timesteps
        fraction = np.interp(progress, (0.5, 1), (1, args.learning_rate_final))
        self.actor_optimizer.lr.fill_(fraction * args.actor_learning_rate)
        self.critic_optimizer.lr.fill_(fraction * args.critic_learning_rate)
        return args.noise_final**progress  # from 1 to noise_final

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Learn from a minibatch of the replay buffer; return what to log."""
        s, a, r = batch["observation"], batch["action"], batch["reward"]
        s_next, terminated = batch["next_observation"], batch["terminated"]

        with torch.no_grad():
            q_next = self.target_critic(s_next, self.target_actor(s_next))
            y = r + self.args.gamma * (1 - terminated) * q_next  # y = r + γ Q′(s′, μ′(s′))
        q = self.critic(s, a)
        critic_loss = F.mse_loss(q, y)  # L = 1/N Σ (y − Q(s,a))²
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        actor_loss = -self.critic(s, self.actor(s)).mean()  # −J; autograd: ∇a Q|a=μ(s) ∇θμ μ(s)
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self.actor.parameters()))  # Q only passes ∇a on
        self.actor_optimizer.step()

        soft_update(self.target_critic, self.critic, self.args.tau)  # θQ′ ← τ θQ + (1−τ) θQ′
        soft_update(self.target_actor, self.actor, self.args.tau)  # θμ′ ← τ θμ + (1−τ) θμ′
        log = {"critic_loss": critic_loss, "actor_loss": actor_loss, "q": q.mean()}
        return {name: value.detach() for name, value in log.items()}


def train(env: gym.Env, agent: Agent) -> Iterator[dict[str, float]]:
    """Algorithm 1, for `total_timesteps`; yield a row of the log after each episode."""
    args = agent.args
    update = compiled(agent.update, args.device) if args.compile else agent.update
    # A resumed run begins here: what has to outlast an episode belongs in the agent.
    while agent.timestep < args.total_timesteps:  # for episode = 1, …, M
        rng = seed_episode(env, args.seed, agent.episode)  # all of the episode's randomness
        noise = np.zeros(env.action_space.shape)  # initialise 𝒩, Ornstein-Uhlenbeck
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        rewards, ended, logs = [], False, defaultdict(list)
        while not ended and agent.timestep < args.total_timesteps:  # for t = 1, …, T
            noise_scale = agent.anneal()
            noise = noise - args.noise_theta * noise + rng.normal(0, args.noise_sigma, noise.shape)
            action = agent.act(observation) + noise_scale * noise  # a = μ(s|θμ) + 𝒩
            action = action.clip(-1, 1)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            agent.timestep += 1
            agent.buffer.add(observation, action, reward, next_observation, terminated)  # into R
            if agent.buffer.count >= args.learning_starts:
                batch = agent.buffer.sample(args.batch_size, rng, args.device)  # sample N
                log = update(batch)  # θQ, θμ, θQ′, θμ′
                for name, value in log.items():
                    logs[name].append(float(value))
            rewards.append(float(reward))
            observation, ended = next_observation, terminated or truncated
        if ended:
            agent.episode += 1
            means = {name: fmean(values) for name, values in logs.items()}
            yield dict(**{"return": sum(rewards), "length": len(rewards)}, **means)


class ReplayBuffer:
    """The last `size` transitions, in one array; memory is taken only as it fills."""

    def __init__(self, size: int, env: gym.Env) -> None:
        s, a = env.observation_space.shape, env.action_space.shape
        fields = [("observation", np.float32, s), ("action", env.action_space.dtype, a)]
        fields += [("reward", np.float32), ("next_observation", np.float32, s)]
        fields += [("terminated", np.float32)]
        self.data = np.zeros(size, np.dtype(fields, align=True))
        self.count = 0  # transitions added so far, including those overwritten

    def __len__(self) -> int:
        return min(self.count, len(self.data))

    def add(self, *transition: Any) -> None:
        """Overwrite the oldest with observation, action, reward, next_observation, terminated (not
        by a time limit); FloatingPointError if one is NaN or infinite."""
        if not np.isfinite(np.hstack(transition).astype(np.float32)).all():
            raise FloatingPointError(f"transition {self.count} is not finite: {transition}")
        self.data[self.count % len(self.data)] = transition
        self.count += 1

    def sample(self, batch_size: int, rng: np.random.Generator, device: str) -> dict[str, Tensor]:
        """Draw uniformly, with replacement; return tensors [B, …] by the names of their fields."""
        batch = self.data.take(rng.integers(len(self), size=batch_size))
        return {name: torch.from_numpy(batch[name]).to(device) for name in batch.dtype.names}

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes, the transitions as bytes."""
        return vars(self) | {"data": torch.from_numpy(self.data[: len(self)].view(np.uint8))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; in a buffer of another size, the last transitions."""
        rows, size = state["data"].numpy().view(self.data.dtype), len(self.data)
        vars(self).update(state | {"data": self.data})
        if len(rows) > size or self.count > len(rows) != size:
            rows = np.roll(rows, -self.count)[-size:]  # the oldest first
            self.count = self.count if len(rows) == size else len(rows)
            rows = np.roll(rows, self.count)
        self.data[: len(rows)] = rows


class Adam(nn.Module):
    """Adam (Kingma & Ba 2015), for parameters that all have gradients. torch's own does not compile
    into one graph with the update."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__()
        self.params = nn.ParameterList(p for p in parameters if p.requires_grad)
        zeros = torch.cat([torch.zeros_like(p).flatten() for p in self.params])
        self.m, self.v = nn.Buffer(zeros), nn.Buffer(zeros.clone())  # first and second moments
        self.lr = nn.Buffer(zeros.new_tensor(lr))  # the learning rate α; change it by fill_
        self.beta1_t = nn.Buffer(zeros.new_tensor(1.0))  # β₁ᵗ
        self.beta2_t = nn.Buffer(zeros.new_tensor(1.0))  # β₂ᵗ

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step against the gradients."""
        g = torch.cat([p.grad.flatten() for p in self.params])
        m_hat = self.m.lerp_(g, 1 - 0.9) / (1 - self.beta1_t.mul_(0.9))
        v_hat = self.v.lerp_(g * g, 1 - 0.999) / (1 - self.beta2_t.mul_(0.999))
        steps = self.lr * m_hat / (v_hat.sqrt() + 1e-8)
        for p, step in zip(self.params, steps.split([p.numel() for p in self.params])):
            p.sub_(step.view_as(p))


@torch.no_grad()
def soft_update(target: nn.Module, network: nn.Module, tau: float) -> None:
    """θ′ ← τ θ + (1−τ) θ′; buffers, such as batch normalisation's, are copied."""
    for old, new in zip(target.parameters(), network.parameters()):
        old.lerp_(new, tau)
    for old, new in zip(target.buffers(), network.buffers()):
        old.copy_(new)


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Compile a function into one graph; what breaks it is an error that names the line. Where
    nothing compiles, for want of a C++ compiler, say, return the function as it is."""
    torch._dynamo.config.trace_autograd_ops = True  # backward() within the graph
    torch._dynamo.config.specialize_float = True  # else a new float may pass unseen
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # else a new hook does
    torch._dynamo.config.use_numpy_random_stream = True  # else NumPy's numbers are torch's
    # Called from C++, a graph has less overhead, but on CUDA it gave wrong numbers (torch 2.11).
    options = {"cpp_wrapper": device == "cpu", "size_asserts": False, "fallback_random": True}
    try:
        torch.compile(torch.cos, options=options)(torch.ones(8, device=device))
    except Exception as error:
        lines = re.findall(r".*(?:cannot find|error: ).*", str(error)) or str(error).splitlines()
        tqdm.write(f"slower, as with --no-compile: compiling fails: {lines[0]}", file=sys.stderr)
        return function
    for parameter in function.__self__.parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise RuntimeError("hooks of parameters do not compile: use --no-compile")
    graph = torch.compile(function, fullgraph=True, options=options)
    breaks = torch._dynamo.utils.counters["graph_break"]
    breaks.clear()

    def call(*args: Any) -> Any:
        try:
            result = graph(*args)
        except Exception as error:
            error.add_note("To compile, use tensors for what changes; --no-compile runs any code.")
            raise
        if breaks:  # with several graphs, torch loses gradients without a word
            raise RuntimeError("not one graph: keep fullgraph=True, or use --no-compile")
        return result

    return call


def make_env(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment, with actions in [−1, 1]; gym.error.Error if its spaces do not fit."""
    env = make(args, render_mode)
    s, a = env.observation_space, env.action_space
    boxes = isinstance(s, gym.spaces.Box) and isinstance(a, gym.spaces.Box)
    if not (boxes and len(a.shape) == 1 and a.is_bounded()):
        env.close()
        raise gym.error.Error(f"needs vectors and a bounded Box (A,), has {s} and {a}")

    half_width = (s.high.astype(float) - s.low) / 2
    scale = np.where((half_width > 0) & (half_width < 1), half_width, 1)
    box = gym.spaces.Box((s.low / scale).astype(np.float32), (s.high / scale).astype(np.float32))
    env = gym.wrappers.TransformObservation(env, lambda x: (x / scale).astype(np.float32), box)

    low, high = a.low.astype(np.longdouble), a.high.astype(np.longdouble)  # int64 fits, too

    def rescale(action: np.ndarray) -> np.ndarray:
        scaled = low + (action + 1) / 2 * (high - low)
        scaled = scaled if a.dtype.kind == "f" else scaled.round()
        return scaled.clip(low, high).astype(a.dtype)  # rounding may overshoot

    return gym.wrappers.TransformAction(env, rescale, gym.spaces.Box(-1, 1, a.shape))


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
