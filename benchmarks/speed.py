"""Speed and memory of the learners, beside those of Stable-Baselines3 and beside a floor.

Everything runs on the CPU, in one thread a process. Each measurement has a process of its own, so
that imports, threads and memory of one do not touch another; what is compared takes turns, so that
a noisy machine is noisy for all. Tables go to the output, progress to the error output.

1, 2. Steps per second of training, DDPG on Pendulum-v1 and DQN on the shower, from the end of a
    warm-up on, compilation excluded, with one update a step, and the peak memory of the process.
    Both sides: networks of the same size (checked), the same batch size, a buffer of the same size,
    as many updates in the timed window (checked), denormals flushed, nothing logged; for DDPG OU
    noise, for DQN a soft update of the target at every step. What differs is the design: ours also
    normalises observations, and draws DQN's actions from Boltzmann's distribution, its defaults;
    SB3 explores ε-greedily (ε is 1 at first, so at first it saves the network's forward pass) and
    wraps the environment in a monitor and a vector of one.
3. An update against its floor, see `make_floor`.
4. What compiling costs, and after how many steps it has paid for itself.
5. Steps per second of A3C on CartPole-v1 with 1, 2 and 4 workers, beside SB3's A2C with 8
    environments in its one process, both at their defaults, with networks of the same sizes; from
    the first 20,000 steps on, so that no start of a process counts.

Linux or macOS. From the root of the repository:
    python -m pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py --csv speed.csv
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
from typing import Any, Literal, NamedTuple

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
WORKERS_WARM_UP = 20_000  # steps of A3C and A2C before the timed ones


@dataclass(frozen=True)
class Args:
    """The command line."""

    repeats: int = 5  # processes for each row of the first table, and for the compile times
    steps: int = 1800  # timed environment steps in each, a multiple of 600
    workers_steps: int = 200_000  # timed environment steps of A3C and A2C
    algorithms: tuple[Literal["DDPG", "DQN", "A3C"], ...] = ("DDPG", "DQN", "A3C")  # which
    csv: Path | None = None  # where to write every single measurement

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.steps < EPISODES or self.steps % EPISODES:
            sys.exit(f"--repeats must be 1 or more, --steps a multiple of {EPISODES}")

    def cases(self) -> list["Case"]:
        """Return what to measure."""
        return [case for case in CASES if case.algorithm in self.algorithms]

    def compiled_cases(self) -> list["Case"]:
        """Return the case with the default sizes of each algorithm that compiles."""
        names = [name for name in self.algorithms if name in SCRIPTS]
        return [next(c for c in self.cases() if c.algorithm == name) for name in names]


class Case(NamedTuple):
    """What to measure, and with which sizes."""

    algorithm: str
    hidden_sizes: tuple[int, int]
    batch_size: int

    def __str__(self) -> str:
        h1, h2 = self.hidden_sizes
        return f"{self.algorithm} {h1}-{h2}, batch {self.batch_size}"


CASES = (Case("DDPG", (400, 300), 64), Case("DDPG", (256, 256), 256), Case("DQN", (24, 24), 32))


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


# 1, 2. Training


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
    args = script.Args(env_id, device="cpu", compile=compile, **sizes, **options)
    env = script.make_env(env_id)
    return script.Agent(env, args), env, script


def run_ours(case: Case, steps: int, compile: bool) -> Run:
    """Train our agent; its `train` yields after each episode."""
    total = WARM_UP + steps
    options = {"learning_starts": LEARNING_STARTS, "total_timesteps": total}
    agent, env, script = make_agent(case, compile, **options)
    agent.update = Counted(agent.update)
    marks = []
    for _ in script.train(env, agent, agent.args):
        if agent.timestep in (WARM_UP, total):
            marks.append((time.perf_counter(), agent.update.calls))
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
    "ours": partial(run_ours, compile=True),
    "SB3": run_sb3,
    "ours, --no-compile": partial(run_ours, compile=False),
}


def measure_training(args: Args, found: Measurements) -> None:
    """Train with each implementation in turn, and so on, --repeats times."""
    for case in args.cases():
        for repeat in range(args.repeats):
            runs = {}
            for name, implementation in IMPLEMENTATIONS.items():
                runs[name] = run = in_new_process(implementation, case, args.steps)
                for measurement in ("steps_per_second", "memory", "child_memory"):
                    found.add(measurement, case, name, getattr(run, measurement))
                tell(f"{case}, {name}, {repeat}: {run.steps_per_second:.0f} steps/s")
            assert {run.updates for run in runs.values()} == {args.steps}, runs
            assert len({run.parameters for run in runs.values()}) == 1, runs


# 3. The update and its floor


def fill(agent: Any, transitions: int = 1000) -> Any:
    """Fill the replay buffer with random transitions; return a minibatch."""
    rng = np.random.default_rng(0)
    S, A, *_ = agent.buffer.widths
    for _ in range(transitions):
        s, s_next, reward = rng.normal(size=S), rng.normal(size=S), rng.normal()
        agent.buffer.add(s, rng.integers(2, size=A), reward, s_next, False)
    return agent.buffer.sample(agent.args.batch_size, rng)


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
        agent, env, _ = make_agent(case, compile)
        functions[name] = partial(agent.update, fill(agent))
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


def measure_updates(args: Args, found: Measurements) -> None:
    """Time updates and floor for each case in one process."""
    for case in args.cases():
        seconds = in_new_process(time_updates, case, args.steps // 20)
        for name, values in seconds.items():
            for value in values:
                found.add("update_seconds", case, name, value)
        tell(f"{case}: " + ", ".join(f"{n} {median(v) * 1e6:.0f} µs" for n, v in seconds.items()))


# 4. Compiling


def first_update(case: Case, cache: str) -> tuple[float, float, float]:
    """Return the seconds it takes to build an agent and do its first update, and the memory."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    make_agent(case, compile=False)  # imports are no part of the time

    start = time.perf_counter()
    agent, _, _ = make_agent(case, compile=True)
    agent.update(fill(agent, transitions=1))
    seconds = time.perf_counter() - start
    return seconds, peak_memory(resource.RUSAGE_SELF), peak_memory(resource.RUSAGE_CHILDREN)


def measure_compiling(args: Args, found: Measurements) -> None:
    """Time the first update with an empty compiler cache, and again with what that one left."""
    for case in args.compiled_cases():
        for repeat in range(args.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for name in ("cold", "warm"):
                    seconds, memory, child_memory = in_new_process(first_update, case, cache)
                    found.add("first_update_seconds", case, name, seconds)
                    found.add("memory", case, name, memory)
                    found.add("child_memory", case, name, child_memory)
                    tell(f"{case}, first update, {name} cache, {repeat}: {seconds:.1f} s")


# 5. Workers


def run_a3c(workers: int, steps: int) -> tuple[float, float]:
    """Train A3C; return its steps per second and the peak memory of its largest worker."""
    import a3c_cartpole as a3c

    total = WORKERS_WARM_UP + steps
    args = a3c.Args("CartPole-v1", num_workers=workers, total_timesteps=total)
    agent, marks = a3c.Agent(a3c.make_env(args.env_id), args), []
    for _ in a3c.train(None, agent, args):
        if agent.timestep >= WORKERS_WARM_UP:
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
        if model.num_timesteps >= WORKERS_WARM_UP:
            marks.append((time.perf_counter(), model.num_timesteps))
        return True

    model.learn(WORKERS_WARM_UP + steps, callback=mark, log_interval=10**9)
    (start, first), (end, last) = marks[0], marks[-1]
    return (last - first) / (end - start), peak_memory(resource.RUSAGE_SELF)


WORKERS: dict[str, Callable[[int], tuple[float, float]]] = {
    "SB3's A2C, 8 environments": partial(run_a2c, 8),
    "1 worker": partial(run_a3c, 1),
    "2 workers": partial(run_a3c, 2),
    "4 workers": partial(run_a3c, 4),
}


def measure_workers(args: Args, found: Measurements) -> None:
    """Train A3C with each number of workers, and A2C, in turn, and so on, --repeats times."""
    for repeat in range(args.repeats):
        for name, function in WORKERS.items():
            speed, memory = in_new_process(function, args.workers_steps)
            found.add("steps_per_second", "A3C 64-64", name, speed)
            found.add("memory", "A3C 64-64", name, memory)
            tell(f"A3C, {name}, {repeat}: {speed:.0f} steps/s")


# Output


def tell(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def print_table(title: str, header: str, rows: list[tuple[Any, ...]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {header} |\n|{' --- |' * len(header.split(' | '))}")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


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


def print_training(args: Args, found: Measurements) -> None:
    """Print the first table."""
    rows = []
    for case in args.cases():
        sb3 = median(found.get("steps_per_second", case, "SB3"))
        for name in IMPLEMENTATIONS:
            speeds = found.get("steps_per_second", case, name)
            speed = median(speeds)
            memory = max(found.get("memory", case, name))
            children = max(found.get("child_memory", case, name))
            extremes, ratio = f"{min(speeds):.0f}–{max(speeds):.0f}", f"{speed / sb3:.2f}"
            at_most = f"≤ {children:.0f}" if children else "none"
            rows.append((case, name, f"{speed:.0f}", extremes, ratio, f"{memory:.0f}", at_most))
    print_table(
        f"Training: {args.repeats} × {args.steps} steps, an update each. Memory is the "
        "peak, the highest of the runs; that of a child process (compiler) is an upper bound.",
        "networks | implementation | steps/s, median | lowest–highest | ÷ SB3 | memory, MB "
        "| child process, MB",
        rows,
    )


def print_updates(args: Args, found: Measurements) -> None:
    """Print the second table."""
    rows = []
    for case in args.cases():
        floor = found.get("update_seconds", case, "floor")
        for name in ("compiled", "eager"):
            seconds = found.get("update_seconds", case, name)
            ratio = median(update / low for update, low in zip(seconds, floor))
            times = (f"{median(values) * 1e6:.0f}" for values in (seconds, floor))
            rows.append((case, name, *times, f"{ratio:.2f}"))
    print_table(
        f"An update against its floor: medians of {args.steps // 20} rounds of {CALLS}",
        "networks | update | µs | floor, µs | update ÷ floor, median of the rounds",
        rows,
    )


def print_workers(args: Args, found: Measurements) -> None:
    """Print the table of A3C."""
    rows = []
    a2c, one_worker = (
        median(found.get("steps_per_second", "A3C 64-64", name)) for name in list(WORKERS)[:2]
    )
    for name in WORKERS:
        speeds = found.get("steps_per_second", "A3C 64-64", name)
        speed, extremes = median(speeds), f"{min(speeds):.0f}–{max(speeds):.0f}"
        ratios = f"{speed / a2c:.2f}", f"{speed / one_worker:.2f}"
        memory = f"{max(found.get('memory', 'A3C 64-64', name)):.0f}"
        rows.append((name, f"{speed:.0f}", extremes, *ratios, memory))
    print_table(
        f"A3C on CartPole-v1: {args.repeats} × {args.workers_steps} steps. Memory is the peak of "
        "one process, the highest of the runs.",
        "A3C with | steps/s, median | lowest–highest | ÷ SB3's A2C | ÷ 1 worker | memory, MB",
        rows,
    )


def print_compiling(found: Measurements, case: Case) -> None:
    """Print what compiling costs."""
    cold, warm = (median(found.get("first_update_seconds", case, n)) for n in ("cold", "warm"))
    memory, children = (max(found.get(n, case, "cold")) for n in ("memory", "child_memory"))
    eager, compiled = (median(found.get("update_seconds", case, n)) for n in ("eager", "compiled"))
    gain = eager - compiled
    pays = f"from {cold / gain:,.0f} steps on" if gain > 0 else "never, being no faster"
    print(
        f"\nCompiling ({case}): building the agent and the first update take {cold:.1f} s with an "
        f"empty cache and {warm:.1f} s with a warm one; an update is then {gain * 1e6:.0f} µs "
        f"faster. With an empty cache it pays {pays}. Peak memory while compiling: {memory:.0f} "
        f"MB, and at most {children:.0f} MB in the largest child process."
    )


def main() -> None:
    """Measure everything, then print."""
    import tyro

    args = tyro.cli(Args, description=__doc__)
    found = Measurements()
    print(describe_machine(), flush=True)
    if args.cases():
        measure_training(args, found)
        measure_updates(args, found)
        measure_compiling(args, found)
        print_training(args, found)
        print_updates(args, found)
        for case in args.compiled_cases():
            print_compiling(found, case)
    if "A3C" in args.algorithms:
        measure_workers(args, found)
        print_workers(args, found)
    if args.csv is not None:
        found.write(args.csv)


if __name__ == "__main__":
    main()
