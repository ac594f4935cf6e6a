# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0", "matplotlib==3.11.2", "moviepy==2.2.1",
#     "numpy==2.4.6", "pydantic==2.14.4", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Deep Q-Network, after Algorithm 1 of Mnih et al., "Human-level control through deep reinforcement
learning", Nature 518, 2015, https://doi.org/10.1038/nature14236

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
    Q, Q̂, D     → q_network, target_network, buffer
    ε, C        → epsilon, args.target_network_frequency

Deviations from the paper, and the flags that undo them
    Q̂ moves softly, at every step θ⁻ ← τ θ + (1−τ) θ⁻: --tau 1 --target-network-frequency 10000
    In the gradient, the error y − Q(s,a;θ) is not clipped to ±1: --huber
    ε ends at 0.05: --epsilon-final 0.1
    The minibatch is larger, the memory smaller: --batch-size 32 --buffer-size 1000000
    Updates begin earlier: --learning-starts 50000
    ε falls over more of the run: --epsilon-fraction 0.02
    The learning rate is larger and falls to 0: --learning-rate 2.5e-4 --learning-rate-final 1

Deviations without a flag
    ε falls from the first step on; the paper begins with 50,000 frames of random actions. In
        evaluation ε is 0, not 0.05.
    Observations are vectors, not stacked frames, and the network has two hidden layers of 64
        units. The preprocessing φ merely subtracts 38 °C from the shower's temperature: in raw
        degrees, 35 and 41 look much the same to a network.
    Every step is followed by an update, not every fourth. Adam updates θ, not RMSProp.
    Rewards are not clipped to ±1. A time limit is not terminal.

Examples
    python dqn_shower.py
    python dqn_shower.py --env-id CartPole-v1 --total-timesteps 50000 --compile
    python dqn_shower.py --resume runs/RUN
    python dqn_shower.py --play runs/RUN --capture-video
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

    env_id: str = "Shower-v0"  # Gymnasium environment, also as module:Env-v0
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # NAME VALUE …
    max_episode_steps: PositiveInt | None = None  # else the environment's own, or 1,000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # seed of all random numbers in training
    total_timesteps: PositiveInt = 5_000  # environment steps to train for
    run_dir: Folder = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Folder = None  # continue the run in this folder
    play: Folder = None  # play greedy episodes of the run in this folder
    evaluations: NonNegativeInt = 10  # greedy evaluations in the course of the run, at most
    eval_episodes: PositiveInt = 10  # greedy episodes of each, at the end, and with --play
    checkpoint_every: NonNegativeFloat = 20.0  # least seconds between checkpoints, after episodes
    capture_video: bool = False  # film the greedy episodes
    track: bool = False  # log to Weights & Biases; WANDB_PROJECT names the project

    device: Literal["cpu", "cuda", "mps"] = "cpu"  # networks run here; give it anew with --resume
    compile: bool = False  # compile the update: needs a C++ compiler, takes 20 s at first
    learning_rate: PositiveFloat = 1e-3  # Adam's learning rate
    learning_rate_final: Fraction = 0.0  # fraction it falls to over the second half of the run
    gamma: Fraction = 0.99  # discount factor γ
    target_network_frequency: PositiveInt = 1  # C, steps from one update of the target to the next
    tau: Fraction = 0.005  # τ of the update of the target; 1 resets it
    huber: bool = False  # clip the error in the gradient to ±1 (Huber's loss)
    hidden_sizes: tuple[PositiveInt, ...] = (64, 64)  # units in the hidden layers
    batch_size: PositiveInt = 128  # minibatch size
    buffer_size: PositiveInt = 50_000  # replay memory size
    learning_starts: PositiveInt = 100  # transitions in the memory before the first update
    epsilon_final: Fraction = 0.05  # final ε; the first is 1
    epsilon_fraction: PositiveFloat = 0.2  # fraction of the run over which ε falls

    def __post_init__(self) -> None:
        if not torch.get_device_module(self.device).is_available():
            raise ValueError(f"device: {self.device} is not available here")
        if self.learning_starts > self.total_timesteps and not (self.resume or self.play):
            raise ValueError(f"learning_starts: at most {self.total_timesteps}, --total-timesteps")


# Shapes: B batch, S observation size, A number of actions.


def make_q_network(*sizes: int) -> nn.Sequential:
    """Return Q(s,·;θ), […, S] → […, A]: linear layers with ReLU between them."""
    layers = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class Agent(nn.Module):
    """The network, its target and optimiser, and the replay memory.

    `episode` and `timestep` count finished episodes and environment steps. All attributes, and
    those of modules that are not torch's, are saved and restored; what is kept elsewhere is lost.
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        super().__init__()
        self.args, self.episode, self.timestep = args, 0, 0
        S, A = env.observation_space.shape[0], int(env.action_space.n)
        torch.manual_seed(args.seed)  # the initial weights
        self.q_network = make_q_network(S, *args.hidden_sizes, A).to(args.device)
        self.target_network = copy.deepcopy(self.q_network).requires_grad_(False)
        self.optimizer = Adam(self.q_network.parameters(), lr=args.learning_rate)
        self.buffer = ReplayBuffer(args.buffer_size, env)

    @torch.inference_mode()
    def act(self, observation: np.ndarray) -> int:
        """Return the greedy action, argmaxₐ Q(s,a;θ)."""
        s = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        return int(self.q_network(s).argmax())

    def anneal(self) -> float:
        """Set the learning rate for this step; return its ε."""
        args, progress = self.args, self.timestep / self.args.total_timesteps
        fraction = np.interp(progress, (0.5, 1), (1, args.learning_rate_final))
        self.optimizer.lr.fill_(fraction * args.learning_rate)
        return np.interp(progress, (0, args.epsilon_fraction), (1, args.epsilon_final))

    def update(self, batch: dict[str, Tensor], update_target: bool) -> dict[str, Tensor]:
        """Learn from a minibatch of the replay memory; return what to log."""
        s, a, r = batch["observation"], batch["action"], batch["reward"]
        s_next, terminated = batch["next_observation"], batch["terminated"]

        with torch.no_grad():
            q_next = self.target_network(s_next).amax(1)  # maxₐ′ Q̂(s′,a′;θ⁻)
            y = r + self.args.gamma * (1 - terminated) * q_next
        q = self.q_network(s).gather(1, a[:, None])[:, 0]  # Q(s,a;θ)
        loss = F.huber_loss(q, y) if self.args.huber else F.mse_loss(q, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        if update_target:
            soft_update(self.target_network, self.q_network, self.args.tau)
        return {"loss": loss.detach(), "q": q.detach().mean()}


def train(env: gym.Env, agent: Agent) -> Iterator[dict[str, float]]:
    """Algorithm 1, for `total_timesteps`; yield a row of the log after each episode."""
    args = agent.args
    update = compiled(agent.update, args.device) if args.compile else agent.update
    # A resumed run begins here: what has to outlast an episode belongs in the agent.
    while agent.timestep < args.total_timesteps:  # for episode = 1, …, M
        rng = seed_episode(env, args.seed, agent.episode)  # all of the episode's randomness
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        rewards, ended, logs = [], False, defaultdict(list)
        while not ended and agent.timestep < args.total_timesteps:  # for t = 1, …, T
            epsilon = agent.anneal()
            if rng.random() < epsilon:  # with probability ε select a random action
                action = int(rng.integers(env.action_space.n))
            else:
                action = agent.act(observation)  # otherwise argmaxₐ Q(s,a;θ)
            next_observation, reward, terminated, truncated, _ = env.step(action)  # execute a
            agent.timestep += 1
            agent.buffer.add(observation, action, reward, next_observation, terminated)  # into D
            if agent.buffer.count >= args.learning_starts:
                batch = agent.buffer.sample(args.batch_size, rng, args.device)  # from D
                update_target = agent.timestep % args.target_network_frequency == 0  # every C steps
                log = update(batch, update_target)  # gradient step
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


class ShowerEnv(gym.Env):
    """A shower, to be kept comfortable: between 37 and 39 °C.

    Observation: the temperature, Box(0, 100, (1,)). At reset it is 35, 36, …, or 41 °C.
    Action: 0, 1, 2 turn the tap by −1, 0, +1 degree. The reward is +1 if the temperature is then
    comfortable, else −1; after that it drifts by −1, 0 or +1, equally likely. One action a second;
    as `Shower-v0`, an episode is truncated after 60. An optimal agent expects 414/7 = 59.14.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    COMFORTABLE = (37.0, 39.0)

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Draw the first temperature."""
        super().reset(seed=seed)
        self.temperatures = [38.0 + self.np_random.integers(-3, 4)]
        return np.array(self.temperatures[-1:], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Turn the tap, take the reward, let the temperature drift."""
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        temperature = min(max(self.temperatures[-1] + action - 1, 0.0), 100.0)
        low, high = self.COMFORTABLE
        reward = 1.0 if low <= temperature <= high else -1.0
        drift = self.np_random.integers(-1, 2)
        self.temperatures.append(min(max(temperature + drift, 0.0), 100.0))
        return np.array(self.temperatures[-1:], np.float32), reward, False, False, {}

    def render(self) -> np.ndarray:
        """Draw the temperatures so far, 28 to 48 °C over 60 seconds, and the comfortable band."""
        import pygame  # only where it is needed

        canvas = pygame.Surface((600, 400))
        canvas.fill("white")
        low, high = self.COMFORTABLE
        pygame.draw.rect(canvas, "palegreen", (0, 20 * (48 - high), 600, 20 * (high - low)))
        points = [(10 * t, 20 * (48 - np.clip(T, 28, 48))) for t, T in enumerate(self.temperatures)]
        pygame.draw.lines(canvas, "gray40", False, [points[0], *points], 2)
        comfortable = low <= self.temperatures[-1] <= high
        pygame.draw.circle(canvas, "seagreen" if comfortable else "firebrick", points[-1], 7)
        return pygame.surfarray.array3d(canvas).swapaxes(0, 1)


if "Shower-v0" not in gym.registry:  # --env-id dqn_shower:Shower-v0 imports this file a second time
    gym.register("Shower-v0", ShowerEnv, max_episode_steps=60)


def make_env(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment; gym.error.Error if its spaces do not fit."""
    env = make(args, render_mode)
    s, a = env.observation_space, env.action_space
    if not (isinstance(s, gym.spaces.Box) and isinstance(a, gym.spaces.Discrete)):
        env.close()
        raise gym.error.Error(f"needs vectors and a Discrete(A), has {s} and {a}")
    if a.start or a.dtype != np.int64:  # torch's indices start at 0, with 64 bits
        env = gym.wrappers.TransformAction(env, lambda i: i + a.start, gym.spaces.Discrete(a.n))
    if isinstance(env.unwrapped, ShowerEnv):  # the preprocessing φ
        box = gym.spaces.Box(-38, 62, (1,))
        env = gym.wrappers.TransformObservation(env, lambda temperature: temperature - 38, box)
    return env


def plot_temperatures(agent: Agent, run_dir: Path) -> None:
    """Draw the temperature against time over ten greedy episodes, if they are of the shower."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    with contextlib.closing(make_env(agent.args)) as env:
        if not isinstance(env.unwrapped, ShowerEnv):
            return
        for seed in range(10_000, 10_010):
            (observation, _), truncated = env.reset(seed=seed), False
            while not truncated:
                observation, _, _, truncated, _ = env.step(agent.act(observation))
            axes.plot(env.unwrapped.temperatures, color="tab:blue", alpha=0.5)
    axes.axhspan(*ShowerEnv.COMFORTABLE, color="tab:green", alpha=0.2, label="comfortable")
    axes.set(title="ten greedy episodes", xlabel="second", ylabel="temperature, °C")
    axes.legend()
    axes.figure.savefig(run_dir / "temperatures.png", dpi=120)


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
    agent, run_dir = main()
    if not agent.args.play:
        plot_temperatures(agent, run_dir)
