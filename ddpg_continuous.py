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
"""Deep Deterministic Policy Gradient: Lillicrap et al., "Continuous control with deep reinforcement
learning", ICLR 2016, https://arxiv.org/abs/1509.02971, on any continuous-action environment.

Algorithm 1
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
    θμ, θQ        → actor.parameters(), critic.parameters()
    R, 𝒩, N       → buffer, noise, args.batch_size
    γ, τ          → args.gamma, args.tau

Deviations from the paper's low-dimensional setting (section 7), and the flags that undo each
    Observations are shifted and scaled by the running mean and standard deviation of all seen so
        far, clipped to ±10; else a velocity of ±0.07 (MountainCar) is lost on the networks.
                                                                    --no-normalize-observations
    No batch normalisation (section 3).                                         --batch-norm
    The action enters Q at the first hidden layer.                              --action-layer 2
    The targets follow five times faster, as the runs are far shorter.          --tau 0.001
    No weight decay on Q.                                             --critic-weight-decay 0.01
        Each of the five undone alone, MountainCar fails in two or more of five seeds.
    The noise is larger at first, and by half of the run it shrinks to a tenth.
                                                            --noise-sigma 0.2 --noise-final 1
    The learning rates fall to 0 over the second half of the run.   --learning-rate-decay-start 1
    The first update comes after 1,000 steps.                                   --learning-starts 1
        Each of the three undone alone, Pendulum and MountainCar are learned as well; but at
        constant rates InvertedPendulum loses its balance more often.
    In y, Q′ counts for nothing after a terminal state (but does after a time limit), and actions
        are clipped to their bounds. The paper writes neither.

Examples
    python ddpg_continuous.py --env-id Pendulum-v1
    python ddpg_continuous.py --env-id LunarLanderContinuous-v3 --total-timesteps 300000
    python ddpg_continuous.py --env-id HalfCheetah-v5 --total-timesteps 1000000
        --noise gaussian --noise-sigma 0.1 --noise-final 1
    python ddpg_continuous.py --resume runs/RUN
    python ddpg_continuous.py --play runs/RUN --capture-video
The paper's setting, but for batch normalisation
    python ddpg_continuous.py --no-normalize-observations --action-layer 2 --tau 0.001
        --critic-weight-decay 0.01 --noise-sigma 0.2 --noise-final 1
        --learning-rate-decay-start 1 --learning-starts 1
"""

import argparse
import contextlib
import copy
import csv
import difflib
import importlib.metadata
import io
import json
import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
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

    env_id: str = "Pendulum-v1"  # Gymnasium environment, also as module:Env-v0
    seed: int = 1  # of everything random; the same seed gives the same run
    total_timesteps: int = 20_000  # environment steps in all
    run_dir: Path | None = None  # where the run goes (default: runs/ENV__SCRIPT__SEED__TIME)
    resume: Path | None = None  # continue the run in this folder
    play: Path | None = None  # play greedy episodes of the run in this folder
    eval_episodes: int = 10  # greedy episodes at the end, or with --play
    checkpoint_every: int = 10_000  # environment steps between checkpoints
    capture_video: bool = False  # record a greedy episode before and after; with --play, all
    track: bool = False  # log to Weights & Biases
    wandb_project_name: str = "minimal-rl"  # W&B project
    wandb_entity: str | None = None  # W&B user or team
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: CUDA if there is one, or CPU
    compile: bool = True  # the update into one graph: needs a C++ compiler, and time at the start

    actor_learning_rate: float = 1e-4  # Adam's for μ
    critic_learning_rate: float = 1e-3  # Adam's for Q
    learning_rate_decay_start: float = 0.5  # share of the run before both rates start to fall to 0
    critic_weight_decay: float = 0.0  # L2 penalty on θQ
    gamma: float = 0.99  # discount factor γ
    tau: float = 0.005  # target update τ: share of the new weights at each step
    hidden_sizes: tuple[int, int] = (400, 300)  # units in the two hidden layers of μ and of Q
    action_layer: Literal[1, 2] = 1  # hidden layer of Q that the action enters
    batch_norm: bool = False  # batch normalisation, section 3
    normalize_observations: bool = True  # by their running mean and standard deviation
    batch_size: int = 64  # minibatch size N
    buffer_size: int = 1_000_000  # replay buffer size
    learning_starts: int = 1_000  # steps before the first update
    noise: Literal["ou", "gaussian", "none"] = "ou"  # the random process 𝒩
    noise_theta: float = 0.15  # OU: pull to the mean, θ
    noise_sigma: float = 0.5  # OU or Gaussian: scale σ, where actions lie in [−1, 1]
    noise_dt: float = 1.0  # OU: time step dt
    noise_decay_end: float = 0.5  # share of the run over which the noise shrinks, linearly
    noise_final: float = 0.1  # what it shrinks to, as a share of its first scale

    def __post_init__(self) -> None:
        require_common(self)  # defined, as require and flag are, in the harness below
        for name in ("actor_learning_rate", "critic_learning_rate", "noise_dt"):
            value = getattr(self, name)
            require(0 < value < np.inf, flag(name), value, "positive and finite")
        for name in ("critic_weight_decay", "noise_theta", "noise_sigma"):
            value = getattr(self, name)
            require(0 <= value < np.inf, flag(name), value, "0 or more, and finite")
        shares = ("gamma", "tau", "learning_rate_decay_start", "noise_decay_end", "noise_final")
        for name in shares:
            require(0 <= getattr(self, name) <= 1, flag(name), getattr(self, name), "in [0, 1]")
        for name in ("batch_size", "buffer_size", "learning_starts"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "1 or more")
        steps, size, theta = self.total_timesteps, self.buffer_size, self.noise_theta
        for holds, name, accepted in (
            (min(self.hidden_sizes) >= 1, "hidden_sizes", "1 or more each"),
            (self.learning_starts <= steps, "learning_starts", "at most --total-timesteps"),
            (self.batch_size <= size, "batch_size", f"at most --buffer-size {size}"),
            (self.batch_size >= 2 or not self.batch_norm, "batch_size", "2 or more: --batch-norm"),
            (theta * self.noise_dt < 2, "noise_theta", "less than 2 / --noise-dt"),
        ):
            require(holds, flag(name), getattr(self, name), accepted)


# Shapes: B batch, S observation size, A action size.


class ReplayBuffer:
    """The last `size` transitions, each a row of 2S + A + 2 float32 numbers in one array.

    The memory is reserved at once, but the system hands out a page only when it is written.
    """

    def __init__(self, size: int, observation_size: int, action_size: int) -> None:
        self.widths = [observation_size, action_size, 1, observation_size, 1]
        self.rows = np.empty((size, sum(self.widths)), dtype=np.float32)
        self.count = 0  # transitions added so far, those overwritten since included

    def __len__(self) -> int:
        return min(self.count, len(self.rows))

    def add(
        self, observation: Any, action: Any, reward: Any, next_observation: Any, terminated: bool
    ) -> None:
        """Store a transition in place of the oldest. Truncation is not termination."""
        row = self.rows[self.count % len(self.rows)]
        np.concatenate((observation, action, (reward,), next_observation, (terminated,)), out=row)
        self.count += 1

    def sample(self, batch_size: int, rng: np.random.Generator) -> Tensor:
        """Draw transitions uniformly, with replacement: rows [B, 2S + A + 2]."""
        return torch.from_numpy(self.rows[rng.integers(len(self), size=batch_size)])

    def columns(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return observation [B, S], action [B, A], reward [B], next_observation [B, S] and
        terminated [B], which is 1 where the episode ended in a terminal state and else 0."""
        observation, action, reward, next_observation, terminated = rows.split(self.widths, dim=1)
        return observation, action, reward[:, 0], next_observation, terminated[:, 0]

    def state_dict(self) -> dict[str, Any]:
        """Return the transitions and how many there have been."""
        return {"rows": torch.from_numpy(self.rows[: len(self)]), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.rows[: len(state["rows"])] = state["rows"].numpy()
        self.count = state["count"]


class RunningNormalizer:
    """Shift and scale observations to mean 0 and variance 1 over all that were seen so far.

    The replay buffer holds them as they came; they are normalised anew at each use.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self.square = np.zeros(size)  # Σ (s − mean)²
        shift, scale = torch.zeros(size), torch.ones(size)
        self.scaling = torch.stack((shift, scale)).to(device)  # [2, S], for the networks

    def update(self, observation: np.ndarray) -> None:
        """Take one observation [S] into account (Welford 1962)."""
        self.count += 1
        deviation = observation - self.mean
        self.mean += deviation / self.count
        self.square += deviation * (observation - self.mean)
        self.refresh()

    def refresh(self) -> None:
        """Hand the statistics over to the networks."""
        inverse_std = (self.square / self.count + 1e-8) ** -0.5
        self.scaling.copy_(torch.from_numpy(np.array((self.mean, inverse_std), np.float32)))

    def __call__(self, observation: Tensor) -> Tensor:
        """[B, S] → [B, S], clipped to 10 standard deviations."""
        shift, scale = self.scaling
        return ((observation - shift) * scale).clamp(-10.0, 10.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        statistics = {name: torch.from_numpy(getattr(self, name)) for name in ("mean", "square")}
        return statistics | {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.count = state["count"]
        self.mean[:], self.square[:] = state["mean"].numpy(), state["square"].numpy()
        if self.count:
            self.refresh()


def linear(inputs: int, outputs: int, bound: float | None = None) -> nn.Linear:
    """A linear layer with weights and biases from Uniform(±bound), by default ±1/√fan_in."""
    layer = nn.Linear(inputs, outputs)
    bound = inputs**-0.5 if bound is None else bound
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound)
    return layer


class Actor(nn.Module):
    """The policy μ(s|θμ), section 7; actions lie in [−1, 1]. With batch_norm, section 3."""

    def __init__(self, S: int, A: int, hidden_sizes: tuple[int, int], batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if batch_norm else nn.Identity
        self.hidden1 = linear(S, hidden_sizes[0])
        self.hidden2 = linear(hidden_sizes[0], hidden_sizes[1])
        self.output = linear(hidden_sizes[1], A, bound=3e-3)
        self.norm0, self.norm1, self.norm2 = norm(S), norm(hidden_sizes[0]), norm(hidden_sizes[1])

    def forward(self, observation: Tensor) -> Tensor:
        """[B, S] → [B, A]"""
        x = self.norm0(observation)
        x = F.relu(self.norm1(self.hidden1(x)))
        x = F.relu(self.norm2(self.hidden2(x)))
        return torch.tanh(self.output(x))


class Critic(nn.Module):
    """The value Q(s,a|θQ), section 7; batch_norm, section 3, up to where the action enters."""

    def __init__(
        self, S: int, A: int, hidden_sizes: tuple[int, int], batch_norm: bool, action_layer: int
    ) -> None:
        super().__init__()
        self.action_layer = action_layer
        A1, A2 = (A, 0) if action_layer == 1 else (0, A)
        self.hidden1 = linear(S + A1, hidden_sizes[0])
        self.hidden2 = linear(hidden_sizes[0] + A2, hidden_sizes[1])
        self.output = linear(hidden_sizes[1], 1, bound=3e-3)
        self.norm0 = nn.BatchNorm1d(S) if batch_norm else nn.Identity()
        before_action = batch_norm and action_layer == 2
        self.norm1 = nn.BatchNorm1d(hidden_sizes[0]) if before_action else nn.Identity()

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """[B, S], [B, A] → [B]"""
        x = self.norm0(observation)
        if self.action_layer == 1:
            x = torch.cat((x, action), dim=1)
        x = F.relu(self.norm1(self.hidden1(x)))
        if self.action_layer == 2:
            x = torch.cat((x, action), dim=1)
        x = F.relu(self.hidden2(x))
        return self.output(x)[:, 0]


class Adam:
    """Adam (Kingma & Ba 2015) on tensors alone, so that it compiles into the graph of the update.

    Weight decay is an L2 penalty, added to the gradient.
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(network.parameters())
        self.weight_decay = weight_decay
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        device = self.parameters[0].device
        # A tensor, as it may fall: a float would be a constant of the compiled graph.
        self.learning_rate = torch.tensor(learning_rate, device=device)
        self.betas = torch.tensor([self.BETA1, self.BETA2], device=device)
        self.powers = torch.ones_like(self.betas)  # β₁ᵗ, β₂ᵗ

    def step(self, loss: Tensor) -> None:
        """Descend the gradient of the loss; no gradient is left anywhere."""
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            self.powers.mul_(self.betas)
            correction1, correction2 = 1 - self.powers
            for p, g, m, v in zip(self.parameters, gradients, self.means, self.squares):
                if self.weight_decay:
                    g = g + self.weight_decay * p
                m.lerp_(g, 1 - self.BETA1)
                v.lerp_(g * g, 1 - self.BETA2)
                p.sub_(self.learning_rate * (m / correction1) / ((v / correction2).sqrt() + 1e-8))

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the powers of the betas."""
        return {"means": self.means, "squares": self.squares, "powers": self.powers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        old = [*self.means, *self.squares, self.powers]
        new = [*state["means"], *state["squares"], state["powers"]]
        for tensor, saved in zip(old, new, strict=True):
            tensor.copy_(saved)


class Noise:
    """The random process 𝒩 of Algorithm 1, in units where actions lie in [−1, 1].

    Ornstein-Uhlenbeck: x ← x − θ x dt + σ √dt ε, ε ~ N(0, 1), from x = 0 at the start of an
    episode. The paper gives no dt; with dt = 1 the noise forgets itself in −1/ln(1−θ) ≈ 6
    steps, and its standard deviation settles at σ/√(2θ − θ²) ≈ 1.9 σ. Gaussian: x = σ ε. None:
    x = 0.
    """

    def __init__(self, args: Args, size: int) -> None:
        self.args, self.x = args, np.zeros(size)

    def reset(self) -> None:
        """Start the process anew."""
        self.x = np.zeros_like(self.x)

    def sample(self, rng: np.random.Generator, timestep: int) -> np.ndarray:
        """Return the next noise [A], its scale decayed linearly over the run."""
        args = self.args
        if args.noise == "none":
            return self.x
        epsilon = rng.standard_normal(self.x.shape)
        if args.noise == "ou":
            drift = -args.noise_theta * self.x * args.noise_dt
            self.x = self.x + drift + args.noise_sigma * args.noise_dt**0.5 * epsilon
        else:
            self.x = args.noise_sigma * epsilon
        steps = args.noise_decay_end * args.total_timesteps
        progress = min(1.0, timestep / steps) if steps else 1.0
        return (1.0 + progress * (args.noise_final - 1.0)) * self.x


@torch.no_grad()
def soft_update(target: nn.Module, network: nn.Module, tau: float) -> None:
    """θ′ ← τ θ + (1−τ) θ′, for weights and for batch normalisation's running averages alike."""
    olds = chain(target.parameters(), target.buffers())
    news = chain(network.parameters(), network.buffers())
    for old, new in zip(olds, news):
        if old.is_floating_point():  # not batch normalisation's counter
            old.lerp_(new, tau)


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Compile a function to a graph; without a C++ compiler, say so and run it as it is.

    At each call torch checks, by its guards, that the graph still fits: here the arguments, and the
    numbers, flags, lists and dictionaries that the agent holds; but neither its tensors and
    networks nor code, for that takes as long as to update a small network. So tensors must keep
    their shapes, and `requires_grad`: change their numbers, in place.
    """
    torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad within the graph
    torch._dynamo.config.record_runtime_overhead = False  # which is for profilers

    def may_change(guard: Any) -> bool:
        of_network = re.search(r"\._(modules|parameters|buffers|\w*hooks)", guard.name)
        inner = of_network and isinstance(guard.value, dict)
        code = guard.name == "" or "__" in guard.name  # or torch's own state
        held = guard.is_global or guard.name.startswith("self.")  # not an argument
        lasting = isinstance(guard.value, Tensor) or callable(guard.value)  # networks, functions
        return not (inner or code or (held and lasting))

    options = {
        "guard_filter_fn": lambda guards: [may_change(guard) for guard in guards],
        "size_asserts": False,
        "cpp_wrapper": device.type == "cpu",  # from kernel to kernel in C++, not in Python
    }
    graph = torch.compile(function, isolate_recompiles=True, options=options)  # no other agent's

    def run_graph(*args: Any) -> Tensor:
        nonlocal graph
        try:
            return graph(*args)
        except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.CppCompileError) as e:
            print(f"running without --compile: {str(e).splitlines()[0]}", file=sys.stderr)
            graph = function
            return function(*args)

    return run_graph


def select_device(name: str) -> torch.device:
    """Return the device; UsageError if it is not there. auto: CUDA if there, else CPU."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    found = [device for device in there if there[device]]
    require(there[name], "--device", name, f"one that this machine has: {', '.join(found)}")
    return torch.device(name)


def check_continuous(env: gym.Env, env_id: str) -> tuple[int, int]:
    """Return S and A; UsageError unless observations are a Box (S,), actions a bounded Box."""
    s, a = env.observation_space, env.action_space
    flat = isinstance(s, gym.spaces.Box) and len(s.shape) == 1
    require(flat, f"--env-id {env_id}: observations in", s, "a Box of shape (S,)")
    box = isinstance(a, gym.spaces.Box)
    require(box, f"--env-id {env_id}: actions in", a, "a Box (for discrete actions there is DQN)")
    require(a.is_bounded(), f"--env-id {env_id}: actions in", a, "bounded on both sides")
    return s.shape[0], a.low.size


class Agent:
    """DDPG: the networks and their targets, their optimisers, the replay buffer, the noise.

    Attributes: episode, timestep (episodes finished and environment steps taken so far).
    Raises UsageError for spaces that `check_continuous` refuses and for a device that is not there.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        S, A = check_continuous(env, args.env_id)
        self.args, self.device = args, select_device(args.device)
        self.low, self.high = env.action_space.low, env.action_space.high
        self.episode = 0
        self.timestep = 0
        torch.manual_seed(args.seed)  # the initial weights
        normalize = args.normalize_observations
        self.normalizer = RunningNormalizer(S, self.device) if normalize else nn.Identity()
        sizes = S, A, args.hidden_sizes, args.batch_norm
        self.actor = Actor(*sizes).to(self.device)
        self.critic = Critic(*sizes, args.action_layer).to(self.device)
        # In `update` batch normalisation goes by the minibatch in all four (training mode), the
        # targets too: a y by running averages would not be the Q that is trained towards it.
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor, args.actor_learning_rate)
        decay = args.critic_weight_decay
        self.critic_optimizer = Adam(self.critic, args.critic_learning_rate, decay)
        self.buffer = ReplayBuffer(args.buffer_size, S, A)
        self.noise = Noise(args, A)
        if args.compile:
            self.update = compiled(self.update, self.device)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode, whose randomness comes from rng: initialise a random process 𝒩."""
        self.rng = rng
        self.noise.reset()

    @torch.no_grad()
    def policy(self, observation: np.ndarray) -> np.ndarray:
        """Return μ(s), [S] → [A] in [−1, 1]; FloatingPointError if not finite."""
        if self.args.batch_norm:
            self.actor.eval()  # by the running averages, not those of a batch of one
        s = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        action = self.actor(self.normalizer(s[None]))[0].cpu().numpy()
        if self.args.batch_norm:
            self.actor.train()
        require_finite(self.timestep, action=action)
        return action

    def explore(self, observation: np.ndarray) -> np.ndarray:
        """Return μ(s) + 𝒩, [S] → [A], clipped to [−1, 1]."""
        noise = self.noise.sample(self.rng, self.timestep)
        return np.clip(self.policy(observation) + noise, -1.0, 1.0)

    def to_bounds(self, action: np.ndarray) -> np.ndarray:
        """Map an action from [−1, 1] to the bounds and the shape of the environment's."""
        share = (action.reshape(self.low.shape) + 1) / 2
        scaled = self.low + share * (self.high - self.low)
        return np.clip(scaled, self.low, self.high).astype(self.low.dtype)  # rounding overshoots

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the greedy action, for the environment."""
        return self.to_bounds(self.policy(observation))

    def remember(
        self, observation: Any, action: Any, reward: Any, next_observation: Any, terminated: bool
    ) -> None:
        """Store a transition in the replay buffer, the action as it is in [−1, 1]."""
        self.buffer.add(observation, action, reward, next_observation, terminated)
        if self.args.normalize_observations:
            self.normalizer.update(observation)

    def anneal(self) -> None:
        """Let both learning rates fall, linearly, to 0 at the end of the run."""
        args = self.args
        steps = (1 - args.learning_rate_decay_start) * args.total_timesteps
        left = max(0, args.total_timesteps - self.timestep)
        share = min(1.0, left / steps) if steps else 1.0
        self.actor_optimizer.learning_rate.fill_(share * args.actor_learning_rate)
        self.critic_optimizer.learning_rate.fill_(share * args.critic_learning_rate)

    def update(self, batch: Tensor) -> Tensor:
        """Learn from a minibatch of the buffer's rows; return both losses and the mean Q, [3]."""
        s, a, r, s_next, terminated = self.buffer.columns(batch)
        s, s_next = self.normalizer(s), self.normalizer(s_next)

        with torch.no_grad():
            q_next = self.target_critic(s_next, self.target_actor(s_next))
            y = r + self.args.gamma * (1 - terminated) * q_next  # y = r + γ Q′(s′, μ′(s′))
        q = self.critic(s, a)
        critic_loss = F.mse_loss(q, y)  # L = 1/N Σ (y − Q(s,a))²
        self.critic_optimizer.step(critic_loss)

        actor_loss = -self.critic(s, self.actor(s)).mean()  # −J; autograd: ∇a Q|a=μ(s) ∇θμ μ(s)
        self.actor_optimizer.step(actor_loss)

        soft_update(self.target_critic, self.critic, self.args.tau)  # θQ′ ← τ θQ + (1−τ) θQ′
        soft_update(self.target_actor, self.actor, self.args.tau)  # θμ′ ← τ θμ + (1−τ) θμ′
        return torch.stack((critic_loss, actor_loss, q.mean())).detach()

    PARTS = (
        "normalizer actor critic target_actor target_critic actor_optimizer critic_optimizer buffer"
    ).split()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors, numbers and strings."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {"episode": self.episode, "timestep": self.timestep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.episode, self.timestep = state["episode"], state["timestep"]


def train(env: gym.Env, agent: Agent, args: Args) -> Iterator[Episode]:
    """Algorithm 1, for `args.total_timesteps`; yield each episode that has ended."""
    while agent.timestep < args.total_timesteps:  # for episode = 1, …, M
        rng = np.random.default_rng([args.seed, agent.episode])  # all of the episode's randomness
        agent.reset(rng)  # initialise a random process 𝒩
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        return_, length, learned, ended = 0.0, 0, [], False
        while not ended and agent.timestep < args.total_timesteps:  # for t = 1, …, T
            observation = np.array(observation)  # the environment may reuse its array
            action = agent.explore(observation)  # a = μ(s|θμ) + 𝒩
            next_observation, reward, terminated, truncated, _ = env.step(agent.to_bounds(action))
            agent.timestep += 1
            require_finite(agent.timestep, reward=reward, observation=next_observation)
            agent.remember(observation, action, reward, next_observation, terminated)  # store in R
            if agent.timestep >= args.learning_starts:
                agent.anneal()
                batch = agent.buffer.sample(args.batch_size, rng)  # N transitions from R
                learned.append(agent.update(batch.to(agent.device)).tolist())  # θQ, θμ, θQ′, θμ′
                require_finite(agent.timestep, losses=learned[-1])
            return_ += float(reward)
            length += 1
            observation, ended = next_observation, terminated or truncated
        if ended:
            agent.episode += 1
            means = np.mean(learned, axis=0) if learned else [np.nan] * 3
            yield Episode(return_, length, dict(zip(("critic_loss", "actor_loss", "q"), means)))


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
