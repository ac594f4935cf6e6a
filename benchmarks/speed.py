"""How fast do they train, beside other libraries?

    python benchmarks/speed.py                           (an hour; writes results/speed.csv)
    python benchmarks/speed.py --only DDPG SB3           measurements whose names have both words

The measurements are those of speed.toml. Each has a process of its own, in one thread, and those
compared take turns, so that a noisy machine is noisy for all. The first tenth of a run, in which
the update is compiled, does not count. What fails, such as CUDA without a GPU, is told at the end.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Args:
    """The command line."""

    repeats: int = 3  # of each measurement
    only: tuple[str, ...] = ()  # measurements whose names have all these words
    csv: Path = ROOT / "benchmarks" / "results" / "speed.csv"  # where to write


def speed(marks: list[tuple[float, int]], steps: int) -> dict[str, float]:
    """Return steps per second, from (time, steps so far), without the first tenth."""
    begun, done = np.interp([0.1 * steps, steps], *np.transpose(marks)[::-1])
    return {"steps_per_second": 0.9 * steps / (done - begun)}


def parameters(agent: Any) -> int:
    """Return how many an agent's networks have, ours or SB3's."""
    names = [x for x in ("actor", "critic", "q_network", "q_net") if hasattr(agent, x)]
    return sum(p.numel() for name in names for p in getattr(agent, name).parameters())


def ours(script: str, *flags: str) -> tuple[Any, Iterator[Any]]:
    """Return our agent, and the iterator that trains it and yields after each episode."""
    import torch  # here, as RLtools refuses to run beside it

    torch.set_flush_denormal(True)  # as `main` does
    module = importlib.import_module(script)
    args = tyro.cli(module.Args, args=flags)
    env = module.make_env(args)
    agent = module.Agent(env, args)
    return agent, module.train(env, agent)


def run_ours(*command: str) -> dict[str, float]:
    """Train our agent."""
    (agent, episodes), updates = ours(*command), []
    if hasattr(agent, "buffer"):
        sample = agent.buffer.sample  # once an update
        agent.buffer.sample = lambda *given: updates.append(1) or sample(*given)
    marks = [(time.perf_counter(), 0)]
    for _ in chain(episodes, [None]):  # the last episode may not come to its end
        marks.append((time.perf_counter(), agent.timestep))
    found = speed(marks, agent.args.total_timesteps)
    return found | {"updates": len(updates), "parameters": parameters(agent)}


def time_products(function: Callable[[], Any]) -> list[float]:
    """Call a function; return the seconds of each matrix product that torch is asked for in it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seconds = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, _: Any, args: Any, kwargs: Any) -> Any:
            start = time.perf_counter()
            result = operation(*args, **kwargs or {})
            if operation.__name__.startswith(("mm", "addmm", "linear")):
                seconds.append(time.perf_counter() - start)
            return result

    with Mode():
        function()
    return seconds


def run_products(*command: str) -> dict[str, float]:
    """Train our agent for 1,000 steps, and time only the matrix products of 1,000 more."""
    agent, episodes = ours(*command)
    begun = next(agent.timestep for _ in episodes if agent.timestep >= 1000)
    seconds = time_products(lambda: any(agent.timestep >= begun + 1000 for _ in episodes))
    return {"steps_per_second": (agent.timestep - begun) / sum(seconds)}


def run_sb3(
    algorithm: str, env_id: str, steps: int, library: str, **options: Any
) -> dict[str, float]:
    """Train an agent of Stable-Baselines3, or of SBX, the same in JAX; DDPG's with our noise."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

    torch.set_flush_denormal(True)
    envs = make_vec_env(env_id, options.pop("n_envs", 1), seed=1)
    if algorithm == "DDPG":
        zeros = np.zeros(envs.action_space.shape)
        options["action_noise"] = OrnsteinUhlenbeckActionNoise(zeros, zeros + 0.5, dt=1)
    agent = getattr(importlib.import_module(library), algorithm)
    model = agent("MlpPolicy", envs, device="cpu", **options)
    marks = [(time.perf_counter(), 0)]

    def mark(*_: Any) -> bool:
        marks.append((time.perf_counter(), model.num_timesteps))
        return True

    model.learn(steps, callback=mark, log_interval=10**9)
    states = [x for x in vars(model.policy).values() if hasattr(x, "target_params")]  # SBX's
    leaves = [p.size for x in states for p in importlib.import_module("jax").tree.leaves(x.params)]
    size = sum(leaves) if states else parameters(model)
    return speed(marks, steps) | {"updates": model._n_updates, "parameters": size}


def run_cleanrl(script: str, *flags: str) -> dict[str, float]:
    """Run CleanRL's file for a tenth of the steps, and for all, and take the difference."""
    *flags, steps = flags
    command = [sys.executable, ROOT / "cleanrl" / "cleanrl" / f"{script}.py", *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'cleanrl'}:{ROOT}"}
    seconds = []
    for total in (int(steps) // 10, int(steps)):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL}
            subprocess.run([*command, str(total)], check=True, **run)
        seconds.append(time.perf_counter() - start)
    return {"steps_per_second": 0.9 * int(steps) / (seconds[1] - seconds[0])}


def run_rltools(**options: Any) -> dict[str, float]:
    """Train on Pendulum with RLtools, which compiles itself for it; evaluate as the scripts do."""
    from rltools import TD3

    def make_env() -> gym.Env:
        return gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1, 1)

    state = TD3(make_env, enable_evaluation=False, **options).State(1)
    marks = [(time.perf_counter(), 0)]
    while not state.step():
        marks.append((time.perf_counter(), len(marks)))
    found = speed(marks, options["STEP_LIMIT"])
    from ddpg_continuous import evaluate  # here, as it imports torch

    rows = evaluate(SimpleNamespace(act=state.action), make_env(), 50)
    return found | {"evaluation_mean": sum(row["return"] for row in rows) / 50}


def measure(name: str, given: str | dict[str, Any]) -> dict[str, float]:
    """Do a measurement of speed.toml, in which a command line is given, or options."""
    if name == "CleanRL":
        return run_cleanrl(*given.split())
    if isinstance(given, str):
        return (run_products if name == "products" else run_ours)(*given.split())
    if name == "RLtools":
        return run_rltools(**given)
    return run_sb3(library={"SB3": "stable_baselines3", "SBX": "sbx"}[name], **given)


def put(path: Path, row: dict[str, Any], order: dict[str, int]) -> None:
    """Write a row in place of that of the same measurement, with the cases in this order."""
    table = pd.DataFrame([row]).round(3)
    table = pd.concat([pd.read_csv(path), table]) if path.exists() else table
    table = table.drop_duplicates(["case", "implementation", "repeat"], keep="last")
    table = table.sort_values("case", key=lambda cases: cases.map(order), kind="stable")
    table.to_csv(path, index=False)


def main() -> None:
    """Measure, each in a process of its own; write what was found at once."""
    args = tyro.cli(Args, description=__doc__)
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = "1"  # the second is for XLA
    cases = tomllib.loads((ROOT / "benchmarks" / "speed.toml").read_text())
    chosen = [
        (case, name, given)
        for case, implementations in cases.items()
        for name, given in implementations.items()
        if all(word.lower() in f"{case} {name}".lower() for word in args.only)
    ]
    failures = {} if chosen else {f"--only {' '.join(args.only)}": "none of speed.toml"}
    for repeat, (case, name, given) in product(range(args.repeats), chosen):
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found = pool.submit(measure, name, given).result()
        except (Exception, SystemExit) as error:
            failures[f"{case}, {name}"] = error
            continue
        row = {"case": case, "implementation": name, "repeat": repeat} | found
        print(row, flush=True)
        put(args.csv, row, dict(zip(cases, count())))
    sys.exit("\n".join(f"{what}: {error}" for what, error in failures.items()) or None)


if __name__ == "__main__":
    main()
