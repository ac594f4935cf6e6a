"""Draw the learning curves of the README from results/*_episodes.csv: one panel a file.

python benchmarks/figures.py
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
PANELS = {  # file: (what dashed and dotted lines show)
    "Pendulum-v1_20000": {"optimum, 50 starts": -132.8, "random": -1200.7},
    "MountainCarContinuous-v0_20000": {"RL Zoo, 300k steps": 93.5},
    "LunarLanderContinuous-v3_300000": {"solved": 200.0},
    "InvertedPendulum-v5_20000": {"highest possible": 1000.0},
    "Shower-v0_5000": {"optimum": 414 / 7, "random": -35.27},
    "CartPole-v1_50000": {"highest possible": 500.0, "random": 22.7},
}
WINDOW = 10  # episodes in the moving average


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """Return timesteps and returns, [episodes, 2], for each seed."""
    curves = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            curves[row["seed"]].append((float(row["timestep"]), float(row["return"])))
    return {seed: np.array(curve) for seed, curve in curves.items()}


def main() -> None:
    """Draw a line a seed, the moving average of its training returns."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, (name, lines) in zip(figure.subplots(2, 3).flat, PANELS.items()):
        curves = read_curves(RESULTS / f"{name}_episodes.csv")
        for curve in curves.values():
            average = np.convolve(curve[:, 1], np.ones(WINDOW) / WINDOW, "valid")
            axes.plot(curve[WINDOW - 1 :, 0], average, color="tab:blue", alpha=0.5, linewidth=1)
        for (label, value), style in zip(lines.items(), ("--", ":")):
            axes.axhline(value, color="black", linestyle=style, linewidth=1, label=label)
        axes.set(title=f"{name.split('_')[0]}, {len(curves)} seeds")
        axes.set(xlabel="environment steps", ylabel=f"training return, mean of {WINDOW}")
        axes.legend(loc="lower right", fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "learning_curves.png", dpi=90)


if __name__ == "__main__":
    main()
