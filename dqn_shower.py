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
"""Deep Q-Network: Mnih et al., "Human-level control through deep reinforcement learning", Nature
518, 2015, https://doi.org/10.1038/nature14236, on a shower to be kept at 37 to 39 degrees, and on
any other environment with discrete actions.

Algorithm 1
    initialise the replay memory D, and the action values Q(s,a;θ) at random
    initialise the target Q̂ with θ⁻ = θ
    for episode = 1, …, M do
        receive the first observation s₁
        for t = 1, …, T do
            with probability ε select a random action a, otherwise a = argmaxₐ Q(s,a;θ)
            execute a, observe r and s′; store (s, a, r, s′) in D
            sample a minibatch of transitions from D
            y = r if s′ is terminal, otherwise y = r + γ maxₐ′ Q̂(s′,a′;θ⁻)
            take a gradient step on (y − Q(s,a;θ))² with respect to θ
            every C steps reset Q̂ = Q

Symbol → name in the code
    s, a, r, s′ → observation, action, reward, next_observation; in `update` s, a, r, s_next
    Q, Q̂        → q_network, target_network
    θ, θ⁻       → q_network.parameters(), target_network.parameters()
    D, ε        → buffer, agent.epsilon()
    γ, C or τ   → args.gamma, args.target_update

Deviations from the paper, and the flags that undo those that have one
    Observations are vectors, with no frames to stack, and they are shifted and scaled by the
        running mean and standard deviation of all seen so far, clipped to ±10.
        --no-normalize-observations
    Rewards are not clipped, and neither is the error. With the error clipped, the rare terminal
        transitions, whose error may be 100, weigh no more than others, and with these defaults
        only one seed of five learns CartPole.                                           --huber
    Actions are drawn from the softmax of Q (Boltzmann), not ε-greedily.
        --exploration epsilon-greedy
    Q̂ follows Q softly at each update, θ⁻ ← τ θ + (1−τ) θ⁻.   --target-update 500 (the paper's C is
        10,000, in a run of fifty million frames)
    Adam in place of RMSProp. Its rate falls to 0 over the second half of the run.
        --learning-rate-decay-start 1
    Two layers of 24 units, an update at every step, a smaller memory, an earlier start; ε falls
        over a fifth of the run, not a fiftieth, to 0.05, not 0.1, and is 0 in evaluation. γ and the
        minibatch are the paper's.

Double Q-learning (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461) is --double:
    y = r + γ Q̂(s′, argmaxₐ′ Q(s′,a′;θ);θ⁻)

Examples
    python dqn_shower.py
    python dqn_shower.py --env-id CartPole-v1 --total-timesteps 50000
    python dqn_shower.py --env-id Acrobot-v1 --total-timesteps 100000 --temperature 0.1
        --hidden-sizes 64 64
    python dqn_shower.py --resume runs/RUN
    python dqn_shower.py --play runs/RUN --capture-video
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

    env_id: str = "Shower-v0"  # Gymnasium environment, also as module:Env-v0
    seed: int = 1  # of everything random; the same seed gives the same run
    total_timesteps: int = 5_000  # environment steps in all
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
    compile: bool = False  # the update into one graph: needs a C++ compiler, and time at the start

    learning_rate: float = 1e-3  # Adam's
    learning_rate_decay_start: float = 0.5  # share of the run before the rate starts to fall to 0
    gamma: float = 0.99  # discount factor γ
    target_update: float = 0.01  # below 1: τ of a soft update at each step; else C, in steps
    double: bool = False  # double Q-learning
    huber: bool = False  # clip the error to ±1 (Huber's loss)
    hidden_sizes: tuple[int, int] = (24, 24)  # units in the two hidden layers
    normalize_observations: bool = True  # by their running mean and standard deviation
    batch_size: int = 32  # minibatch size
    buffer_size: int = 50_000  # replay memory size
    learning_starts: int = 100  # steps before the first update
    exploration: Literal["boltzmann", "epsilon-greedy"] = "boltzmann"  # how actions are drawn
    temperature: float = 1.0  # Boltzmann: that of softmax(Q/temperature)
    epsilon_start: float = 1.0  # ε-greedy: ε at first
    epsilon_end: float = 0.05  # ε-greedy: ε at last
    epsilon_fraction: float = 0.2  # ε-greedy: share of the run over which ε falls, linearly

    def __post_init__(self) -> None:
        require_common(self)  # defined, as require and flag are, in the harness below
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            require(0 < value < np.inf, flag(name), value, "positive and finite")
        unit = "learning_rate_decay_start gamma epsilon_start epsilon_end epsilon_fraction"
        for name in unit.split():
            require(0 <= getattr(self, name) <= 1, flag(name), getattr(self, name), "in [0, 1]")
        for name in ("batch_size", "buffer_size", "learning_starts"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "1 or more")
        target, start = self.target_update, self.epsilon_start
        steps, size = self.total_timesteps, self.buffer_size
        right_kind = 0 < target < 1 or (target >= 1 and target % 1 == 0)
        for holds, name, accepted in (
            (right_kind, "target_update", "in (0, 1), or a whole number of steps"),
            (target <= steps, "target_update", "at most --total-timesteps"),
            (min(self.hidden_sizes) >= 1, "hidden_sizes", "1 or more each"),
            (self.learning_starts <= steps, "learning_starts", "at most --total-timesteps"),
            (self.batch_size <= size, "batch_size", f"at most --buffer-size {size}"),
            (self.epsilon_end <= start, "epsilon_end", f"at most --epsilon-start {start}"),
        ):
            require(holds, flag(name), getattr(self, name), accepted)


class ShowerEnv(gym.Env):
    """A shower, to be kept comfortable: between 37 and 39 °C.

    Observation: the temperature, Box(0, 100, (1,)). At reset it is 35, 36, …, or 41 °C.
    Action: 0, 1, 2 turn it by −1, 0, +1 degree. The reward is +1 if the temperature is then
    comfortable, else −1; after that it drifts by −1, 0 or +1, each as likely. An action a second;
    as `Shower-v0`, an episode is truncated after 60. An optimal agent expects 414/7 = 59.14.
    """

    metadata = {"render_modes": ["human", "rgb_array", "ansi"], "render_fps": 10}
    COMFORTABLE = (37.0, 39.0)

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self.render_mode = render_mode
        self.window: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the first temperature."""
        super().reset(seed=seed)
        self.temperatures = [38.0 + self.np_random.integers(-3, 4)]
        self.rewards: list[float] = []
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Turn the tap, take the reward, let the temperature drift."""
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        temperature = min(max(self.temperatures[-1] + action - 1, 0.0), 100.0)
        low, high = self.COMFORTABLE
        self.rewards.append(1.0 if low <= temperature <= high else -1.0)
        drift = self.np_random.integers(-1, 2)
        self.temperatures.append(min(max(temperature + drift, 0.0), 100.0))
        return self._observe(), self.rewards[-1], False, False, {}

    def _observe(self) -> np.ndarray:
        if self.render_mode == "human":
            self.render()
        return np.array(self.temperatures[-1:], np.float32)

    def render(self) -> np.ndarray | str | None:
        """Draw the temperatures observed so far over the comfortable band, and the return."""
        if self.render_mode is None:
            gym.logger.warn("render() draws nothing: no render_mode was given to gymnasium.make")
            return None
        text = f"{len(self.rewards):2d} s   {self.temperatures[-1]:3.0f} °C   return "
        text += f"{sum(self.rewards):+.0f}"
        if self.render_mode == "ansi":
            return text
        import pygame  # 0.3 s to import: only now

        width, height, lowest, highest = 600, 400, 28, 48

        def at(second: float, temperature: float) -> tuple[float, float]:
            share = (np.clip(temperature, lowest, highest) - lowest) / (highest - lowest)
            return 20 + second * (width - 40) / 60, height - share * height

        pygame.font.init()
        canvas = pygame.Surface((width, height))
        canvas.fill("white")
        low, high = self.COMFORTABLE
        band = pygame.Rect(0, at(0, high)[1], width, at(0, low)[1] - at(0, high)[1])
        pygame.draw.rect(canvas, "palegreen", band)
        points = [at(second, t) for second, t in enumerate(self.temperatures)]
        if len(points) > 1:
            pygame.draw.lines(canvas, "gray40", False, points, 2)
        comfortable = low <= self.temperatures[-1] <= high
        pygame.draw.circle(canvas, "seagreen" if comfortable else "firebrick", points[-1], 7)
        canvas.blit(pygame.font.Font(None, 32).render(text, True, "black"), (20, 15))
        if self.render_mode == "rgb_array":
            return pygame.surfarray.array3d(canvas).swapaxes(0, 1)
        if self.window is None:
            pygame.display.init()
            pygame.display.set_caption("Shower")
            self.window, self.clock = pygame.display.set_mode((width, height)), pygame.time.Clock()
        self.window.blit(canvas, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self.clock.tick(self.metadata["render_fps"])
        return None

    def close(self) -> None:
        """Close the window."""
        if self.window is not None:
            import pygame

            pygame.display.quit()
            self.window = None


if "Shower-v0" not in gym.registry:  # --env-id dqn_shower:Shower-v0 imports this file a second time
    gym.register("Shower-v0", f"{__name__}:ShowerEnv", max_episode_steps=60)


# Shapes: B batch, S observation size, A number of actions (but 1, an index, in ReplayBuffer).


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


class QNetwork(nn.Module):
    """The action values Q(s,·;θ). Weights start from torch's own Uniform(±1/√fan_in)."""

    def __init__(self, S: int, A: int, hidden_sizes: tuple[int, int]) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(S, hidden_sizes[0])
        self.hidden2 = nn.Linear(hidden_sizes[0], hidden_sizes[1])
        self.output = nn.Linear(hidden_sizes[1], A)

    def forward(self, observation: Tensor) -> Tensor:
        """[B, S] → [B, A]"""
        x = F.relu(self.hidden1(observation))
        x = F.relu(self.hidden2(x))
        return self.output(x)


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


def boltzmann(q: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """Draw an action with probability ∝ exp(Q/temperature), from q [A]."""
    weights = np.exp((q - q.max()) / temperature)  # the largest is 1: none overflows
    shares = weights.cumsum()
    return int(shares.searchsorted(rng.random() * shares[-1]))


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


def check_discrete(env: gym.Env, env_id: str) -> tuple[int, int]:
    """Return S and A; UsageError unless observations are a Box (S,), and actions Discrete."""
    s, a = env.observation_space, env.action_space
    flat = isinstance(s, gym.spaces.Box) and len(s.shape) == 1
    require(flat, f"--env-id {env_id}: observations in", s, "a Box of shape (S,)")
    discrete = isinstance(a, gym.spaces.Discrete)
    require(discrete, f"--env-id {env_id}: actions in", a, "Discrete (for a Box there is DDPG)")
    return s.shape[0], int(a.n)


class Agent:
    """DQN: the network and its target, the optimiser, the replay memory.

    Attributes: episode, timestep (episodes finished and environment steps taken so far).
    Raises UsageError for spaces that `check_discrete` refuses and for a device that is not there.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        S, self.A = check_discrete(env, args.env_id)
        self.args, self.device = args, select_device(args.device)
        self.first_action = int(env.action_space.start)
        self.episode = 0
        self.timestep = 0
        torch.manual_seed(args.seed)  # the initial weights
        normalize = args.normalize_observations
        self.normalizer = RunningNormalizer(S, self.device) if normalize else nn.Identity()
        self.q_network = QNetwork(S, self.A, args.hidden_sizes).to(self.device)
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.optimizer = Adam(self.q_network, args.learning_rate)
        self.buffer = ReplayBuffer(args.buffer_size, S, 1)
        if args.compile:
            self.update_and_q_values = compiled(self.update_and_q_values, self.device)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode, whose randomness comes from rng."""
        self.rng = rng

    def to_tensor(self, observation: np.ndarray) -> Tensor:
        """Return an observation [S] in float32, on the device."""
        return torch.from_numpy(np.asarray(observation, np.float32)).to(self.device)

    @torch.no_grad()
    def q_values(self, observation: np.ndarray) -> np.ndarray:
        """Return Q(s,·;θ), [S] → [A]; FloatingPointError if not finite."""
        s = self.to_tensor(observation)
        q = self.q_network(self.normalizer(s[None]))[0].cpu().numpy()
        require_finite(self.timestep, q=q)
        return q

    def epsilon(self) -> float:
        """Return ε, which falls linearly and then stays."""
        args = self.args
        steps = args.epsilon_fraction * args.total_timesteps
        progress = min(1.0, self.timestep / steps) if steps else 1.0
        return args.epsilon_start + progress * (args.epsilon_end - args.epsilon_start)

    def explore(self, q: np.ndarray) -> int:
        """Return an action to learn from, 0 to A − 1, given Q(s,·;θ) [A]."""
        if self.args.exploration == "boltzmann":
            return boltzmann(q, self.args.temperature, self.rng)
        if self.rng.random() < self.epsilon():
            return int(self.rng.integers(self.A))
        return int(q.argmax())

    def act(self, observation: np.ndarray) -> int:
        """Return the greedy action, for the environment."""
        return self.first_action + int(self.q_values(observation).argmax())

    def remember(
        self, observation: Any, action: int, reward: Any, next_observation: Any, terminated: bool
    ) -> None:
        """Store a transition in the replay memory."""
        self.buffer.add(observation, (action,), reward, next_observation, terminated)
        if self.args.normalize_observations:
            self.normalizer.update(observation)

    def anneal(self) -> None:
        """Let the learning rate fall, linearly, to 0 at the end of the run."""
        args = self.args
        steps = (1 - args.learning_rate_decay_start) * args.total_timesteps
        left = max(0, args.total_timesteps - self.timestep)
        share = min(1.0, left / steps) if steps else 1.0
        self.optimizer.learning_rate.fill_(share * args.learning_rate)

    def update(self, batch: Tensor) -> Tensor:
        """Learn from a minibatch of the memory's rows; return the loss and the mean Q, [2]."""
        args = self.args
        s, a, r, s_next, terminated = self.buffer.columns(batch)
        s, s_next = self.normalizer(s), self.normalizer(s_next)

        with torch.no_grad():
            q_next = self.target_network(s_next)  # Q̂(s′,·;θ⁻)
            chooser = self.q_network(s_next) if args.double else q_next
            a_next = chooser.argmax(1, keepdim=True)  # argmaxₐ′
            q_next = q_next.gather(1, a_next)[:, 0]  # Q̂(s′,a′;θ⁻)
            y = r + args.gamma * (1 - terminated) * q_next
        q = self.q_network(s).gather(1, a.long())[:, 0]  # Q(s,a;θ)
        loss = F.huber_loss(q, y) if args.huber else F.mse_loss(q, y)
        self.optimizer.step(loss)

        if args.target_update < 1:
            soft_update(self.target_network, self.q_network, args.target_update)
        return torch.stack((loss, q.mean())).detach()

    def update_and_q_values(self, batch: Tensor, observation: Tensor) -> Tensor:
        """Update, then return its [2] and Q(s,·;θ) of an observation [S], by the new θ: [2 + A].
        One call of a compiled function takes less time than two."""
        learned = self.update(batch)
        with torch.no_grad():
            q = self.q_network(self.normalizer(observation[None]))[0]
        return torch.cat((learned, q))

    def reset_target(self) -> None:
        """Every C steps, reset Q̂ = Q."""
        C = self.args.target_update
        if C >= 1 and self.timestep % C == 0:
            soft_update(self.target_network, self.q_network, 1.0)

    PARTS = "normalizer q_network target_network optimizer buffer".split()

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
        agent.reset(rng)
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        q = agent.q_values(observation)  # Q(s₁,·;θ)
        return_, length, learned, ended = 0.0, 0, [], False
        while not ended and agent.timestep < args.total_timesteps:  # for t = 1, …, T
            observation = np.array(observation)  # the environment may reuse its array
            action = agent.explore(q)  # select a: softmax of Q, or ε-greedy
            step = env.step(agent.first_action + action)  # execute a
            next_observation, reward, terminated, truncated, _ = step
            agent.timestep += 1
            require_finite(agent.timestep, reward=reward, observation=next_observation)
            agent.remember(observation, action, reward, next_observation, terminated)  # store in D
            if agent.timestep >= args.learning_starts:
                agent.anneal()
                batch = agent.buffer.sample(args.batch_size, rng).to(agent.device)  # from D
                latest = agent.to_tensor(next_observation)
                result = agent.update_and_q_values(batch, latest).cpu().numpy()  # gradient step
                require_finite(agent.timestep, loss_and_q=result)
                learned.append(result[:2].tolist())
                q = result[2:]  # Q(s′,·;θ), for the next action
                agent.reset_target()  # every C steps Q̂ = Q
            else:
                q = agent.q_values(next_observation)
            return_ += float(reward)
            length += 1
            observation, ended = next_observation, terminated or truncated
        if ended:
            agent.episode += 1
            means = np.mean(learned, axis=0) if learned else [np.nan] * 2
            yield Episode(return_, length, dict(zip(("loss", "q"), means)))


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
