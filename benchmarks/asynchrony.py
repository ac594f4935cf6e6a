"""What asynchrony brings A3C, and what it costs, on CartPole-v1 with 1, 2 and 4 workers.

Left, return against seconds: the mean over seeds of the curves in results/ablations_curves.csv,
which `python benchmarks/ablations.py --only A3C` writes.

Right, updates applied against attempted: nothing locks θ, so of two updates at the same time one
may be lost, number by number. Here each update of a training run also adds 1 to every number of a
vector as long as θ, in the same shared memory, in the same way. At the end each should be the count
of all updates, which is kept under a lock; what is missing was overwritten. The counts are kept in
results/asynchrony.csv; delete it to count anew.

    python benchmarks/asynchrony.py
"""

import os
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import a3c_cartpole as a3c
from benchmarks.ablations import GROUPS
from benchmarks.runner import RESULTS, WINDOW, Experiment, read_csv, write_csv

WORKERS = (1, 2, 4)
STEPS = 300_000  # environment steps of a run in which updates are counted
SEEDS = (11, 12, 13)


class CountingAgent(a3c.Agent):
    """An agent that also counts its updates: exactly, and as θ itself would."""

    def __init__(self, env: gym.Env, args: a3c.Args) -> None:
        super().__init__(env, args)
        self.attempted = torch.zeros((), dtype=torch.int64).share_memory_()
        self.applied = torch.zeros_like(self.theta).share_memory_()
        self.lock = multiprocessing.get_context("spawn").Lock()

    def update(self, gradient: Tensor) -> None:
        """Do an update, and count it twice."""
        super().update(gradient)
        self.applied.add_(1.0)
        with self.lock:
            self.attempted += 1


def count_updates(workers: int, seed: int) -> tuple[int, float]:
    """Train; return the updates attempted, and those applied in the mean over all numbers of θ."""
    args = a3c.Args("CartPole-v1", seed=seed, num_workers=workers, total_timesteps=STEPS)
    agent = CountingAgent(a3c.make_env(args.env_id), args)
    for _ in a3c.train(None, agent, args):
        pass
    return agent.attempted.item(), agent.applied.double().mean().item()


def read_returns(experiment: Experiment, seconds: np.ndarray) -> np.ndarray:
    """Return the curve of each seed's returns at given seconds, [seeds, seconds]."""
    curves = defaultdict(list)
    for row in read_csv(RESULTS / "ablations_curves.csv"):
        if row["experiment"] == experiment.name:
            curves[row["seed"]].append((float(row["seconds"]), float(row["return"])))
    interpolate = partial(np.interp, left=np.nan, right=np.nan)
    found = [interpolate(seconds, *np.array(curve).T) for curve in curves.values()]
    return np.array(found)


def main() -> None:
    """Count, unless there is a CSV of it, and draw."""
    path = RESULTS / "asynchrony.csv"
    if not path.exists():
        rows = []
        for workers in WORKERS:
            for seed in SEEDS:
                attempted, applied = count_updates(workers, seed)
                share = round(applied / attempted, 6)
                row = {"workers": workers, "seed": seed, "attempted": attempted, "applied": share}
                row["cores"] = os.cpu_count()
                rows.append(row)
                print(*row.items(), flush=True)
        write_csv(path, rows)
    shares = defaultdict(list)
    for row in read_csv(path):
        shares[row["workers"]].append(100 * float(row["applied"]))

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    seconds = np.linspace(0, 30, 300)
    for experiment in GROUPS["A3C, CartPole"]:
        returns = read_returns(experiment, seconds)
        label = f"{experiment.label}, {len(returns)} seeds"
        left.plot(seconds, returns.mean(axis=0), label=label)
    left.set(xlabel="seconds, the start of the processes included", title="A3C on CartPole-v1")
    left.set(ylabel=f"training return, mean of {WINDOW} episodes")
    left.legend()
    bars = right.bar(list(shares), [np.mean(values) for values in shares.values()])
    right.bar_label(bars, fmt="%.2f %%")
    right.set(xlabel=f"workers, on {read_csv(path)[0]['cores']} cores", ylabel="%", ylim=(0, 110))
    right.set(title="updates applied, of those attempted")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "asynchrony.png", dpi=90)


if __name__ == "__main__":
    main()
