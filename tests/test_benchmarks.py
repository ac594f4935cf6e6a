"""The evidence: the benchmarks' own arithmetic, and that the README says what was measured."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from benchmarks import runner, tables
from benchmarks.ablations import GROUPS
from benchmarks.learning import EXPERIMENTS, QUICK
from benchmarks.runner import RESULTS, Experiment, read_csv, run_all, run_seed
from tests.conftest import ROOT, SMALL, load, same_state, without_seconds

README = (ROOT / "README.md").read_text()
VARIANTS = [variant for variants in GROUPS.values() for variant in variants]


# --- What was measured, and what the README says


def test_readme_has_the_tables_of_the_results():
    assert set(re.findall(r"<!-- end of (.*) -->", README)) == tables.all_tables().keys()
    assert tables.fill_in(README) == README, "run python benchmarks/tables.py"


def test_numbers_in_sentences_are_of_the_results():
    optimum = {row["starts"]: float(row["optimum"]) for row in read_csv(RESULTS / "optimum.csv")}
    shower = read_csv(RESULTS / "shower.csv")
    assert all(row["optimal"] == "True" for row in shower)
    pendulum = [
        float(row["training_mean_61_to_100"])
        for row in read_csv(RESULTS / "learning.csv")
        if row["experiment"] == "ddpg_continuous Pendulum-v1 20000"
    ]
    patch = (ROOT / "benchmarks" / "td3.patch").read_text().splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") for line in patch)
    for sentence in (
        f"The optimum on these 50 starts is {tables.number(optimum['evaluation'])} by dynamic",
        f"episodes 61 to 100 return {tables.number(np.mean(pendulum))} in the mean over the seeds",
        f"the optimum from the same starts is {tables.number(optimum['training'])}",
        f"In {len(shower)} of {len(shower)} seeds the greedy action is the optimum",
        f"is the optimum: {float(shower[0]['expected_return']):.4f} (414/7",
        f"of {added} new lines",
    ):
        assert sentence in " ".join(README.split()), sentence
    published = {e.published["optimum"] for e in EXPERIMENTS if "optimum" in e.published}
    assert published == {round(optimum["evaluation"], 1), 414 / 7}


def test_other_tables_are_seen():
    changed = re.sub(r"(<!-- learning -->.*?)\d\.\d", r"\g<1>9.9", README, count=1, flags=re.S)
    assert changed != README
    assert tables.fill_in(changed) == README


@pytest.mark.parametrize("name", ["learning", "ablations"])
def test_summaries_follow_from_the_seeds(name):
    means = {}
    for row in read_csv(RESULTS / f"{name}.csv"):
        means.setdefault(row["experiment"], []).append(float(row["evaluation_mean"]))
    assert means
    summaries = read_csv(RESULTS / f"{name}_summary.csv")
    assert {row["experiment"] for row in summaries} == means.keys()
    for row in summaries:
        values = np.sort(means[row["experiment"]])
        quarter = len(values) // 4
        assert int(row["seeds"]) == len(values)
        assert float(row["lowest"]) == pytest.approx(values[0], abs=0.006)
        assert float(row["mean"]) == pytest.approx(values.mean(), abs=0.006)
        middle = values[quarter : len(values) - quarter]
        assert float(row["iqm"]) == pytest.approx(middle.mean(), abs=0.006)
        assert float(row["low"]) <= float(row["iqm"]) <= float(row["high"])
        assert values[0] - 0.006 <= float(row["low"]) <= float(row["high"]) <= values[-1] + 0.006


@pytest.mark.parametrize(
    ("name", "experiments"), [("learning", EXPERIMENTS), ("ablations", VARIANTS)]
)
def test_results_are_of_the_experiments_and_not_of_seeds_tuned_on(name, experiments):
    experiments, seeds = {e.name: e for e in experiments}, {}
    for row in read_csv(RESULTS / f"{name}.csv"):
        experiment = experiments[row["experiment"]]
        assert row["flags"] == experiment.flags
        assert int(row["timesteps"]) == experiment.total_timesteps
        assert int(row["seed"]) > 10 or experiment.script == "random_baseline"
        seeds.setdefault(experiment.name, []).append(int(row["seed"]))
    for name, found in seeds.items():  # none left out but those that have not been run yet
        assert sorted(found) == list(experiments[name].seeds)[: len(found)]


@pytest.mark.parametrize("experiments", [EXPERIMENTS, QUICK, VARIANTS])
def test_every_experiment_is_a_command_line_that_its_script_takes(experiments):
    assert len({experiment.name for experiment in experiments}) == len(experiments)
    for experiment in experiments:
        script = importlib.import_module(experiment.script)
        flags = ["--env-id", experiment.env_id, "--total-timesteps", experiment.total_timesteps]
        script.parse_args([*map(str, flags), *experiment.flags.split()])


def test_sweep_is_a_command_line_that_its_script_takes():
    sweep = yaml.safe_load((ROOT / "benchmarks" / "sweep.yaml").read_text())
    script = importlib.import_module(sweep["program"].removesuffix(".py"))
    choices = {}
    for name, given in sweep["parameters"].items():
        ends = [given[key] for key in ("value", "min", "max") if key in given]
        choices[name] = ends + given.get("values", [])
    for name, values in choices.items():
        for value in values:
            chosen = {other: others[0] for other, others in choices.items()} | {name: value}
            args = script.parse_args([f"--{key}={value}" for key, value in chosen.items()])
            assert getattr(args, name) == value
    assert f'summary["{sweep["metric"]["name"]}"]' in (ROOT / sweep["program"]).read_text()


# --- The arithmetic


def write_run(run_dir, returns, length=10):
    """Write the CSV files of a run with these training returns."""
    run_dir.mkdir(parents=True)
    rows = [
        {"episode": i, "timestep": i * length, "return": value, "length": length, "seconds": i / 2}
        for i, value in enumerate(returns, start=1)
    ]
    runner.write_csv(run_dir / "episodes.csv", rows)
    runner.write_csv(run_dir / "evaluation.csv", [{"return": 5.0}, {"return": 9.0}])
    (run_dir / "args.json").write_text('{"args": {"total_timesteps": 2000}}')


def test_row_and_curve_of_a_seed(tmp_path):
    experiment = Experiment("dqn_shower", "CartPole-v1", 2000, [3])
    returns = [400.0] * 100 + [500.0] * 100  # the mean of 100 is 475 after 175 of them
    write_run(experiment.run_dir(tmp_path, 3), returns)
    row = runner.seed_row(experiment, tmp_path, 3)
    assert (row["evaluation_mean"], row["evaluation_min"]) == (7.0, 5.0)
    assert (row["training_mean_61_to_100"], row["training_mean_last_100"]) == (400.0, 500.0)
    assert (row["solved_timesteps"], row["solved_seconds"]) == ("1750", "87.5")
    curve = runner.curve_rows(experiment, tmp_path, 3)
    assert [point["timestep"] for point in curve] == list(range(20, 2001, 20))
    assert [point["return"] for point in curve[48:56]] == [400, 400, 420, 440, 460, 480, 500, 500]
    assert runner.timestep_so_far(experiment, tmp_path, 3) == 2000
    assert runner.timestep_so_far(experiment, tmp_path, 4) == 0


def test_curves_begin_with_the_first_episode_and_figures_with_the_last_of_those(tmp_path):
    figures = pytest.importorskip("benchmarks.figures")
    experiment = Experiment("dqn_shower", "CartPole-v1", 1000, [1, 2])
    write_run(experiment.run_dir(tmp_path, 1), [1.0] * 4, length=250)
    write_run(experiment.run_dir(tmp_path, 2), [3.0] * 2, length=500)
    rows = [row for seed in (1, 2) for row in runner.curve_rows(experiment, tmp_path, seed)]
    assert rows[0]["timestep"] == 250
    runner.write_csv(tmp_path / "curves.csv", rows)
    timesteps, returns = figures.read_curves(tmp_path / "curves.csv")[experiment.name]
    assert timesteps.tolist() == list(range(500, 1001, 10))
    assert (returns == np.array([[1.0], [3.0]])).all()


def test_rows_of_an_experiment_take_the_place_of_its_old_ones(tmp_path):
    old = [{"experiment": "a", "x": 1}, {"experiment": "b", "x": 2}, {"experiment": "b", "x": 3}]
    runner.put_rows(tmp_path / "rows.csv", old)
    runner.put_rows(tmp_path / "rows.csv", [{"experiment": "b", "x": 4}])
    found = [(row["experiment"], row["x"]) for row in read_csv(tmp_path / "rows.csv")]
    assert found == [("a", "1"), ("b", "4")]


def test_interval():
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    assert runner.interquartile_mean(np.array([-100.0, 1, 2, 3, 4, 5, 6, 900])) == 3.5
    covered = 0
    for _ in range(50):  # the interquartile mean of a normal distribution is its mean
        low, high = runner.bootstrap_interval(rng.normal(7.0, 2.0, 30))
        covered += low <= 7.0 <= high
    assert covered >= 43  # 95 % of 50 is 47.5
    low, high = runner.bootstrap_interval(np.full((5, 3), 2.0))
    assert low.tolist() == high.tolist() == [2.0] * 3
    assert runner.bootstrap_interval(np.array([4.0])) == (4.0, 4.0)


# --- The runs


def small(seeds=(1, 2), flags=""):
    """Return an experiment of a few seconds."""
    flags += " --checkpoint-every 100 --learning-starts 200 --hidden-sizes 8 8"
    return Experiment("dqn_shower", "CartPole-v1", 2000, seeds, 2, flags)


def test_interrupted_runs_are_resumed(tmp_path):
    experiment, runs = small(), tmp_path / "killed"
    program = (
        "import sys; from pathlib import Path; from tests.test_benchmarks import small; "
        "from benchmarks.runner import run_all; run_all([small()], Path(sys.argv[1]), 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(runs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    checkpoint = experiment.run_dir(runs, 2) / "checkpoint.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (experiment.run_dir(runs, 2) / "evaluation.csv").exists()
    for folder in (runs, tmp_path / "whole"):
        assert run_all([experiment], folder, jobs=2) == []
    for seed in experiment.seeds:
        killed, whole = (experiment.run_dir(r, seed) for r in (runs, tmp_path / "whole"))
        csv_files = (folder / "episodes.csv" for folder in (killed, whole))
        assert without_seconds(next(csv_files)) == without_seconds(next(csv_files))
        assert same_state(load(killed), load(whole))
    finished = checkpoint.stat().st_mtime_ns
    assert run_all([experiment], runs, jobs=2) == []
    assert checkpoint.stat().st_mtime_ns == finished


def test_ctrl_c_stops_and_begins_no_more(tmp_path):
    experiment = small((1, 2, 3))
    program = (
        "import sys; from pathlib import Path; from tests.test_benchmarks import small; "
        "from benchmarks.runner import measure; runs = Path(sys.argv[1]); "
        "sys.exit(measure([small((1, 2, 3))], runs, runs, 'learning', 1, None))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    while not (experiment.run_dir(tmp_path, 1) / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not experiment.run_dir(tmp_path, 3).exists()


def test_a_run_of_other_arguments_is_not_passed_off_as_this_one(tmp_path):
    assert run_all([small([1])], tmp_path, jobs=1) == []
    (failure,) = run_all([small([1], "--gamma 0.5")], tmp_path, jobs=1)
    assert "other arguments" in str(failure)


def test_one_failure_leaves_the_others_alone(tmp_path):
    experiments = [small([1], "--learning-rate -1"), small([2])]
    (failure,) = run_all(experiments, tmp_path, jobs=2)
    assert "exit code 2" in str(failure)
    assert "--learning-rate" in str(failure)
    assert (experiments[1].run_dir(tmp_path, 2) / "evaluation.csv").exists()


def test_a_run_has_one_process_at_a_time(tmp_path):
    experiment = small([1])
    run_dir = experiment.run_dir(tmp_path, 1)
    with runner.only_one(run_dir) as lock:
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(2)"], pass_fds=[lock]
        )
    start = time.perf_counter()  # the worker is gone; what it started is not
    with runner.only_one(run_dir):
        assert orphan.poll() is not None or time.perf_counter() - start > 1
    orphan.wait()


@pytest.mark.slow
def test_a_lost_worker_of_ray_is_replaced(tmp_path):
    pytest.importorskip("ray")
    experiment = small([1])
    program = (
        "import sys; from pathlib import Path; from tests.test_benchmarks import small; "
        "from benchmarks.runner import run_all; "
        "sys.exit(len(run_all([small([1])], Path(sys.argv[1]), 1, 'local')))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "lost")], cwd=ROOT)
    run_dir = experiment.run_dir(tmp_path / "lost", 1)
    while not (run_dir / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    training = subprocess.check_output(["pgrep", "-f", str(run_dir)], text=True).split()[0]
    status = (f"/proc/{training}/stat", "/proc/{}/stat")
    with open(status[0]) as file:
        worker = int(file.read().split()[3])
    os.kill(worker, signal.SIGKILL)
    os.kill(int(training), signal.SIGKILL)
    assert process.wait() == 0
    run_seed(experiment, tmp_path / "whole", 1)
    whole = experiment.run_dir(tmp_path / "whole", 1)
    assert without_seconds(run_dir / "episodes.csv") == without_seconds(whole / "episodes.csv")
    assert same_state(load(run_dir), load(whole))


# --- The fork of the README


@pytest.fixture(scope="module")
def td3(tmp_path_factory):
    """Apply the patch with the README's own command, import what comes of it."""
    folder = tmp_path_factory.mktemp("fork")
    command = re.search(r"^    (cp ddpg_continuous.py .*td3.patch)$", README, re.M)[1]
    (folder / "benchmarks").mkdir()
    for name in ("ddpg_continuous.py", "benchmarks/td3.patch"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(command, shell=True, check=True, cwd=folder)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("td3_continuous")
    sys.path.remove(str(folder))


def test_fork_to_td3_runs(td3, tmp_path, capsys):
    assert td3.main([*SMALL["ddpg_continuous"], "--run-dir", str(tmp_path / "run")]) == 0
    assert "evaluation: mean return" in capsys.readouterr().out
    assert td3.main(["--policy-delay", "0"]) == 2


@pytest.mark.parametrize("delayed", [False, True])
def test_fork_to_td3_is_td3(td3, delayed):
    """Clipped double Q-learning, target policy smoothing, delayed updates (Fujimoto 2018)."""
    args = td3.Args(hidden_sizes=(8, 8), batch_size=4, compile=False, tau=0.5)
    agent = td3.Agent(td3.make_env("Pendulum-v1"), args)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in agent.target_critic.parameters():
            parameter.uniform_(-1, 1)
    for _ in range(10):
        s, s_next, a = rng.normal(size=3), rng.normal(size=3), rng.uniform(-1, 1, 1)
        agent.remember(s, a, rng.normal(), s_next, bool(rng.integers(2)))
    batch = agent.buffer.sample(4, rng)
    noise = torch.from_numpy(rng.normal(0, 1, (4, 1)).astype(np.float32))
    s, a, r, s_next, terminated = agent.buffer.columns(batch)
    s, s_next = agent.normalizer(s), agent.normalizer(s_next)
    with torch.no_grad():
        a_next = torch.clip(agent.target_actor(s_next) + noise, -1, 1)
        both = agent.target_critic.q1(s_next, a_next), agent.target_critic.q2(s_next, a_next)
        y = r + 0.99 * (1 - terminated) * torch.minimum(*both)
        wrong = [q(s, a) - y for q in (agent.critic.q1, agent.critic.q2)]
        expected = sum((error**2).mean() for error in wrong)
    parts = "actor", "target_actor", "target_critic", "critic"
    before = {name: [p.clone() for p in getattr(agent, name).parameters()] for name in parts}
    loss = agent.update(batch, noise, delayed)[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    moved = {
        name: not all(map(torch.equal, before[name], getattr(agent, name).parameters()))
        for name in parts
    }
    assert moved == dict.fromkeys(parts[:3], not delayed) | {"critic": True}
