"""Draw learning curves from the CSV files that runner.py writes: small multiples."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.runner import WINDOW, Experiment, bootstrap_interval, interquartile_mean, read_csv

PANEL = (4.3, 3.1)  # inches
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(path: Path) -> Curves:
    """Return of each experiment the timesteps [points] that all seeds have reached with an episode
    behind them, and the returns [seeds, points]."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_csv(path):
        found[row["experiment"]][row["seed"]][int(row["timestep"])] = float(row["return"])
    curves = {}
    for name, seeds in found.items():
        timesteps = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
        returns = [[curve[timestep] for timestep in timesteps] for curve in seeds.values()]
        curves[name] = np.array(timesteps), np.array(returns)
    return curves


def draw_curve(axes: Axes, curve: tuple[np.ndarray, np.ndarray], label: str, color: str) -> None:
    """Draw the interquartile mean over seeds, and its 95 % bootstrap interval."""
    timesteps, returns = curve
    low, high = bootstrap_interval(returns)
    axes.plot(timesteps, interquartile_mean(returns), color=color, label=label)
    axes.fill_between(timesteps, low, high, color=color, alpha=0.2, linewidth=0)


def make_panels(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels."""
    rows = math.ceil(count / columns)
    size = PANEL[0] * min(count, columns), PANEL[1] * rows
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, min(count, columns), squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels:
        axes.set(xlabel="environment steps", ylabel=f"return, mean of {WINDOW} training episodes")
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure, panels[:count]


def short(env_id: str) -> str:
    """Return an environment's name without its module."""
    return env_id.split(":")[-1]


def draw_learning(results: Path, experiments: Sequence[Experiment]) -> None:
    """Draw learning_curves.png: a panel an experiment, thin lines for its seeds, the random agent
    dashed, what others have published dotted."""
    curves = read_curves(results / "learning_curves.csv")
    random = {
        row["experiment"].split()[1]: float(row["mean"])
        for row in read_csv(results / "learning_summary.csv")
        if row["experiment"].startswith("random_baseline")
    }
    learners = [e for e in experiments if e.script != "random_baseline" and e.name in curves]
    if not learners:
        return
    figure, panels = make_panels(len(learners))
    for axes, experiment in zip(panels, learners):
        timesteps, returns = curve = curves[experiment.name]
        for one in returns:
            axes.plot(timesteps, one, color="tab:blue", alpha=0.25, linewidth=0.7)
        draw_curve(axes, curve, f"IQM, {len(returns)} seeds", "tab:blue")
        if (value := random.get(experiment.env_id.replace(":", "."))) is not None:
            axes.axhline(value, color="tab:red", linestyle="--", linewidth=1, label="random")
        for (label, value), style in zip(experiment.published.items(), (":", "-.")):
            axes.axhline(value, color="black", linestyle=style, linewidth=1, label=label)
        algorithm = experiment.script.split("_")[0].upper()
        axes.set_title(f"{algorithm}, {short(experiment.env_id)}", fontsize=10)
        axes.legend(loc="lower right", fontsize=7)
    figure.savefig(results / "learning_curves.png", dpi=90)


def draw_variants(results: Path, name: str, groups: dict[str, list[Experiment]]) -> None:
    """Draw NAME.png: a panel a group, a line a variant: the greedy return of each seed after the
    last step (dots), their interquartile mean and its interval."""
    rows = {row["experiment"]: row for row in read_csv(results / f"{name}_summary.csv")}
    returns = defaultdict(list)
    for row in read_csv(results / f"{name}.csv"):
        returns[row["experiment"]].append(float(row["evaluation_mean"]))
    groups = {
        title: [variant for variant in variants if variant.name in rows]
        for title, variants in groups.items()
    }
    groups = {title: variants for title, variants in groups.items() if variants}
    if not groups:
        return
    figure, panels = make_panels(len(groups), columns=2)
    figure.set_size_inches(11, 3.2 * math.ceil(len(groups) / 2))
    for axes, (title, variants) in zip(panels, groups.items()):
        for place, variant in enumerate(variants):
            row = rows[variant.name]
            iqm, low, high = (float(row[key]) for key in ("iqm", "low", "high"))
            color = "tab:red" if variant.label == "defaults" else "tab:blue"
            seeds = returns[variant.name]
            axes.plot(seeds, [place] * len(seeds), "o", color=color, alpha=0.3, markersize=4)
            axes.plot([low, high], [place, place], color=color, linewidth=2)
            axes.plot(iqm, place, "|", color=color, markersize=14, markeredgewidth=2)
        axes.set_yticks(range(len(variants)), [variant.label for variant in variants])
        axes.invert_yaxis()
        counts = sorted({len(returns[variant.name]) for variant in variants})
        axes.set_title(f"{title}, {' or '.join(map(str, counts))} seeds", fontsize=10)
        axes.set(xlabel="greedy return after the last step", ylabel="")
    figure.savefig(results / f"{name}.png", dpi=90)
