"""Draw the results that runner.py collects, a panel an experiment."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.ticker import EngFormatter

from benchmarks.runner import Experiment, read_rows, split_names


def draw_learning(results: Path, experiments: Iterable[Experiment]) -> None:
    """Draw learning_curves.png: the median of the seeds, a thin line for each seed, the
    random agent dashed, what others have published dotted."""
    curves = read_rows(results / "learning_curves.csv")
    names = set(curves["experiment"])
    chosen = [e for e in experiments if e.script != "random_baseline" and e.name in names]
    if not chosen:
        return
    random = read_rows(results / "learning.csv").query("experiment.str.startswith('random')")
    random = dict(zip(split_names(random["experiment"])["environment"], random["evaluation_mean"]))
    curves = pd.concat([curves[curves["experiment"] == e.name] for e in chosen])
    axes = {"x": "timestep", "y": "return"}
    panels = {"col": "experiment", "col_wrap": 4, "height": 2.2, "aspect": 1.3}
    panels["facet_kws"] = {"sharex": False, "sharey": False}
    median = {"kind": "line", "estimator": "median", "errorbar": None}
    grid = sns.relplot(curves, **axes, **panels, **median)
    seeds = {"units": "seed", "estimator": None, "alpha": 0.4, "linewidth": 0.6}
    grid.map_dataframe(sns.lineplot, **axes, **seeds)
    for experiment in chosen:
        panel = grid.axes_dict[experiment.name]
        script, environment, steps, label = split_names(pd.Index([experiment.name])).iloc[0]
        panel.set_title(f"{script}, {environment} {label}".strip(), fontsize=9)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
        if environment in random:
            panel.axhline(random[environment], color="tab:red", linestyle="--", linewidth=1)
        for item in filter(None, experiment.published.split("; ")):
            panel.axhline(float(item.rsplit(": ")[-1]), color="black", linestyle=":", linewidth=1)
    grid.set_axis_labels("environment steps", "return").tight_layout()
    grid.savefig(results / "learning_curves.png", dpi=75)


def draw_ablations(results: Path) -> None:
    """Draw ablations.png: a dot a seed, and their mean, lowest and highest."""
    rows = read_rows(results / "ablations.csv")
    names = split_names(rows["experiment"])
    rows["variant"] = names["label"].replace("", "defaults")
    rows["panel"] = names["script"] + ", " + names["environment"]
    axes = {"x": "evaluation_mean", "y": "variant"}
    panels = {"col": "panel", "col_wrap": 2, "height": 3, "aspect": 1.7}
    mean = {"estimator": "mean", "errorbar": ("pi", 100)}
    grid = sns.catplot(rows, **axes, **panels, alpha=0.3, sharex=False, sharey=False)
    grid.map_dataframe(sns.pointplot, **axes, **mean, linestyle="none", marker="|")
    grid.set_axis_labels("greedy return after the last step", "").set_titles("{col_name}")
    grid.savefig(results / "ablations.png", dpi=75)
