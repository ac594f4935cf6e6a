"""Write the README's tables from the CSV files in results/, so that no number is copied by hand:

    python benchmarks/tables.py

Each table stands between two comments, <!-- NAME --> and <!-- end of NAME -->. A test holds the
README to what this would write.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ablations import GROUPS
from benchmarks.figures import short
from benchmarks.learning import LEARNERS, RANDOMS, TUTORIALS
from benchmarks.runner import RESULTS, ROOT, Experiment, read_csv
from benchmarks.speed import (
    A3C_SIZES,
    CASES,
    DEFAULTS,
    LARGER,
    LONG_RUNS,
    TRANSITIONS,
    WIDER,
    Measurements,
)

FLAGSHIPS = (
    "random_baseline CartPole-v1 10000",
    "dqn_shower dqn_shower.Shower-v0 5000",
    "ddpg_continuous Pendulum-v1 20000",
    "a3c_cartpole CartPole-v1 500000",
)
SCRIPTS = {  # in the order in which to read them: what it is, and its paper
    "random_baseline": ("the random agent", ""),
    "dqn_shower": ("Deep Q-Network", "[Mnih 2015](https://doi.org/10.1038/nature14236)"),
    "ddpg_continuous": (
        "Deep Deterministic Policy Gradient",
        "[Lillicrap 2016](https://arxiv.org/abs/1509.02971)",
    ),
    "a3c_cartpole": (
        "Asynchronous Advantage Actor-Critic",
        "[Mnih 2016](https://arxiv.org/abs/1602.01783)",
    ),
}


def table(header: str, rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; the header's columns are separated by bars."""
    lines = [f"| {header} |", "|" + "---|" * len(header.split("|"))]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float | str) -> str:
    """Write a return with one digit after the point, or none where it is large; minus as −."""
    value = float(value)
    if np.isnan(value):
        return ""
    return format(value, ",.0f" if abs(value) >= 1000 else ".1f").replace("-", "−")


def interval(row: dict[str, str]) -> str:
    """Write an interquartile mean and its interval; of one seed there is none."""
    if row["seeds"] == "1":
        return number(row["iqm"])
    return f"{number(row['iqm'])} [{number(row['low'])}, {number(row['high'])}]"


def published(experiment: Experiment) -> str:
    """Write what others have published."""
    return ", ".join(f"{number(v)} ({label})" for label, v in experiment.published.items())


def summaries(name: str) -> dict[str, dict[str, str]]:
    """Return the rows of NAME_summary.csv by experiment."""
    return {row["experiment"]: row for row in read_csv(RESULTS / f"{name}_summary.csv")}


def lines(script: str) -> str:
    """Return how many lines of a script are its own, above the harness, and how many it has."""
    text = (ROOT / f"{script}.py").read_text()
    own = text.split("# The harness")[0].count("\n")
    return f"{own} of {text.count(chr(10)):,}"


def overview_table() -> str:
    """The first table: a script a row, on the environment that it is named for."""
    found, rows = summaries("learning"), []
    for experiment in sorted(LEARNERS + RANDOMS, key=lambda e: [*SCRIPTS].index(e.script)):
        if experiment.name in FLAGSHIPS and experiment.name in found:
            script, row = experiment.script, found[experiment.name]
            what, paper = SCRIPTS[script]
            rows.append(
                (
                    f"[`{script}.py`]({script}.py)<br>{what}",
                    paper,
                    lines(script),
                    short(experiment.env_id),
                    f"{60 * float(row['minutes']):.0f}",
                    interval(row),
                    published(experiment),
                )
            )
    return table(
        "file | paper | own lines of all | environment | seconds "
        "| greedy return: IQM [95 % interval] | to compare with",
        rows,
    )


def learning_table() -> str:
    """The table of the learners: an experiment a row."""
    found = summaries("learning")
    random = {experiment.env_id: found.get(experiment.name) for experiment in RANDOMS}
    rows = []
    for experiment in LEARNERS:
        if experiment.name in found:
            row, by_chance = found[experiment.name], random[experiment.env_id]
            rows.append(
                (
                    experiment.script.split("_")[0].upper(),
                    short(experiment.env_id),
                    f"{experiment.total_timesteps:,}",
                    row["seeds"],
                    interval(row),
                    number(row["lowest"]),
                    number(by_chance["mean"]) if by_chance else "",
                    published(experiment),
                    f"{float(row['minutes']):.2f}",
                )
            )
    return table(
        "script | environment | steps | seeds | greedy return: IQM [95 % interval] | lowest seed "
        "| random | to compare with | minutes",
        rows,
    )


def solved_table() -> str:
    """When the environment's own threshold was met in training: a row where it has one."""
    seeds = defaultdict(list)
    for row in read_csv(RESULTS / "learning.csv"):
        seeds[row["experiment"]].append(row)
    rows = []
    for experiment in LEARNERS:
        runs = seeds[experiment.name]
        spec = gym.registry.get(short(experiment.env_id))
        if runs and spec is not None and spec.reward_threshold is not None:
            solved = [row for row in runs if row["solved_timesteps"]]
            steps = [int(row["solved_timesteps"]) for row in solved]
            seconds = [float(row["solved_seconds"]) for row in solved]
            name = experiment.script.split("_")[0].upper()
            what = name, short(experiment.env_id), f"{experiment.total_timesteps:,}"
            times = "", ""
            if solved:
                times = f"{median(steps):,.0f} ({max(steps):,})", f"{median(seconds):.1f}"
            last = min(float(row["training_mean_last_100"]) for row in runs)
            threshold = f"{spec.reward_threshold:,g}".replace("-", "−")
            found = f"{len(solved)} of {len(runs)}"
            rows.append((*what, threshold, found, *times, number(last)))
    return table(
        "script | environment | steps in all | solved at | seeds | after steps: median (slowest) "
        "| seconds: median "
        "| last 100 episodes: lowest seed",
        rows,
    )


def tutorials_table() -> str:
    """The settings of the tutorials and of the paper, a setting a row."""
    found, rows, training = summaries("learning"), [], defaultdict(list)
    for row in read_csv(RESULTS / "learning.csv"):
        training[row["experiment"]].append(float(row["training_mean_61_to_100"] or "nan"))
    for experiment in TUTORIALS:
        if experiment.name in found:
            row = found[experiment.name]
            means = row["seeds"], number(row["mean"]), number(np.mean(training[experiment.name]))
            setting = f"{experiment.label}, {experiment.env_id}", f"`{row['flags']}`"
            rows.append((*setting, *means, published(experiment)))
    return table(
        "setting | flags | seeds | greedy return | training, episodes 61–100 | published", rows
    )


def ablations_table() -> str:
    """The table of the ablations: a variant a row, those that only an older version had too."""
    found, rows = summaries("ablations"), []
    for title, variants in GROUPS.items():
        group = variants[0].name.split()[:3]  # script, environment, steps
        for name in dict.fromkeys([*(variant.name for variant in variants), *found]):
            if name in found and name.split()[:3] == group:
                row, label = found[name], " ".join(name.split()[3:]) or "defaults"
                flags = f"`{row['flags']}`" if row["flags"] else ""
                rows.append((title, label, flags, interval(row), number(row["lowest"])))
    return table("on | variant | flags | greedy return: IQM [95 % interval] | lowest seed", rows)


# Speed


def micro(seconds: Iterable[float]) -> str:
    """Write the median of seconds, in microseconds."""
    return f"{median(seconds) * 1e6:,.0f}"


def speed_table(found: Measurements) -> str:
    """Training speeds of all scripts, with memory, an implementation a row."""

    def speeds(case: Any, name: str) -> list[float]:
        return found.get("steps_per_second", case, name)

    rows = []
    peers = [(str(case), "SB3", ("ours, --compile", "ours, --no-compile")) for case in CASES]
    workers = ("1 worker", "2 workers", "4 workers")
    peers += [("random", "environment", ("ours",))]
    peers += [("A3C 64-64", "SB3's A2C, 8 environments", workers)]
    for case, peer, names in peers:
        for name in (*names, peer):
            if values := speeds(case, name):
                ratio = median(values) / median(speeds(case, peer))
                extremes = f"{min(values):,.0f}–{max(values):,.0f}"
                memory = max(found.get("memory", case, name))
                rows.append(
                    (
                        case,
                        name,
                        f"{median(values):,.0f}",
                        extremes,
                        f"{ratio:.2f}",
                        f"{memory:.0f}",
                    )
                )
    return table(
        "what | implementation | steps/s, median | lowest–highest | ÷ peer "
        "| memory of the largest process, MB",
        rows,
    )


def updates_table(found: Measurements, measurement: str, cases: Iterable[Any]) -> str:
    """Updates against their floor, a case a row."""
    rows = []
    for case in cases:
        if floor := found.get(measurement, case, "floor"):
            compiled, eager = (found.get(measurement, case, n) for n in ("compiled", "eager"))
            ratio = median(update / low for update, low in zip(compiled, floor))
            rows.append((case, micro(compiled), micro(eager), micro(floor), f"{ratio:.2f}"))
    return table("update of | compiled, µs | eager, µs | floor, µs | compiled ÷ floor", rows)


def compiling_table(found: Measurements) -> str:
    """What compiling costs, and when it pays."""
    rows = []
    for case in DEFAULTS:
        if found.get("first_update_seconds", case, "cold"):
            cold, warm = (
                median(found.get("first_update_seconds", case, name)) for name in ("cold", "warm")
            )
            eager, compiled = (found.get("update_seconds", case, n) for n in ("eager", "compiled"))
            saved = median(eager) - median(compiled) if eager and compiled else 0.0
            memory = max(found.get("memory", case, "cold"))
            pays = f"{cold / saved:,.0f} steps" if saved > 0 else ""
            rows.append((case, f"{cold:.1f}", f"{warm:.1f}", pays, f"{memory:.0f}"))
    return table(
        "compiling | cold cache, s | warm cache, s | pays from, cold cache | memory, MB", rows
    )


def buffer_table(found: Measurements) -> str:
    """The replay buffer as it fills."""
    rows = []
    for transitions in TRANSITIONS:
        if seconds := found.get("buffer_seconds", str(transitions), "add and sample"):
            memory = found.get("buffer_memory", str(transitions), "add and sample")[0]
            rows.append((f"{transitions:,}", f"{median(seconds) * 1e6:.1f}", f"{memory:.2f}"))
    return table("transitions in the buffer | add and sample 64, µs | memory, MB", rows)


def a3c_table(found: Measurements) -> str:
    """A3C with wider networks."""
    rows = []
    for a, b in A3C_SIZES:
        case = f"A3C {a}-{b}"
        if found.get("growing_steps_per_second", case, "1"):
            speeds = [median(found.get("growing_steps_per_second", case, n)) for n in "12"]
            rows.append((case, *(f"{s:,.0f}" for s in speeds), f"{speeds[1] / speeds[0]:.2f}"))
    return table("networks | steps/s, 1 worker | 2 workers | ratio", rows)


def long_table(found: Measurements) -> str:
    """Speed at the beginning and at the end of a long run."""
    rows = []
    for name, (env_id, steps, _) in LONG_RUNS.items():
        if found.get("long_run", name, "second tenth"):
            speeds = [
                median(found.get("long_run", name, n)) for n in ("second tenth", "last tenth")
            ]
            ratio = f"{speeds[1] / speeds[0]:.2f}"
            rows.append((name, env_id, f"{steps:,}", *(f"{s:,.0f}" for s in speeds), ratio))
    return table("script | on | steps | steps/s, second tenth | last tenth | ratio", rows)


def speed_tables(found: Measurements) -> dict[str, str]:
    """Return the tables of speed.py by name."""
    return {
        "speed": speed_table(found),
        "updates": updates_table(found, "update_seconds", CASES),
        "compiling": compiling_table(found),
        "growing updates": updates_table(found, "growing_update_seconds", (*WIDER, *LARGER)),
        "buffer": buffer_table(found),
        "growing A3C": a3c_table(found),
        "long runs": long_table(found),
    }


def all_tables() -> dict[str, str]:
    """Return every table by its name."""
    learned = {
        "overview": overview_table(),
        "learning": learning_table(),
        "solved": solved_table(),
        "tutorials": tutorials_table(),
        "ablations": ablations_table(),
    }
    return learned | speed_tables(Measurements.read(RESULTS / "speed.csv"))


def fill_in(text: str) -> str:
    """Return a text with the tables that it marks as they should be."""
    for name, content in all_tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{content}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    """Rewrite the README."""
    readme = ROOT / "README.md"
    readme.write_text(fill_in(readme.read_text()))


if __name__ == "__main__":
    main()
