"""Speed and memory of the scripts, beside Stable-Baselines3's and beside a floor, and what becomes
of them as the work grows.

Everything runs on the CPU, in one thread a process. Each measurement has a process of its own, so
that imports, threads and memory of one do not touch another; what is compared takes turns, so that
a noisy machine is noisy for all. Tables go to the output, progress to the error output.

1. Steps per second of training, DDPG on Pendulum-v1 and DQN on the shower, from the end of a
    warm-up on, compilation excluded, with one update a step, and the peak memory of the process.
    Both sides: networks of the same size (checked), the same batch size, a buffer of the same size,
    as many updates in the timed window (checked), denormals flushed, nothing logged; for DDPG OU
    noise, for DQN a soft update of the target at every step. What differs is the design: SB3 wraps
    the environment in a monitor and a vector of one.
    The random agent on CartPole-v1, whose floor is the environment alone.
    A3C on CartPole-v1 with 1, 2 and 4 workers, beside SB3's A2C with 8 environments in its one
    process, both at their defaults: two hidden layers of 64, which SB3 has twice, for π and for V,
    and ours share. From the first 20,000 steps on, so that no start of a process counts.
2. An update against its floor, see `make_floor`.
3. What compiling costs, and after how many steps it has paid for itself.
4. With wider networks and larger batches, a fuller replay buffer, more workers, and in a long run
    the speed of its second tenth beside that of its last.

Linux or macOS. From the root of the repository:
    python -m pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py --csv benchmarks/results/speed.csv
"""

import csv
import importlib
import importlib.metadata
import os
import platform
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

# The scripts, stable_baselines3 and tyro are imported where they are used, so that the memory
# of a process holds only what that process needs.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SCRIPTS = {"DDPG": ("ddpg_continuous", "Pendulum-v1"), "DQN": ("dqn_shower", "Shower-v0")}
EPISODES = 600  # steps, after which episodes of both environments (200 and 60 steps) end
LEARNING_STARTS = 500  # steps before the first update
WARM_UP = 600  # steps before the timed ones
CALLS = 10  # updates timed together, 1/20 of --steps times
FAST_WARM_UP = 20_000  # steps of A3C and A2C before the timed ones


@dataclass(frozen=True)
class Args:
    """The command line."""

    repeats: int = 3  # processes for each speed, and for the compile times
    steps: int = 600  # timed environment steps of DDPG in each, a multiple of 600; DQN's: ten times
    fast_steps: int = 200_000  # timed environment steps of A3C, A2C and the random agent
    parts: tuple[Literal["training", "updates", "compiling", "growth"], ...] = (
        *("training", "updates", "compiling", "growth"),
    )  # which of the four
    csv: Path | None = None  # where to write every single measurement

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.steps < EPISODES or self.steps % EPISODES:
            sys.exit(f"--repeats must be 1 or more, --steps a multiple of {EPISODES}")


class Case(NamedTuple):
    """What to measure, and with which sizes."""

    algorithm: str
    hidden_sizes: tuple[int, int]
    batch_size: int

    def __str__(self) -> str:
        h1, h2 = self.hidden_sizes
        return f"{self.algorithm} {h1}-{h2}, batch {self.batch_size}"


DEFAULTS = (Case("DDPG", (400, 300), 64), Case("DQN", (24, 24), 32))
CASES = (DEFAULTS[0], Case("DDPG", (256, 256), 256), DEFAULTS[1], Case("DQN", (64, 64), 128))
WIDER = [Case("DDPG", (width, width), 64) for width in (64, 128, 256, 512)]
WIDER += [Case("DQN", (width, width), 32) for width in (64, 256)]
LARGER = [Case("DDPG", (400, 300), batch_size) for batch_size in (16, 256)]
LARGER += [Case("DQN", (24, 24), batch_size) for batch_size in (128, 512)]
TRANSITIONS = (1_000, 10_000, 100_000, 1_000_000)  # in the replay buffer
A3C_SIZES = ((32, 32), (64, 64), (128, 128), (256, 256))
LONG_RUNS = {  # script: environment, steps, flags
    "random_baseline": ("CartPole-v1", 1_000_000, {}),
    "ddpg_continuous": ("Pendulum-v1", 40_000, {}),
    "dqn_shower": ("CartPole-v1", 100_000, {"compile": True}),
    "a3c_cartpole": ("CartPole-v1", 1_000_000, {"num_workers": 2}),
}


class Run(NamedTuple):
    """What is measured of a training run."""

    steps_per_second: float
    updates: int  # in the timed window
    parameters: int  # of actor and critic
    memory: float  # peak of the process, MB
    child_memory: float  # peak of its largest child process, MB, at most


class Measurements:
    """Every single measurement: values by measurement, case, and what was measured."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def add(self, measurement: str, case: Case | str, of: str, value: float) -> None:
        """Take a value in."""
        self.values[measurement, str(case), of].append(value)

    def get(self, measurement: str, case: Case | str, of: str) -> list[float]:
        """Return the values in the order they came."""
        return self.values[measurement, str(case), of]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        found = cls()
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found.add(row["measurement"], row["case"], row["of"], float(row["value"]))
        return found

    def write(self, path: Path) -> None:
        """Write a CSV file, a row for each value."""
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("measurement", "case", "of", "repeat", "value"))
            for key, values in self.values.items():
                writer.writerows((*key, repeat, value) for repeat, value in enumerate(values))


# Processes


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of this file in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=set_up_process) as pool:
        return pool.submit(function, *args).result()


def set_up_process() -> None:
    """Do as `main` of ddpg_continuous does."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def peak_memory(who: int) -> float:
    """Return the highest resident memory so far, in MB; of child processes, the largest one's.

    Linux starts the count of a child process at what its parent held. So for child processes (the
    C++ compiler; with a warm cache it is only asked for its version) this is an upper bound. For
    the processes measured here it does no harm: their parent has imported less than any of them.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(who).ru_maxrss * unit / 1e6


def end_run(marks: list[tuple[float, int]], steps: int, *networks: torch.nn.Module) -> Run:
    """Sum up a training run from (time, updates so far) at the ends of the timed window."""
    (start, updates_before), (end, updates_after) = marks
    return Run(
        steps_per_second=steps / (end - start),
        updates=updates_after - updates_before,
        parameters=sum(p.numel() for network in networks for p in network.parameters()),
        memory=peak_memory(resource.RUSAGE_SELF),
        child_memory=peak_memory(resource.RUSAGE_CHILDREN),
    )


# 1. Training


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def make_agent(case: Case, compile: bool, **options: Any) -> tuple[Any, gym.Env, Any]:
    """Return our agent, its environment, and its script."""
    name, env_id = SCRIPTS[case.algorithm]
    script = importlib.import_module(name)
    sizes = {"hidden_sizes": case.hidden_sizes, "batch_size": case.batch_size}
    args = script.Args(env_id, compile=compile, **sizes, **options)
    env = script.make_env(env_id)
    return script.Agent(env, args), env, script


def run_ours(case: Case, steps: int, compile: bool) -> Run:
    """Train our agent; its `train` yields after each episode."""
    total = WARM_UP + steps
    options = {"learning_starts": LEARNING_STARTS, "total_timesteps": total}
    agent, env, script = make_agent(case, compile, **options)
    agent.buffer.sample = samples = Counted(agent.buffer.sample)  # one an update
    marks = []
    for _ in script.train(env, agent, agent.args):
        if agent.timestep in (WARM_UP, total):
            marks.append((time.perf_counter(), samples.calls))
    networks = (agent.actor, agent.critic) if case.algorithm == "DDPG" else (agent.q_network,)
    return end_run(marks, steps, *networks)


def run_sb3(case: Case, steps: int) -> Run:
    """Train SB3's agent; it calls `mark` after each step."""
    common = {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": list(case.hidden_sizes)},
        "batch_size": case.batch_size,
        "learning_starts": LEARNING_STARTS,
        "train_freq": 1,
        "gradient_steps": 1,
        "seed": 1,
        "device": "cpu",
    }
    if case.algorithm == "DDPG":
        from stable_baselines3 import DDPG
        from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

        noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.5), 0.15, dt=1.0)
        env = gym.make("Pendulum-v1")
        model = DDPG(env=env, buffer_size=1_000_000, action_noise=noise, **common)
    else:
        from stable_baselines3 import DQN

        soft = {"tau": 0.01, "target_update_interval": 1}
        model = DQN(env=gym.make("dqn_shower:Shower-v0"), buffer_size=50_000, **soft, **common)
    total, marks = WARM_UP + steps, []

    def mark(*_: Any) -> bool:
        if model.num_timesteps in (WARM_UP, total):
            marks.append((time.perf_counter(), model._n_updates))
        return True

    model.learn(total, callback=mark, log_interval=total)  # in episodes: nothing is logged
    networks = (model.actor, model.critic) if case.algorithm == "DDPG" else (model.q_net,)
    return end_run(marks, steps, *networks)


IMPLEMENTATIONS: dict[str, Callable[[Case, int], Run]] = {
    "ours, --compile": partial(run_ours, compile=True),
    "SB3": run_sb3,
    "ours, --no-compile": partial(run_ours, compile=False),
}


def run_random(steps: int) -> tuple[float, float]:
    """Run the random agent; return its steps per second and its peak memory."""
    import random_baseline as random

    args = random.Args("CartPole-v1", total_timesteps=steps)
    env = random.make_env(args.env_id)
    start = time.perf_counter()
    for _ in random.train(env, random.Agent(env, args), args):
        pass
    return steps / (time.perf_counter() - start), peak_memory(resource.RUSAGE_SELF)


def run_environment(steps: int) -> tuple[float, float]:
    """Step through the environment, and do nothing else."""
    env = gym.make("CartPole-v1")
    env.reset(seed=1)
    start = time.perf_counter()
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start), peak_memory(resource.RUSAGE_SELF)


def run_a3c(
    workers: int, steps: int, hidden_sizes: tuple[int, int] = (64, 64)
) -> tuple[float, float]:
    """Train A3C; return its steps per second and the peak memory of its largest worker."""
    import a3c_cartpole as a3c

    total = FAST_WARM_UP + steps
    sizes = {"num_workers": workers, "hidden_sizes": hidden_sizes}
    args = a3c.Args("CartPole-v1", total_timesteps=total, **sizes)
    agent, marks = a3c.Agent(a3c.make_env(args.env_id), args), []
    for _ in a3c.train(None, agent, args):
        if agent.timestep >= FAST_WARM_UP:
            marks.append((time.perf_counter(), agent.timestep))
    (start, first), (end, last) = marks[0], marks[-1]
    return (last - first) / (end - start), peak_memory(resource.RUSAGE_CHILDREN)


def run_a2c(environments: int, steps: int) -> tuple[float, float]:
    """Train SB3's A2C; return its steps per second and its peak memory."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env("CartPole-v1", environments, seed=1)
    model = A2C("MlpPolicy", envs, seed=1, device="cpu")
    marks = []

    def mark(*_: Any) -> bool:
        if model.num_timesteps >= FAST_WARM_UP:
            marks.append((time.perf_counter(), model.num_timesteps))
        return True

    model.learn(FAST_WARM_UP + steps, callback=mark, log_interval=10**9)
    (start, first), (end, last) = marks[0], marks[-1]
    return (last - first) / (end - start), peak_memory(resource.RUSAGE_SELF)


FAST: dict[tuple[str, str], Callable[[int], tuple[float, float]]] = {
    ("random", "ours"): run_random,
    ("random", "environment"): run_environment,
    ("A3C 64-64", "SB3's A2C, 8 environments"): partial(run_a2c, 8),
    ("A3C 64-64", "1 worker"): partial(run_a3c, 1),
    ("A3C 64-64", "2 workers"): partial(run_a3c, 2),
    ("A3C 64-64", "4 workers"): partial(run_a3c, 4),
}


def measure_training(args: Args, found: Measurements) -> None:
    """Train with each implementation in turn, and so on, --repeats times."""
    for repeat in range(args.repeats):
        for case in CASES:
            steps = args.steps * (10 if case.algorithm == "DQN" else 1)
            runs = {}
            for name, implementation in IMPLEMENTATIONS.items():
                runs[name] = run = in_new_process(implementation, case, steps)
                for measurement in ("steps_per_second", "memory", "child_memory"):
                    found.add(measurement, case, name, getattr(run, measurement))
                tell(f"{case}, {name}, {repeat}: {run.steps_per_second:.0f} steps/s")
            assert {run.updates for run in runs.values()} == {steps}, runs
            assert len({run.parameters for run in runs.values()}) == 1, runs
        for (case, name), function in FAST.items():
            speed, memory = in_new_process(function, args.fast_steps)
            found.add("steps_per_second", case, name, speed)
            found.add("memory", case, name, memory)
            tell(f"{case}, {name}, {repeat}: {speed:.0f} steps/s")


# 2. The update and its floor


def fill(agent: Any, transitions: int = 1000) -> tuple[Any, ...]:
    """Fill the replay buffer with random bits, which are actions of DQN, too; return what `update`
    takes: a minibatch, and of DQN also that the target follows."""
    rng, buffer = np.random.default_rng(0), agent.buffer
    numbers = buffer.data[:transitions].view(np.float32)
    numbers[:] = rng.integers(2, size=numbers.shape)
    buffer.count = transitions
    batch = buffer.sample(agent.args.batch_size, rng, "cpu")
    return (batch, True) if hasattr(agent, "q_network") else (batch,)


Product = tuple[Tensor, Tensor, Tensor]  # factor, factor, result


def forward(weights: list[Tensor], batch_size: int) -> list[Product]:
    """Return the products of a forward pass: y = x Wᵀ in each layer, from the first on."""
    products, x = [], torch.rand(batch_size, weights[0].shape[1])
    for weight in weights:
        y = torch.empty(batch_size, len(weight))
        products.append((x, weight.T, y))
        x = y
    return products


def backward(
    passed: list[Product], weight_gradients: list[Tensor] | None, inputs: slice = slice(0)
) -> list[Product]:
    """Return the products of a backward pass through `passed`, from the last layer on.

    In each layer ∂W = ∂yᵀ x, where weight gradients are wanted, and ∂x = ∂y W; in the first layer
    only for those inputs whose gradient is wanted, by default none.
    """
    products, dy = [], torch.rand_like(passed[-1][2])
    for layer in reversed(range(len(passed))):
        x, transposed_weight, _ = passed[layer]
        if weight_gradients is not None:
            products.append((dy.T, x, weight_gradients[layer]))
        weight = transposed_weight.T if layer > 0 else transposed_weight.T[:, inputs]
        dx = torch.empty(len(dy), weight.shape[1])
        if dx.numel() > 0:
            products.append((dy, weight, dx))
        dy = dx
    return products


def adam_and_follow(p: Tensor, g: Tensor, m: Tensor, v: Tensor, target: Tensor) -> None:
    """Do the arithmetic of Adam and of the soft update: read five numbers and write four for each
    parameter. The learning rate is next to nothing, so that the numbers stay tame."""
    m.lerp_(g, 0.1)
    v.lerp_(g * g, 0.001)
    p.sub_(1e-9 * m / (v.sqrt() + 1e-8))
    target.lerp_(p, 0.005)


def make_floor(S: int, A: int, case: Case) -> Callable[[], None]:
    """Return a function that does the work no implementation of an update can leave out.

    That is the matrix products, 28 of DDPG and 11 of DQN, by `torch.mm` into memory set aside, with
    the weights lying as `nn.Linear` has them, and one pass over parameters, gradients, both moments
    and targets, which lie in five flat tensors: the least traffic there can be, in one compiled
    loop. The products work on that same memory. Left out are biases, activations, losses and the
    normaliser.

    It is a floor for calls from Python in one thread, not for the machine: a call of `torch.mm`, or
    of a compiled function, has a cost of its own, and small networks cost little else.
    """
    h1, h2 = case.hidden_sizes
    shapes = [(h1, S), (h2, h1), (A, h2)]  # of the actor, or of DQN's network
    if case.algorithm == "DDPG":
        shapes += [(h1, S + A), (h2, h1), (1, h2)]  # of the critic
    sizes, biases = [rows * columns for rows, columns in shapes], sum(rows for rows, _ in shapes)
    flat = [0.1 * torch.rand(sum(sizes) + biases) for _ in range(5)]

    def matrices(numbers: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        pieces = numbers.split([*sizes, biases])
        views = [piece.view(shape) for piece, shape in zip(pieces, shapes)]
        return views[:3], views[3:]

    weights, gradients, targets = (matrices(flat[i]) for i in (0, 1, 4))
    if case.algorithm == "DDPG":
        (actor, critic), (actor_gradients, critic_gradients) = weights, gradients
        target_actor, target_critic = targets
        q, action, q_of_action = (forward(net, case.batch_size) for net in (critic, actor, critic))
        products = [
            *forward(target_actor, case.batch_size),  # μ′(s′)
            *forward(target_critic, case.batch_size),  # Q′(s′, μ′(s′))
            *q,  # Q(s, a)
            *backward(q, critic_gradients),  # ∇θQ L
            *action,  # μ(s)
            *q_of_action,  # Q(s, μ(s))
            *backward(q_of_action, None, inputs=slice(S, None)),  # ∇a Q
            *backward(action, actor_gradients),  # ∇θμ J
        ]
        assert len(products) == 28
    else:
        q = forward(weights[0], case.batch_size)
        products = [*forward(targets[0], case.batch_size), *q, *backward(q, gradients[0])]
        assert len(products) == 11
    one_pass = torch.compile(adam_and_follow, fullgraph=True)

    @torch.no_grad()
    def floor() -> None:
        for left, right, result in products:
            torch.mm(left, right, out=result)
        one_pass(*flat)

    return floor


def time_updates(case: Case, rounds: int) -> dict[str, list[float]]:
    """Return seconds of an update and of the floor, in turns, a value for each round."""
    functions = {}
    for name, compile in (("compiled", True), ("eager", False)):
        agent, env, script = make_agent(case, compile)
        update = script.compiled(agent.update) if compile else agent.update
        functions[name] = partial(update, *fill(agent))
    A = env.action_space.shape[0] if case.algorithm == "DDPG" else env.action_space.n
    functions["floor"] = make_floor(env.observation_space.shape[0], int(A), case)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            seconds[name].append((time.perf_counter() - start) / CALLS)
    return {name: values[1:] for name, values in seconds.items()}  # the first round compiles


def add_updates(found: Measurements, measurement: str, case: Case, rounds: int) -> None:
    """Time updates and floor for a case in one process."""
    seconds = in_new_process(time_updates, case, rounds)
    for name, values in seconds.items():
        for value in values:
            found.add(measurement, case, name, value)
    tell(f"{case}: " + ", ".join(f"{n} {median(v) * 1e6:.0f} µs" for n, v in seconds.items()))


def measure_updates(args: Args, found: Measurements) -> None:
    """Time updates and floor for each case."""
    for case in CASES:
        add_updates(found, "update_seconds", case, args.steps // 20)


# 3. Compiling


def first_update(case: Case, cache: str) -> tuple[float, float, float]:
    """Return the seconds it takes to build an agent and do its first update, and the memory."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    make_agent(case, compile=False)  # imports are no part of the time

    start = time.perf_counter()
    agent, _, script = make_agent(case, compile=True)
    script.compiled(agent.update)(*fill(agent, transitions=1))
    seconds = time.perf_counter() - start
    return seconds, peak_memory(resource.RUSAGE_SELF), peak_memory(resource.RUSAGE_CHILDREN)


def measure_compiling(args: Args, found: Measurements) -> None:
    """Time the first update with an empty compiler cache, and again with what that one left."""
    for case in DEFAULTS:
        for repeat in range(args.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for name in ("cold", "warm"):
                    seconds, memory, child_memory = in_new_process(first_update, case, cache)
                    found.add("first_update_seconds", case, name, seconds)
                    found.add("memory", case, name, memory)
                    found.add("child_memory", case, name, child_memory)
                    tell(f"{case}, first update, {name} cache, {repeat}: {seconds:.1f} s")


# 4. Growth


def use_buffer(transitions: int) -> tuple[float, float]:
    """Fill a replay buffer of Pendulum's size; return the seconds it takes to add a transition and
    draw a minibatch of 64, and the memory of the buffer, in MB."""
    from ddpg_continuous import ReplayBuffer

    rng, calls = np.random.default_rng(0), 20_000
    buffer = ReplayBuffer(transitions, gym.make("Pendulum-v1"))
    observation, action = np.ones(3, np.float32), np.ones(1, np.float32)
    buffer.data.view(np.float32)[:] = 1.0
    buffer.count = transitions
    start = time.perf_counter()
    for _ in range(calls):
        buffer.add(observation, action, 1.0, observation, False)
        buffer.sample(64, rng, "cpu")
    return (time.perf_counter() - start) / calls, buffer.data.nbytes / 1e6


def run_long(name: str) -> tuple[float, float]:
    """Train; return the steps per second of the second tenth of the run, and of the last."""
    script = importlib.import_module(name)
    env_id, total, options = LONG_RUNS[name]
    args = script.Args(env_id, total_timesteps=total, **options)
    env = script.make_env(env_id)
    agent, marks = script.Agent(env, args), []
    for _ in script.train(env, agent, args):
        marks.append((time.perf_counter(), agent.timestep))
    seconds, timesteps = np.array(marks).T
    times = np.interp(np.array([0.1, 0.2, 0.9, 1.0]) * total, timesteps, seconds)
    return 0.1 * total / (times[1] - times[0]), 0.1 * total / (times[3] - times[2])


def measure_growth(args: Args, found: Measurements) -> None:
    """Time what may grow with the work, each once."""
    for case in (*WIDER, *LARGER):
        add_updates(found, "growing_update_seconds", case, args.steps // 20)
    for transitions in TRANSITIONS:
        seconds, memory = in_new_process(use_buffer, transitions)
        found.add("buffer_seconds", str(transitions), "add and sample", seconds)
        found.add("buffer_memory", str(transitions), "add and sample", memory)
        tell(f"replay buffer of {transitions:,}: {seconds * 1e6:.1f} µs")
    for sizes in A3C_SIZES:
        for workers in (1, 2):
            speed, _ = in_new_process(run_a3c, workers, args.fast_steps // 2, sizes)
            case = f"A3C {sizes[0]}-{sizes[1]}"
            found.add("growing_steps_per_second", case, str(workers), speed)
            tell(f"{case}, {workers} workers: {speed:.0f} steps/s")
    for name in LONG_RUNS:
        early, late = in_new_process(run_long, name)
        found.add("long_run", name, "second tenth", early)
        found.add("long_run", name, "last tenth", late)
        tell(f"{name}: {early:.0f} steps/s early, {late:.0f} late")


# Output


def tell(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def describe_machine() -> str:
    """Return the versions and the processor."""
    packages = ("torch", "gymnasium", "stable_baselines3", "numpy")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    parts = [f"Python {platform.python_version()}", *versions, processor, f"{os.cpu_count()} CPUs"]
    return ", ".join(parts)


def main() -> None:
    """Measure everything, then print."""
    import tyro

    args = tyro.cli(Args, description=__doc__)
    kept = args.csv is not None and args.csv.exists()  # of the parts that are not measured now
    found = Measurements.read(args.csv) if kept else Measurements()
    measures = {
        "training": measure_training,
        "updates": measure_updates,
        "compiling": measure_compiling,
        "growth": measure_growth,
    }
    for part in args.parts:
        new = Measurements()
        measures[part](args, new)
        found.values |= new.values
        if args.csv is not None:
            found.write(args.csv)
    from benchmarks.tables import speed_tables  # only now: memory is measured above

    print(describe_machine())
    print(*speed_tables(found).values(), sep="\n\n")


if __name__ == "__main__":
    main()
