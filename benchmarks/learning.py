"""Run a script over seeds, two processes at a time; write results/NAME.csv, a row a seed, and
results/NAME_episodes.csv, a row a training episode.

    python benchmarks/learning.py --env-id Pendulum-v1 --total-timesteps 20000 --seeds 11 20

A seed's run lives in its own folder: what was interrupted is resumed, what is finished is not run
again. Flags after `--` go to the script.
"""

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args:
    """The command line."""

    script: str = "ddpg_continuous.py"  # which script
    env_id: str = "Pendulum-v1"  # Gymnasium environment
    total_timesteps: int = 20_000  # environment steps of each run
    seeds: tuple[int, int] = (11, 20)  # first and last seed
    eval_episodes: int = 50  # greedy episodes after each run, from seed 10,000 on
    jobs: int = 2  # runs at a time, one thread each
    name: str | None = None  # of the folder under runs/ and of the CSV (default: ENV_STEPS)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows, all with the same keys, as a CSV file."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def solved_at(env_id: str, returns: list[float]) -> int | None:
    """Return the episode after which the last 100 returns had the mean that the environment itself
    calls solved, for the first time; None if there is none."""
    spec = gym.registry.get(env_id)
    if spec is None or spec.reward_threshold is None or len(returns) < 100:
        return None
    means = np.convolve(returns, np.ones(100) / 100, "valid")
    solved = np.flatnonzero(means >= spec.reward_threshold - 1e-9)
    return int(solved[0]) + 99 if len(solved) else None


def run_seed(args: Args, name: str, flags: list[str], seed: int) -> dict[str, float]:
    """Train one seed to its end, or go on with it; return its row of the CSV."""
    run_dir = ROOT / "runs" / name / str(seed)
    if not (run_dir / "evaluation.csv").exists():
        command = [sys.executable, str(ROOT / args.script)]
        if (run_dir / "args.json").exists():
            command += ["--resume", str(run_dir)]
        else:
            command += ["--env-id", args.env_id, "--seed", str(seed), "--run-dir", str(run_dir)]
            command += ["--total-timesteps", str(args.total_timesteps)]
            command += ["--eval-episodes", str(args.eval_episodes), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    evaluation = [float(row["return"]) for row in read_csv(run_dir / "evaluation.csv")]
    episodes = read_csv(run_dir / "episodes.csv")
    returns = [float(row["return"]) for row in episodes]
    solved = solved_at(args.env_id, returns)
    used = json.loads((run_dir / "args.json").read_text())
    return {
        "seed": seed,
        "timesteps": used["args"]["total_timesteps"],
        "evaluation_mean": round(np.mean(evaluation), 3),
        "evaluation_min": round(min(evaluation), 3),
        "training_mean_61_to_100": round(np.mean(returns[60:100]), 3)
        if len(returns) >= 100
        else "",
        "training_mean_last_20": round(np.mean(returns[-20:]), 3),
        "training_mean_last_100": round(np.mean(returns[-100:]), 3),
        "solved_timesteps": "" if solved is None else episodes[solved]["timestep"],
        "solved_seconds": "" if solved is None else episodes[solved]["seconds"],
        "seconds": episodes[-1]["seconds"],
    }


def main() -> None:
    """Run all seeds, print their rows and the means, write the CSV."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    args = tyro.cli(Args, args=own, description=__doc__)
    name = args.name or f"{args.env_id}_{args.total_timesteps}"
    seeds = range(args.seeds[0], args.seeds[1] + 1)
    results, rows = ROOT / "benchmarks" / "results", []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(partial(run_seed, args, name, flags), seeds):
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
            write_csv(results / f"{name}.csv", rows)
    episodes = [
        {
            "seed": seed,
            "timestep": row["timestep"],
            "return": round(float(row["return"]), 3),
            "seconds": row["seconds"],
        }
        for seed in seeds
        for row in read_csv(ROOT / "runs" / name / str(seed) / "episodes.csv")
    ]
    write_csv(results / f"{name}_episodes.csv", episodes)
    means = np.array([row["evaluation_mean"] for row in rows])
    print(f"{name}: evaluation mean {means.mean():.1f}, lowest {means.min():.1f}, n {len(means)}")


if __name__ == "__main__":
    main()
