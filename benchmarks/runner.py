"""Experiments and their runs: what learning.py, tables.py and figures.py build on."""

import contextlib
import importlib
import io
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
import tyro
from scipy import stats
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
interquartile_mean = partial(stats.trim_mean, proportiontocut=0.25)  # of the middle half


class Experiment(NamedTuple):
    """A script on an environment, over seeds: a row of experiments.csv."""

    group: str
    script: str  # such as ddpg_continuous
    env_id: str
    timesteps: int
    seeds: Sequence[int]
    eval_episodes: int  # greedy, after each run, from seed 10,000 on
    label: str = ""  # what the flags stand for
    flags: str = ""  # beyond these
    published: str = ""  # returns to compare with, as "RL Zoo: -152.1; optimum: -132.8"

    @property
    def name(self) -> str:
        """Of its folder, and of its rows in the CSV files."""
        name = f"{self.script} {self.env_id} {self.timesteps} {self.label}"
        return name.strip().replace(":", ".")

    def run_dirs(self, runs: Path) -> list[Path]:
        """Return a folder for each seed, which is its name."""
        return [runs / self.name.replace(" ", "_") / str(seed) for seed in self.seeds]

    def arguments(self, run_dir: Path) -> list[str]:
        """Return the command line of a seed's run."""
        given = f"--env-id {self.env_id} --seed {run_dir.name} --total-timesteps {self.timesteps}"
        return f"{given} --eval-episodes {self.eval_episodes} {self.flags}".split()


def read_experiments(*groups: str) -> list[Experiment]:
    """Return the experiments of some groups."""
    found = []
    table = pd.read_csv(ROOT / "benchmarks" / "experiments.csv", keep_default_na=False)
    for row in table[table["group"].isin(groups)].to_dict("records"):
        first, _, last = row["seeds"].partition("-")
        found.append(Experiment(**row | {"seeds": range(int(first), int(last or first) + 1)}))
    return found


def is_current(experiment: Experiment, run_dir: Path) -> bool:
    """Whether a run was begun with the arguments that it would have now, defaults included."""
    script = importlib.import_module(experiment.script)
    now = json.loads(json.dumps(asdict(tyro.cli(script.Args, args=experiment.arguments(run_dir)))))
    then = json.loads((run_dir / "args.json").read_text())
    return then.items() <= now.items()  # it lacks --run-dir, --resume, --play and --device


def run_seed(experiment: Experiment, run_dir: Path) -> None:
    """Call the script's `main`; go on from the checkpoint if there is one."""
    if (run_dir / "evaluation.csv").exists():
        return
    begun = (run_dir / "args.json").exists()
    if not begun:  # killed before its first checkpoint: --run-dir takes no old folder
        shutil.rmtree(run_dir, ignore_errors=True)
    folder = ["--resume" if begun else "--run-dir", str(run_dir)]
    script = importlib.import_module(experiment.script)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            script.main([*folder, *experiment.arguments(run_dir)])
        except SystemExit as exit:
            raise RuntimeError(f"exit code {exit.code}\n{errors.getvalue()[-2000:]}") from None


def run_all(
    experiments: Iterable[Experiment], runs: Path, jobs: int, ray_address: str = "local"
) -> list[str]:
    """Run every seed that is not finished, each a task of Ray; return what went wrong. A task is a
    process of its own, so what ends it, ends the training, before Ray tries again."""
    failures, todo = [], []
    for experiment in experiments:
        for run_dir in experiment.run_dirs(runs):
            if (run_dir / "args.json").exists() and not is_current(experiment, run_dir):
                failures.append(f"{run_dir}: begun with other arguments; delete it")
            elif not (run_dir / "evaluation.csv").exists():
                todo.append((experiment, run_dir))
    if not todo:
        return failures

    import ray

    workers = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    local = {"num_cpus": jobs, "include_dashboard": False} if ray_address == "local" else {}
    with ray.init(ray_address, runtime_env=workers, log_to_driver=False, **local):
        largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes())
        task, running = ray.remote(max_calls=1, max_retries=5)(run_seed), {}
        for experiment, run_dir in todo:
            cores = re.search(r"--num-workers (\d+)|$", experiment.flags)[1] or 1
            sized = task.options(num_cpus=min(int(cores), largest))
            running[sized.remote(experiment, run_dir)] = run_dir
        for _ in tqdm(todo, unit="run"):
            (done,), _ = ray.wait(list(running))
            run_dir = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                failures.append(f"{run_dir}: {error}")
    return failures


def seed_row(experiment: Experiment, run_dir: Path) -> dict[str, Any]:
    """Return what is told of a finished run. It is solved at the first of those greedy evaluations
    that end the run and all reach the return at which the environment itself counts as solved."""
    evaluation = pd.read_csv(run_dir / "evaluation.csv")["return"]
    episodes = pd.read_csv(run_dir / "episodes.csv")
    returns = episodes["return"]
    spec = gym.registry.get(experiment.env_id)
    threshold = getattr(spec, "reward_threshold", None) or np.inf
    evaluated = episodes.dropna(subset="evaluation")
    missed_later = (evaluated["evaluation"] < threshold - 1e-9)[::-1].cumsum()[::-1]
    solved = evaluated[missed_later == 0].head(int(evaluation.mean() >= threshold - 1e-9))
    return {
        "experiment": experiment.name,
        "flags": experiment.flags,
        "seed": int(run_dir.name),
        "timesteps": experiment.timesteps,
        "evaluation_mean": evaluation.mean(),
        "training_mean_61_to_100": returns[60:100].mean() if len(returns) > 99 else np.nan,
        "training_mean_last_100": returns[-100:].mean(),
        "solved_timesteps": solved["timestep"].max(),
    }


def curve_rows(experiment: Experiment, run_dir: Path) -> pd.DataFrame:
    """Return a run's learning curve: at 50 points the mean return of the last 10 training episodes,
    none before the first has ended."""
    episodes = pd.read_csv(run_dir / "episodes.csv")[["timestep", "return"]]
    episodes["return"] = episodes["return"].rolling(10, min_periods=1).mean().round(1)
    points = np.linspace(0, experiment.timesteps, 51)[1:].astype(int)
    rows = {"experiment": experiment.name, "seed": int(run_dir.name), "timestep": points}
    return pd.merge_asof(pd.DataFrame(rows), episodes, on="timestep").dropna()


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV file of results, if there is one."""
    if not path.exists():
        return pd.DataFrame({"experiment": []}, dtype=str)
    return pd.read_csv(path, dtype={"version": str}, dtype_backend="numpy_nullable")


def put_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write the rows of some experiments in place of those that the file has of the same ones."""
    old = read_rows(path)
    kept = old[~old["experiment"].isin(rows["experiment"])]
    pd.concat([kept, rows.round(3).convert_dtypes()]).to_csv(path, index=False)


def collect(experiments: Iterable[Experiment], runs: Path, results: Path, name: str) -> None:
    """Write NAME.csv, a row a seed, and NAME_curves.csv, of the finished runs; print a summary."""
    runs = [(e, run_dir) for e in experiments for run_dir in e.run_dirs(runs)]
    finished = [run for run in runs if (run[1] / "evaluation.csv").exists() and is_current(*run)]
    if finished:
        rows = pd.DataFrame([seed_row(*run) for run in finished])
        put_rows(results / f"{name}.csv", rows)
        put_rows(results / f"{name}_curves.csv", pd.concat([curve_rows(*run) for run in finished]))
        print(
            summarise(rows)[["seeds", "centre", "low", "high", "lowest seed"]].round(2).to_string()
        )


def centre_and_range(values: np.ndarray) -> tuple[float, float, float]:
    """Return the interquartile mean of 8 or more seeds, and the ends of its 95 % bootstrap interval
    (percentiles); of fewer, which are too few for either, their mean, lowest and highest."""
    if len(values) < 8:
        return values.mean(), values.min(), values.max()
    options = {"n_resamples": 5000, "method": "percentile", "rng": 0}
    found = stats.bootstrap((values,), interquartile_mean, **options).confidence_interval
    return interquartile_mean(values), found.low, found.high


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Sum up each experiment's seeds; the score is the greedy return after the last step."""
    rows = rows.groupby("experiment", sort=False)
    table = rows.agg(flags=("flags", "first"), seeds=("seed", "size"))
    table[["greedy return", "lowest seed"]] = rows["evaluation_mean"].agg(["mean", "min"])
    table["training, episodes 61–100"] = rows["training_mean_61_to_100"].mean()
    table["last 100 episodes, lowest seed"] = rows["training_mean_last_100"].min()
    table["solved"] = rows["solved_timesteps"].count()
    table["solved after steps, median"] = rows["solved_timesteps"].median()
    table["slowest seed, steps"] = rows["solved_timesteps"].max()
    scores = [seeds.to_numpy(float) for _, seeds in rows["evaluation_mean"]]
    table[["centre", "low", "high"]] = [centre_and_range(values) for values in scores]
    return table


def split_names(names: pd.Series | pd.Index) -> pd.DataFrame:
    """Return from names such as "dqn_shower dqn_shower.Shower-v0 5000 double" the columns DQN,
    Shower-v0, 5000 and double."""
    parts = r"(?P<script>[^_]+)\S+ (?:\S+\.)?(?P<environment>\S+) (?P<steps>\d+) ?(?P<label>.*)"
    return names.str.extract(parts).assign(script=lambda table: table["script"].str.upper())
