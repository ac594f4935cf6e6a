"""Write the tables of README.md and of benchmarks/README.md, so that nothing is copied by hand:

    python benchmarks/tables.py

Each table stands between two comments, <!-- NAME --> and <!-- end of NAME -->, and keeps the
columns of its header. A test holds both pages to what this would write.
"""

import inspect
import re
import sys
from functools import cache, partial
from html import escape
from pathlib import Path
from textwrap import dedent

import gymnasium as gym
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import page
from benchmarks.runner import RESULTS, ROOT, read_experiments, read_rows, split_names, summarise
from ddpg_continuous import Agent

PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
SCORE = "greedy return: IQM [95 % interval], or mean [range]"
REFERENCE = "to compare with"


def number(value: float) -> str:
    """Write a number, with one decimal unless it is large; minus as −."""
    if pd.isna(value):
        return ""
    return f"{value:,.{0 if abs(value) >= 1000 else 1}f}".replace("-", "−")


def references(published: str) -> str:
    """Write the returns to compare with: "RL Zoo: -152.1" as "−152.1 (RL Zoo)"."""
    items = [item.rsplit(": ", 1) for item in published.split("; ") if item]
    return ", ".join(f"{number(float(value))} ({name})" for name, value in items)


@cache
def results(name: str) -> pd.DataFrame:
    """Return all columns of the tables that come of NAME.csv, an experiment a row."""
    found = summarise(read_rows(RESULTS / f"{name}.csv"))
    table = found.drop(columns=["flags", "seeds", "solved"]).map(number)
    table = table.join(split_names(found.index).set_index(found.index))
    interval = " [" + table["low"] + ", " + table["high"] + "]"
    table[SCORE] = table["centre"] + interval.where(found["seeds"] > 1, "")
    table["steps"] = table["steps"].astype(int).map("{:,}".format)
    table["variant"] = table["label"].replace("", "defaults")
    table["flags"] = ("`" + found["flags"] + "`").fillna("")
    table["seeds"] = found["seeds"]
    table["seeds that solved it"] = [f"{n} of {m}" for n, m in zip(found["solved"], found["seeds"])]
    return table


def learned(*groups: str) -> pd.DataFrame:
    """Return the rows of those experiments in learning.csv that are in some groups."""
    experiments = read_experiments(*groups)
    table = pd.DataFrame(experiments, index=[experiment.name for experiment in experiments])
    table = table[["script", "env_id", "published"]].add_prefix("_").join(results("learning"))
    random = results("learning").query("script == 'RANDOM'").set_index("environment")
    table["random"] = table["environment"].map(random["greedy return"])
    table[REFERENCE] = table["_published"].map(references)
    specs = table["_env_id"].map(gym.registry.get)
    table["solved at"] = [number(spec and spec.reward_threshold) for spec in specs]
    return table.dropna(subset="seeds").astype({"seeds": int})


def overview() -> pd.DataFrame:
    """A script a row, on the environment that it is named for."""
    table = pd.read_csv(ROOT / "benchmarks" / "overview.csv", index_col="experiment")
    texts = [(ROOT / file).read_text() for file in table["file"]]
    own = [text.split("# The harness")[0].count("\n") for text in texts]
    table["lines: algorithm + harness"] = [
        f"{n} + {text.count(chr(10)) - n}" for n, text in zip(own, texts)
    ]
    table["file"] = table["file"].map("[`{0}`]({0})".format)
    return table.join(learned("learning", "random"))


@cache
def speeds() -> pd.DataFrame:
    """Return all columns of the tables that come of speed.csv, a measurement a row."""
    rows = pd.read_csv(RESULTS / "speed.csv").groupby(["case", "implementation"], sort=False)
    found, table = rows.median(numeric_only=True), pd.DataFrame()
    low, high = rows["steps_per_second"].min(), rows["steps_per_second"].max()
    table["steps/s"] = found["steps_per_second"].map("{:,.0f}".format)
    table["lowest–highest"] = low.map("{:,.0f}–".format) + high.map("{:,.0f}".format)
    table["greedy return"] = found["evaluation_mean"].map(number)
    return table.reset_index().fillna("")


def speed() -> pd.DataFrame:
    """Steps a second of DDPG, DQN and A3C, an implementation a column."""
    table = speeds()
    table = table[table["case"].str.match("DDPG.*batch|DQN.*batch|A3C")]
    wide = table.pivot(index="case", columns="implementation", values="steps/s").fillna("")
    return wide.loc[table["case"].unique()].rename_axis("steps/s").reset_index()


def exact() -> pd.DataFrame:
    """What the greedy policies of DQN expect of an episode, beside the optimum."""
    rows = pd.read_csv(RESULTS / "exact.csv").groupby("environment", sort=False)
    table = rows[["optimum", "expected_return"]].min().map("{:.4f}".format)
    table = table.map(lambda value: value.replace("-", "−"))
    table["at the optimum"] = [f"{x.sum()} of {len(x)} seeds" for _, x in rows["optimal"]]
    return table.rename(columns={"expected_return": "lowest seed"}).reset_index()


def algorithm(script: str) -> str:
    """The algorithm of a script's paper beside the code without comments: HTML, in one line."""

    def cell(*lines: str) -> str:
        texts = (escape(line.strip().split("  # ")[0], quote=False) for line in lines)
        return "<td>" + "<br>".join(f"<code>{text}</code>" for text in texts) + "</td>"

    title = re.search(r"Algorithm \w+", page.read(script))[0]
    rows = [cell(line) + cell(*code.values()) for line, code in page.pairs(script)]
    rows = [f"<th>{title}</th><th>{script}.py</th>", *rows]
    return f"<table><tr>{'</tr><tr>'.join(rows)}</tr></table>"


def update() -> str:
    """DDPG's method `update`."""
    return f"```python\n{dedent(inspect.getsource(Agent.update))}```"


TABLES = {table.__name__: table for table in (overview, exact, speed, speeds, update)}
TABLES |= {name: partial(learned, name) for name in ("learning", "tutorials", "mujoco", "forks")}
TABLES |= {
    "algorithm": partial(algorithm, "ddpg_continuous"),
    "algorithm_dqn": partial(algorithm, "dqn_shower"),
    "algorithm_a3c": partial(algorithm, "a3c_cartpole"),
    "solved": lambda: learned("learning").query("`slowest seed, steps` != ''"),
    "ablations": partial(results, "ablations"),
}
TABLES |= {name: partial(pd.read_csv, RESULTS / f"{name}.csv") for name in ("noise", "cartpole")}


def fill_in(text: str) -> str:
    """Return a page's text with its tables as they should be, with the columns that it shows."""
    for name, function in TABLES.items():
        marks = rf"(?<=<!-- {name} -->\n)(.*?\n).*?(?=<!-- end of {name} -->)"
        if shown := re.search(marks, text, re.S):
            table = function()
            if isinstance(table, pd.DataFrame):
                columns = [cell.strip() for cell in shown[1].strip("| \n").split("|")]
                table = table[columns].to_markdown(index=False, disable_numparse=True)
            text = f"{text[: shown.start()]}{table}\n{text[shown.end() :]}"
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(fill_in(path.read_text()))
