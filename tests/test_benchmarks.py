"""The evidence: the benchmarks' own arithmetic, and that the pages say what was measured."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro

from tests.conftest import ROOT, outcome, run_here, wait_for

pd = pytest.importorskip("pandas")
pytest.importorskip("scipy")

import ddpg_continuous as ddpg  # noqa: E402
from benchmarks import runner, speed, tables  # noqa: E402
from benchmarks.runner import RESULTS, Experiment, read_experiments, read_rows, run_all, run_seed  # noqa: E402

PAGES = [page.read_text() for page in tables.PAGES]
SPEEDS = tomllib.loads((ROOT / "benchmarks" / "speed.toml").read_text())
GROUPS = {
    "learning": ("learning", "exact", "tutorials", "random", "mujoco", "forks"),
    "ablations": ("ablations",),
}


# --- What was measured, and what the pages say


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_the_tables_of_the_results(page):
    pytest.importorskip("tabulate")
    assert tables.fill_in(page) == page, "run python benchmarks/tables.py"
    changed = re.sub(r"(<!-- \w+ -->[^!]*?)\d\.\d", r"\g<1>9.9", page)  # in each table
    assert changed != page and tables.fill_in(changed) == page


def test_pages_have_each_table_once():
    assert sorted(re.findall(r"<!-- end of (.*) -->", "".join(PAGES))) == sorted(tables.TABLES)


def test_numbers_in_sentences_are_of_the_results():
    (optimum,) = pd.read_csv(RESULTS / "optimum.csv")["optimum"]
    exact = pd.read_csv(RESULTS / "exact.csv").groupby("environment")["optimum"].max()
    patch = (ROOT / "benchmarks" / "td3.patch").read_text()
    added = len(re.findall(r"^\+(?!\+\+)", patch, re.M))
    rows = read_rows(RESULTS / "learning.csv").query("seed == 14")
    same_seed = rows[rows["experiment"] == "ddpg_continuous LunarLanderContinuous-v3 300000"]
    speeds = pd.read_csv(RESULTS / "speed.csv").groupby(["case", "implementation"])
    speeds = speeds["steps_per_second"].agg(["min", "median", "max"])
    middle = speeds["median"].unstack()[["compiled", "not compiled"]].dropna()
    slow = middle["not compiled"] / middle["compiled"]
    slow = slow[slow.index.str.contains("DDPG") & ~slow.index.str.contains("H200")]
    for sentence in (
        f"are up to {(speeds['max'] / speeds['min']).max() - 1:.0%} apart".replace("%", " %"),
        f"at {100 * slow.min():.0f} to {100 * slow.max():.0f} % of the speed",
        f"{tables.number(same_seed['evaluation_mean'].item())} (DDPG, the same seed)",
        f"The optimum on these 50 starts is {tables.number(optimum)}",
        f"of {added} new lines",
    ):
        assert sentence in " ".join("".join(PAGES).split()), sentence
    published = [e.published.partition("optimum: ")[2] for e in read_experiments("learning")]
    assert {*published} == {"", f"{optimum:.1f}", f"{exact['Shower-v0']:.4f}"}


@pytest.mark.parametrize("name", GROUPS)
def test_summaries_follow_from_the_seeds(name):
    rows = read_rows(RESULTS / f"{name}.csv")
    for experiment, row in runner.summarise(rows).iterrows():
        values = rows["evaluation_mean"][rows["experiment"] == experiment]
        values = np.sort(values.to_numpy(float))
        quarter = len(values) // 4
        assert (row["seeds"], row["lowest seed"]) == (len(values), values[0])
        assert row["greedy return"] == pytest.approx(values.mean())
        if len(values) >= 8:
            values = values[quarter : len(values) - quarter]
        assert row["centre"] == pytest.approx(values.mean())
        ordered = [row["lowest seed"], row["low"], row["centre"], row["high"]]
        assert (np.diff(ordered) > -1e-9).all()


def test_solved_follows_from_the_evaluations():
    rows = read_rows(RESULTS / "learning.csv").set_index(["experiment", "seed"])
    evaluations = pd.read_csv(RESULTS / "evaluations.csv").groupby(["experiment", "seed"])
    assert len(evaluations) == 48
    for run, found in evaluations:
        threshold = gym.spec(run[0].split()[1]).reward_threshold or np.inf
        kept = found[(found["evaluation"] >= threshold)[::-1].cummin()[::-1]]["timestep"].min()
        if rows.loc[run, "evaluation_mean"] < threshold:
            kept = np.nan
        solved = rows.loc[run, "solved_timesteps"]
        assert solved == kept if pd.notna(kept) else pd.isna(solved)


@pytest.mark.parametrize("name", GROUPS)
def test_results_are_of_the_experiments_and_not_of_seeds_tuned_on(name):
    experiments = {e.name: e for e in read_experiments(*GROUPS[name])}
    rows = read_rows(RESULTS / f"{name}.csv")
    assert (rows["experiment"].str.split().str[2].astype(int) == rows["timesteps"]).all()
    assert ((rows["seed"] > 10) | rows["experiment"].str.startswith("random")).all()
    for (experiment, flags), seeds in rows[rows["version"].isna()].groupby(
        ["experiment", "flags"], dropna=False
    ):  # measured with the code as it is, not with that of an older commit
        assert (flags if pd.notna(flags) else "") == experiments[experiment].flags
        assert sorted(seeds["seed"]) == list(experiments[experiment].seeds)[: len(seeds)]


def test_speeds_are_of_the_same_work_three_times():
    rows = pd.read_csv(RESULTS / "speed.csv")
    for case, implementations in SPEEDS.items():
        found = rows[rows["case"] == case]
        assert (found["implementation"].value_counts() == 3).all()
        missing = implementations.keys() - {*found["implementation"]}
        assert all("CUDA" in name for name in missing)
        if "batch" in case:
            work = found[~found["implementation"].isin(["products", "CleanRL", "RLtools"])]
            assert (work["updates"] == implementations["SB3"]["steps"] - 100).all()
            assert work["parameters"].nunique() == 1 and work["parameters"].notna().all()


def test_a_speed_leaves_the_first_tenth_out_and_takes_the_place_of_its_old_one(tmp_path):
    found = speed.speed([(0, 0), (9, 100), (18, 1000)], 1000)
    assert found == {"steps_per_second": pytest.approx(100)}
    rows = [
        ("b", "SB3", 0, 1.0),
        ("old", "SB3", 0, 2.0),
        ("a", "SB3", 0, 3.0),
        ("b", "SB3", 0, 4.5678),
    ]
    for case, implementation, repeat, value in rows:
        row = {"case": case, "implementation": implementation, "repeat": repeat, "x": value}
        speed.put(tmp_path / "speed.csv", row, {"a": 0, "b": 1})
    lines = (tmp_path / "speed.csv").read_text().split()
    assert lines == [
        "case,implementation,repeat,x",
        "a,SB3,0,3.0",
        "b,SB3,0,4.568",
        "old,SB3,0,2.0",
    ]


def test_each_matrix_product_is_timed_once():
    args = ddpg.Args(hidden_sizes=(8, 8), batch_size=4, learning_starts=4)
    env = ddpg.make_env(args)
    agent, (observation, _) = ddpg.Agent(env, args), env.reset(seed=1)
    for _ in range(4):
        agent.buffer.add(observation, env.action_space.sample(), 0.0, observation, False)
    assert len(speed.time_products(lambda: agent.act(observation))) == 3  # a layer each
    batch = agent.buffer.sample(4, np.random.default_rng(), "cpu")
    seconds = speed.time_products(lambda: agent.update(batch))
    # y: 3 + 3 layers. Q: 3 forward, 3 for the weights, 2 back; μ: the same, through 3 + 3 of Q.
    assert len(seconds) == 28 and min(seconds) > 0


@pytest.mark.parametrize(
    "group", ["learning", "exact", "tutorials", "random", "quick", "ablations"]
)
def test_every_experiment_is_a_command_line_that_its_script_takes(group):
    experiments = read_experiments(group)
    assert len({e.name for e in experiments}) == len(experiments) > 0
    for experiment in experiments:
        script = importlib.import_module(experiment.script)
        tyro.cli(script.Args, args=experiment.arguments(experiment.run_dirs(Path("runs"))[0]))


def test_every_speed_of_ours_is_a_command_line_for_the_work_of_the_others():
    for implementations in SPEEDS.values():
        for name, given in implementations.items():
            if isinstance(given, str) and not re.search("CleanRL|CUDA", name):
                script, *flags = given.split()
                args = tyro.cli(importlib.import_module(script).Args, args=flags)
                for other in implementations.keys() & {"SB3", "SBX"}:
                    options = implementations[other]
                    assert args.total_timesteps == options["steps"]
                    if script != "a3c_cartpole":
                        assert [*args.hidden_sizes] == options["policy_kwargs"]["net_arch"]
                        assert args.batch_size == options["batch_size"]


# --- The arithmetic


def write_run(run_dir, returns, length, last=475.0):
    """Write the CSV files of a run with these returns; each 20th is an evaluation, too."""
    run_dir.mkdir(parents=True)
    episodes = np.arange(1, len(returns) + 1)
    columns = {"episode": episodes, "timestep": episodes * length, "seconds": episodes / 2}
    rows = pd.DataFrame(columns | {"return": returns, "length": length})
    rows.loc[episodes % 20 == 0, "evaluation"] = rows["return"]
    rows.to_csv(run_dir / "episodes.csv", index=False)
    pd.DataFrame({"return": [last - 2, last + 2]}).to_csv(run_dir / "evaluation.csv", index=False)


def test_row_and_curve_of_a_seed(tmp_path):
    experiment = Experiment("", "dqn_shower", "CartPole-v1", 2000, [3, 4], 2)
    one, other = experiment.run_dirs(tmp_path)
    write_run(one, [500.0] * 50 + [400.0] * 50 + [500.0] * 100, 10)
    row = runner.seed_row(experiment, one)
    assert (row["seed"], row["evaluation_mean"]) == (3, 475.0)
    assert (row["training_mean_61_to_100"], row["training_mean_last_100"]) == (400.0, 500.0)
    assert row["solved_timesteps"] == 1200
    curve = runner.curve_rows(experiment, one)
    assert list(curve["timestep"]) == list(range(40, 2001, 40))
    assert list(curve["return"][23:28]) == [400, 400, 440, 480, 500]
    write_run(other, [500.0] * 40, 50, last=474.0)  # it was solved, but not at the end
    assert pd.isna(runner.seed_row(experiment, other)["solved_timesteps"])
    shutil.rmtree(other)
    write_run(other, [1.0, 2.0], 500)
    curve = runner.curve_rows(experiment, other)
    assert list(curve["timestep"][:1]) == [520]  # no point before the first episode has ended
    assert list(curve["return"].unique()) == [1.0, 1.5]
    assert pd.isna(runner.seed_row(experiment, other)["solved_timesteps"])


def test_rows_of_an_experiment_take_the_place_of_its_old_ones(tmp_path):
    old = pd.DataFrame({"experiment": ["a", "b", "b"], "x": [1, 2, 3], "version": "0123"})
    runner.put_rows(tmp_path / "rows.csv", old)
    runner.put_rows(tmp_path / "rows.csv", pd.DataFrame({"experiment": ["b"], "x": [4]}))
    assert (tmp_path / "rows.csv").read_text() == "experiment,x,version\na,1,0123\nb,4,\n"


def test_interval():
    rng = np.random.default_rng(0)
    assert runner.interquartile_mean(np.array([-100.0, 1, 2, 3, 4, 5, 6, 900])) == 3.5
    covered = 0
    for _ in range(50):  # the interquartile mean of a normal distribution is its mean
        _, low, high = runner.centre_and_range(rng.normal(7.0, 2.0, 30))
        covered += low <= 7.0 <= high
    assert covered >= 43  # 95 % of 50 is 47.5
    assert runner.centre_and_range(np.array([0.0, 1, 2, 3, 4, 5, 90])) == (15.0, 0.0, 90.0)


# --- The runs

FLAGS = "--checkpoint-every 0.1 --learning-starts 200 --hidden-sizes 8 8 --batch-size 8"


def small(env_id, seeds=(1,), flags=""):
    """Return an experiment of a few seconds."""
    flags = f"{FLAGS} {flags}".strip()
    return Experiment("script", "dqn_shower", env_id, 1000, seeds, 2, flags, flags)


def check_same_as_uninterrupted(experiment, run_dir):
    run_here("dqn_shower", "--run-dir", "whole", *experiment.arguments(run_dir))
    assert outcome(run_dir) == outcome("whole")


def test_ctrl_c_stops_and_the_same_command_goes_on(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("seaborn")
    command = "benchmarks/learning.py --script dqn_shower --env-ids CartPole-v1 --seeds 1 3"
    command += f" --total-timesteps 1000 --eval-episodes 2 --jobs 1 --runs {tmp_path} -- {FLAGS}"
    command = [sys.executable, *command.split()]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    experiment = small("CartPole-v1", (1, 2, 3))
    first, _, third = experiment.run_dirs(tmp_path / "script")
    wait_for(process, first, 20)
    os.killpg(process.pid, signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not third.exists()
    rows = (first / "episodes.csv").read_text()
    run_seed(experiment, first)
    assert (first / "episodes.csv").read_text().startswith(rows)
    check_same_as_uninterrupted(experiment, first)


def test_a_lost_worker_is_replaced_and_a_failure_leaves_the_others_alone(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("MORTAL", str(tmp_path / "was killed"))
    mortal, wrong = small("tests.environments:Mortal-v0"), small("CartPole-v1", flags="--gamma 2")
    (failure,) = run_all([mortal, wrong], tmp_path, jobs=2)
    assert "exit code 2" in failure and "gamma" in failure
    (run_dir,) = mortal.run_dirs(tmp_path)
    assert (tmp_path / "was killed").exists()
    check_same_as_uninterrupted(mortal, run_dir)
    finished = (run_dir / "checkpoint.pt").stat().st_mtime_ns
    assert run_all([mortal], tmp_path, jobs=1) == []
    args = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(args | {"gamma": 0.5}))
    (failure,) = run_all([mortal], tmp_path, jobs=1)
    assert "begun with other arguments" in failure
    assert (run_dir / "checkpoint.pt").stat().st_mtime_ns == finished
