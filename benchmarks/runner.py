"""What learning.py and ablations.py share: run experiments over seeds, and sum them up.

Each seed is a process of its own, in one thread, in a folder of its own. A seed that was
interrupted is resumed from its checkpoint; one that is finished is not run again.
"""

import contextlib
import csv
import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
POINTS = 100  # of a curve, at equal distances in steps
WINDOW = 10  # training episodes of which a curve shows the mean
Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A script on an environment, over seeds."""

    script: str  # such as ddpg_continuous
    env_id: str
    total_timesteps: int
    seeds: Sequence[int]
    eval_episodes: int = 50  # greedy, after each run, from seed 10,000 on
    flags: str = ""  # beyond these
    label: str = "defaults"  # what the flags stand for
    published: dict[str, float] = field(default_factory=dict)  # returns to compare with

    @property
    def name(self) -> str:
        """Of its folder, and of its rows in the CSV files."""
        label = "" if self.label == "defaults" else f" {self.label}"
        return f"{self.script} {self.env_id} {self.total_timesteps}{label}".replace(":", ".")

    @property
    def cores(self) -> int:
        """That a run keeps busy: A3C's workers."""
        workers = re.search(r"--num-workers (\d+)", self.flags)
        return int(workers[1]) if workers else 1

    def run_dir(self, runs: Path, seed: int) -> Path:
        """Return the folder of a seed's run."""
        return runs / self.name.replace(" ", "_") / str(seed)

    def arguments(self, seed: int) -> list[str]:
        """Return the command line of a seed's run."""
        given = {
            "--env-id": self.env_id,
            "--seed": seed,
            "--total-timesteps": self.total_timesteps,
            "--eval-episodes": self.eval_episodes,
        }
        return [str(word) for pair in given.items() for word in pair] + self.flags.split()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write rows as a CSV file, with every column that any of them has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")  # an interrupt leaves the old file whole
    with open(temporary, "w", newline="") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def put_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows of some experiments in place of those that the file has of the same ones."""
    new = {row["experiment"] for row in rows}
    write_csv(path, [row for row in read_csv(path) if row["experiment"] not in new] + rows)


# One seed


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold a folder's lock; yield its file descriptor, to hand on to a child.

    Where a worker of a cluster is killed and the training that it had started lives on, the worker
    that takes its place waits here until that has ended, too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def is_current(experiment: Experiment, runs: Path, seed: int) -> bool:
    """Whether a run was begun with the arguments that it would have now, defaults included."""
    script = importlib.import_module(experiment.script)
    now = json.loads(json.dumps(asdict(script.parse_args(experiment.arguments(seed)))))
    then = json.loads((experiment.run_dir(runs, seed) / "args.json").read_text())
    return then.items() <= now.items()  # it lacks --run-dir, --resume, --play and --device


def run_seed(experiment: Experiment, runs: Path, seed: int) -> None:
    """Train one seed to its end, or go on with it, or leave it if it is finished."""
    run_dir = experiment.run_dir(runs, seed)
    with only_one(run_dir) as lock:
        begun = (run_dir / "args.json").exists()
        if begun and not is_current(experiment, runs, seed):
            raise RuntimeError(f"{run_dir}: begun with other arguments than today's; delete it")
        if (run_dir / "evaluation.csv").exists():
            return
        if not begun:  # killed before it wrote any: --run-dir takes a new folder only
            shutil.rmtree(run_dir, ignore_errors=True)
        command = [sys.executable, str(ROOT / f"{experiment.script}.py")]
        command += ["--resume" if begun else "--run-dir", str(run_dir)]
        command += experiment.arguments(seed)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, pass_fds=[lock], env=environment
        )
        if done.returncode != 0:
            killed = done.returncode < 0 or done.returncode == 130  # it may go well another time
            error = ChildProcessError if killed else RuntimeError
            raise error(f"{run_dir}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def timestep_so_far(experiment: Experiment, runs: Path, seed: int) -> int:
    """Return how far a run has come, by the last line that it has written."""
    path = experiment.run_dir(runs, seed) / "episodes.csv"
    with contextlib.suppress(OSError, ValueError, IndexError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        return int(file.read().split(b"\n")[-2].split(b",")[1])
    return 0


# All of them


def run_all(
    experiments: Sequence[Experiment], runs: Path, jobs: int, ray_address: str | None = None
) -> list[BaseException]:
    """Run every seed of every experiment, on this machine, or on a Ray cluster; return what failed.

    jobs: cores to use of this machine. ray_address: of the cluster ("auto": the one this machine
    belongs to), or "local", which starts one here. All its machines must see this folder under
    the same path, for that is where the checkpoints are.
    """
    failures = []
    with contextlib.ExitStack() as stack:
        for cores, group in groupby(sorted(experiments, key=lambda e: e.cores), lambda e: e.cores):
            if ray_address is None:
                pool = ThreadPoolExecutor(max(1, jobs // cores))
                stack.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C: no more begin
                submit = pool.submit
            else:
                submit = ray_submit(ray_address, cores, jobs)
            group = list(group)
            seeds = [(experiment, runs, seed) for experiment in group for seed in experiment.seeds]
            failures += wait_for([submit(run_seed, *seed) for seed in seeds], seeds)
    return failures


def ray_submit(address: str, cores: int, jobs: int) -> Callable[..., Future]:
    """Return what submits a function to Ray, which tries again where a worker is lost."""
    import ray

    if not ray.is_initialized():
        workers = {"env_vars": {"PYTHONPATH": str(ROOT)}}  # where they find this file
        local = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {}
        ray.init(address, runtime_env=workers, **local)
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    cores = min(cores, int(largest))  # what fits nowhere would wait for ever

    def submit(function: Callable[..., Any], *args: Any) -> Future:
        retries = {"max_retries": 5, "retry_exceptions": [ChildProcessError]}
        return ray.remote(num_cpus=cores, **retries)(function).remote(*args).future()

    return submit


def wait_for(
    futures: list[Future], seeds: list[tuple[Experiment, Path, int]]
) -> list[BaseException]:
    """Show how far the runs have come until all have ended; return what was raised."""
    total = sum(experiment.total_timesteps for experiment, _, _ in seeds)
    begun = sum(timestep_so_far(*seed) for seed in seeds)
    with tqdm(total=total, initial=begun, unit="step", unit_scale=True, disable=None) as bar:
        while True:
            ended = [future for future in futures if future.done()]
            bar.update(sum(timestep_so_far(*seed) for seed in seeds) - bar.n)
            bar.set_postfix_str(f"{len(ended)} of {len(futures)} runs", refresh=True)
            if len(ended) == len(futures):
                return [future.exception() for future in ended if future.exception() is not None]
            time.sleep(1.0)


# What came of it


def solved_at(env_id: str, returns: list[float]) -> int | None:
    """Return the episode after which the last 100 returns had the mean that the environment itself
    calls solved, for the first time; None if there is none."""
    spec = gym.registry.get(env_id)
    if spec is None or spec.reward_threshold is None or len(returns) < 100:
        return None
    means = np.convolve(returns, np.ones(100) / 100, "valid")
    solved = np.flatnonzero(means >= spec.reward_threshold - 1e-9)
    return int(solved[0]) + 99 if len(solved) else None


def seed_row(experiment: Experiment, runs: Path, seed: int) -> Row:
    """Return what is told of a finished run."""
    run_dir = experiment.run_dir(runs, seed)
    evaluation = [float(row["return"]) for row in read_csv(run_dir / "evaluation.csv")]
    episodes = read_csv(run_dir / "episodes.csv")
    returns = [float(row["return"]) for row in episodes]
    solved = solved_at(experiment.env_id, returns)
    used = json.loads((run_dir / "args.json").read_text())
    return {
        "experiment": experiment.name,
        "flags": experiment.flags,
        "seed": seed,
        "timesteps": used["total_timesteps"],
        "evaluation_mean": round(np.mean(evaluation), 3),
        "evaluation_min": round(min(evaluation), 3),
        "training_mean_61_to_100": round(np.mean(returns[60:100]), 3) if returns[99:] else "",
        "training_mean_last_100": round(np.mean(returns[-100:]), 3),
        "solved_timesteps": "" if solved is None else episodes[solved]["timestep"],
        "solved_seconds": "" if solved is None else episodes[solved]["seconds"],
        "seconds": episodes[-1]["seconds"],
    }


def curve_rows(experiment: Experiment, runs: Path, seed: int) -> list[Row]:
    """Return a run's learning curve: at each point, from the end of the first episode on, the mean
    return of the last 10 training episodes that had ended by then."""
    episodes = read_csv(experiment.run_dir(runs, seed) / "episodes.csv")
    ends = np.array([int(row["timestep"]) for row in episodes])
    returns = np.array([float(row["return"]) for row in episodes])
    rows = []
    for timestep in np.linspace(0, experiment.total_timesteps, POINTS + 1)[1:].astype(int):
        ended = int(np.searchsorted(ends, timestep, side="right"))
        if ended:
            mean = np.mean(returns[max(0, ended - WINDOW) : ended])
            seconds = episodes[ended - 1]["seconds"]
            rows.append(
                {
                    "experiment": experiment.name,
                    "seed": seed,
                    "timestep": timestep,
                    "return": round(mean, 2),
                    "seconds": seconds,
                }
            )
    return rows


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean without the lowest and the highest quarter of the values (of fewer than four
    values: the mean of all)."""
    from scipy import stats

    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % bootstrap interval of the interquartile mean, [seeds, …] → […]
    each (percentiles; of few seeds it is too narrow, of one it has no width)."""
    from scipy import stats

    if len(values) == 1:
        return values[0], values[0]
    interval = stats.bootstrap(
        (values,), interquartile_mean, axis=0, n_resamples=5000, method="percentile", rng=0
    ).confidence_interval
    return interval.low, interval.high


def summary_row(experiment: Experiment, rows: list[Row]) -> Row:
    """Sum up the seeds of an experiment: the greedy returns after the last step of each run."""
    means = np.array([float(row["evaluation_mean"]) for row in rows])
    low, high = bootstrap_interval(means)
    return {
        "experiment": experiment.name,
        "flags": experiment.flags,
        "timesteps": experiment.total_timesteps,
        "seeds": len(rows),
        "iqm": round(float(interquartile_mean(means)), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
        "mean": round(means.mean(), 2),
        "lowest": round(means.min(), 2),
        "minutes": round(np.median([float(row["seconds"]) for row in rows]) / 60, 2),
    }


def sum_up(experiments: Sequence[Experiment], runs: Path, results: Path, name: str) -> None:
    """Write NAME.csv, a row a seed, NAME_curves.csv, and NAME_summary.csv, a row an experiment, of
    the runs that are finished; print the last."""
    summaries: dict[str, Row] = {}
    rows, curves = [], []
    for experiment in experiments:
        finished = [
            seed
            for seed in experiment.seeds
            if (experiment.run_dir(runs, seed) / "evaluation.csv").exists()
            and is_current(experiment, runs, seed)
        ]
        if finished:
            new = [seed_row(experiment, runs, seed) for seed in finished]
            rows += new
            curves += [row for seed in finished for row in curve_rows(experiment, runs, seed)]
            summaries[experiment.name] = summary = summary_row(experiment, new)
            interval = "[{low}, {high}]".format(**summary)
            print(f"{experiment.name}: {len(new)} seeds, IQM {summary['iqm']} {interval}, ", end="")
            print(f"lowest {summary['lowest']}, {summary['minutes']} minutes")
    if rows:
        with only_one(runs / name):  # another process may be writing rows of its own
            put_rows(results / f"{name}.csv", rows)
            put_rows(results / f"{name}_curves.csv", curves)
            put_rows(results / f"{name}_summary.csv", list(summaries.values()))


def measure(
    experiments: Sequence[Experiment],
    runs: Path,
    results: Path,
    name: str,
    jobs: int,
    ray_address: str | None,
) -> int:
    """Run the experiments, sum them up, say what failed; return the exit code."""
    try:
        failures = run_all(experiments, runs, jobs, ray_address)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    sum_up(experiments, runs, results, name)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0
