"""The evidence: the benchmarks' own arithmetic, and that the README says what was measured."""

import copy
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks import runner, tables
from benchmarks.ablations import GROUPS
from benchmarks.learning import EXPERIMENTS, QUICK
from benchmarks.runner import RESULTS, Experiment, read_csv, run_all, run_seed
from tests.conftest import ROOT, SMALL, check_same_run, run_here

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
        script, _, timesteps, *_ = row["experiment"].split()
        assert row["timesteps"] == timesteps
        assert int(row["seed"]) > 10 or script == "random_baseline"
        if not row["version"]:  # measured with the code as it is, not with that of an older commit
            assert row["flags"] == experiments[row["experiment"]].flags
            seeds.setdefault(row["experiment"], []).append(int(row["seed"]))
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
    assert f'log({{"{sweep["metric"]["name"]}":' in (ROOT / sweep["program"]).read_text()


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
    (run_dir / "args.json").write_text('{"total_timesteps": 2000}')


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
    old = [{"experiment": e, "x": x, "version": "v"} for e, x in (("a", 1), ("b", 2), ("b", 3))]
    runner.put_rows(tmp_path / "rows.csv", old)
    runner.put_rows(tmp_path / "rows.csv", [{"experiment": "b", "x": 4}])
    found = [tuple(row.values()) for row in read_csv(tmp_path / "rows.csv")]
    assert found == [("a", "1", "v"), ("b", "4", "")]


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
    flags += " --checkpoint-every 0.1 --learning-starts 200 --hidden-sizes 8 8 --batch-size 8"
    return Experiment("dqn_shower", "CartPole-v1", 2000, seeds, 2, flags)


def start(call, runs):
    """Call something, which writes to a folder, in a process of its own."""
    imports = (
        "from benchmarks.runner import measure, run_all; from tests.test_benchmarks import small"
    )
    program = f"import sys; from pathlib import Path; {imports}; runs = Path(sys.argv[1]); {call}"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(runs)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def wait_until_it_learns(process, experiment, runs):
    while runner.timestep_so_far(experiment, runs, 1) < 500:
        assert process.poll() is None
        time.sleep(0.01)


def check_same_runs(experiment, one, other):
    check_same_run(experiment.run_dir(one, 1), experiment.run_dir(other, 1))


def test_interrupted_runs_are_resumed(tmp_path):
    experiment, runs, whole = small([1]), tmp_path / "killed", tmp_path / "whole"
    process = start("run_all([small([1])], runs, 1)", runs)
    wait_until_it_learns(process, experiment, runs)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (experiment.run_dir(runs, 1) / "evaluation.csv").exists()
    for folder in (runs, whole):
        assert run_all([experiment], folder, jobs=2) == []
    check_same_runs(experiment, runs, whole)
    checkpoint = experiment.run_dir(runs, 1) / "checkpoint.pt"
    finished = checkpoint.stat().st_mtime_ns
    assert run_all([experiment], runs, jobs=2) == []
    (failure,) = run_all([small([1], "--gamma 0.5")], runs, jobs=1)
    assert "other arguments" in str(failure)
    assert checkpoint.stat().st_mtime_ns == finished


def test_ctrl_c_stops_and_begins_no_more(tmp_path):
    experiment = small((1, 2, 3))
    call = "sys.exit(measure([small((1, 2, 3))], runs, runs, 'learning', 1, None))"
    process = start(call, tmp_path)
    wait_until_it_learns(process, experiment, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert not experiment.run_dir(tmp_path, 3).exists()


def test_one_failure_leaves_the_others_alone(tmp_path):
    experiments = [small([1], "--learning-rate -1"), small([2])]
    (failure,) = run_all(experiments, tmp_path, jobs=2)
    assert "exit code 2" in str(failure)
    assert "learning_rate" in str(failure)
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
    experiment, runs = small([1]), tmp_path / "lost"
    process = start("sys.exit(len(run_all([small([1])], runs, 1, 'local')))", runs)
    wait_until_it_learns(process, experiment, runs)
    run_dir = str(experiment.run_dir(runs, 1))
    training = subprocess.check_output(["pgrep", "-f", run_dir], text=True).split()[0]
    with open(f"/proc/{training}/stat") as file:
        worker = int(file.read().split()[3])
    os.kill(worker, signal.SIGKILL)
    os.kill(int(training), signal.SIGKILL)
    process.communicate()
    assert process.returncode == 0
    run_seed(experiment, tmp_path / "whole", 1)
    check_same_runs(experiment, runs, tmp_path / "whole")


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


def test_fork_to_td3_runs(td3, capsys):
    assert run_here(td3, *SMALL["ddpg_continuous"], "--run-dir", "run") == 0
    assert "evaluation: mean return" in capsys.readouterr().out
    row = read_csv(Path("run/episodes.csv"))[-1]
    assert float(row["critic_loss"]) > 0 and row["actor_loss"]
    assert run_here(td3, "--policy-delay", "0") == 2


def td3_by_the_paper(agent, batch, delayed):
    """Clipped double Q-learning, target policy smoothing, delayed updates (Fujimoto 2018), with
    torch's own Adam; the agent's networks are left alone. Return networks and losses."""
    parts = ("actor", "critic", "target_actor", "target_critic")
    nets = {name: copy.deepcopy(getattr(agent, name)) for name in parts}
    actor, critic, target_actor, target_critic = nets.values()
    s, a, r, s_next, terminated = batch.values()

    with torch.no_grad():
        noise = torch.clip(0.2 * torch.randn(a.shape), -0.5, 0.5)
        a_next = torch.clip(target_actor(s_next) + noise, -1, 1)
        x = torch.hstack((s_next, a_next))
        q_next = torch.minimum(target_critic.q1(x), target_critic.q2(x))[:, 0]
        y = torch.where(terminated == 1, r, r + 0.98 * q_next)
    x = torch.hstack((s, a))
    critic_loss = sum((q(x)[:, 0] - y).pow(2).mean() for q in (critic.q1, critic.q2))
    critic_loss.backward()
    torch.optim.Adam(critic.parameters(), 1e-3).step()
    losses = {"critic_loss": critic_loss}
    if not delayed:
        losses["actor_loss"] = -critic.q1(torch.hstack((s, actor(s)))).mean()
        losses["actor_loss"].backward()
        torch.optim.Adam(actor.parameters(), 1e-4).step()
        with torch.no_grad():
            for target, net in ((target_actor, actor), (target_critic, critic)):
                for old, new in zip(target.parameters(), net.parameters()):
                    old.copy_(0.5 * new + 0.5 * old)
    return nets, losses


@torch._inductor.config.patch(fallback_random=True)  # compiled: the noise of the eager one
@pytest.mark.parametrize("compile", [False, True])
def test_fork_to_td3_is_td3(td3, compile):
    for delayed in (False, True):
        args = td3.Args(hidden_sizes=(8, 8), batch_size=16, tau=0.5)
        agent = td3.Agent(td3.make_env("Pendulum-v1"), args)
        update = td3.compiled(agent.update) if compile else agent.update
        rng = np.random.default_rng(0)
        with torch.no_grad():  # Q₁ and Q₂ apart, and the actions of μ′ near the ends
            for net in (agent.critic, agent.target_critic, agent.target_actor):
                for parameter in net.parameters():
                    parameter.uniform_(-1, 1)
        for _ in range(20):
            s, s_next, a = rng.normal(size=3), rng.normal(size=3), rng.uniform(-1, 1, 1)
            agent.buffer.add(s, a, rng.normal(), s_next, rng.integers(2))
        batch = agent.buffer.sample(args.batch_size, rng, "cpu")
        torch.manual_seed(0)
        nets, losses = td3_by_the_paper(agent, batch, delayed)
        torch.manual_seed(0)
        logged = update(batch, delayed)
        assert logged.keys() == losses.keys() | {"q"}
        for name, loss in losses.items():
            torch.testing.assert_close(logged[name], loss.detach(), rtol=1e-4, atol=1e-5)
        for name, net in nets.items():
            found, expected = getattr(agent, name).state_dict(), net.state_dict()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
