"""What every script does alike: command line, outputs, resume, play, tracking, errors."""

import ast
import csv
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
import time
import tomllib

import numpy as np
import pytest
import torch

import ddpg_continuous as ddpg
from tests.conftest import ROOT, SCRIPTS, SMALL, load, run_here, same_state, start, without_seconds

EVALUATION = r"evaluation: mean return -?\d+\.\d ± \d+\.\d over \d+ episodes\n$"


def everything():
    """Return all that the working folder holds."""
    return sorted(os.walk("."))


# --- The files


def definitions(script):
    """Return the source of each top-level definition of a script, by name."""
    source = (ROOT / f"{script}.py").read_text()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign):
            found[node.targets[0].id] = ast.get_source_segment(source, node)
    return found


def test_same_name_same_bytes():
    seen = {}
    for script in SCRIPTS:
        for name, source in definitions(script).items():
            if name not in ("Args", "Agent", "train"):
                assert seen.setdefault(name, source) == source, f"{name} in {script}.py"


def test_same_harness():
    harnesses = {
        (ROOT / f"{script}.py").read_text().split("\n# The harness:")[1] for script in SCRIPTS
    }
    assert len(harnesses) == 1


def test_same_common_arguments():
    columns = []
    for script in SCRIPTS:
        source = definitions(script)["Args"]
        columns.append(re.findall(r"^    (\w+: [^=]+)=", source, re.M)[:12])
    assert len({tuple(column) for column in columns}) == 1


def test_every_argument_is_read(script):
    source = (ROOT / f"{script}.py").read_text()
    for name in re.findall(r"^    (\w+): .* = ", definitions(script)["Args"], re.M):
        assert re.search(rf"args\.{name}\b", source), name


def test_inline_dependencies_are_the_requirements(script):
    block = (ROOT / f"{script}.py").read_text().split("# ///")[1]
    lines = [line.removeprefix("#").strip() for line in block.splitlines()[1:]]
    inline = set(tomllib.loads("\n".join(lines))["dependencies"])
    requirements = set((ROOT / "requirements.txt").read_text().split())
    assert all("==" in line for line in requirements)
    assert {line for line in requirements if not line.startswith("pytest")} == inline


# --- A run and what it leaves


def test_run_leaves_its_outputs(script, tmp_path, capsys):
    assert run_here(script, *SMALL[script], "--run_dir", "run", "--eval_episodes", 3) == 0
    assert re.search(EVALUATION, capsys.readouterr().out)
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("args.json", "checkpoint.pt", "episodes.csv", "evaluation.csv", "learning_curve.png")
    }
    content = json.loads((run / "args.json").read_text())
    assert content["script"] == script
    assert content["args"]["total_timesteps"] == 1200
    with open(run / "episodes.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ["episode", "timestep", "return", "length", "seconds"]
    assert list(rows[0])[:5] == columns
    assert [int(row["episode"]) for row in rows] == list(range(1, len(rows) + 1))
    assert np.cumsum([int(row["length"]) for row in rows]).tolist() == [
        int(row["timestep"]) for row in rows
    ]
    for name in list(rows[0])[5:]:
        assert np.isfinite(float(rows[-1][name])), name
    with open(run / "evaluation.csv") as file:
        assert [int(row["seed"]) for row in csv.DictReader(file)] == [10_000, 10_001, 10_002]
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_default_run_dir(capsys):
    flags = ("--env-id", "tests.environments:Terminates-v0", "--total-timesteps", 20)
    assert run_here("random_baseline", *flags, "--seed", 3) == 0
    (name,) = os.listdir("runs")
    assert re.fullmatch(r"tests\.environments-Terminates-v0__random_baseline__3__[\d_-]+", name)


def test_same_seed_same_run(script, tmp_path):
    for name in ("one", "two"):
        assert run_here(script, *SMALL[script], "--run-dir", name, "--seed", 5) == 0
    assert run_here(script, *SMALL[script], "--run-dir", "other", "--seed", 6) == 0
    csvs = [without_seconds(tmp_path / name / "episodes.csv") for name in ("one", "two", "other")]
    assert csvs[0] == csvs[1] != csvs[2]
    assert same_state(load(tmp_path / "one"), load(tmp_path / "two"))


def test_help_shows_the_algorithm_and_every_default(script, capsys):
    assert run_here(script, "--help") == 0
    out = capsys.readouterr().out
    assert "Algorithm" in out and "←" in out or "Uniform" in out
    fields = re.findall(r"^    (\w+): .* = ", definitions(script)["Args"], re.M)
    for name in fields:
        assert "--" + name.replace("_", "-") in out
    assert out.count("(default:") >= len(fields)


def test_play(script, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    run_here(script, *SMALL[script], "--run-dir", "run")
    trained = capsys.readouterr().out.splitlines()[-1]
    before = everything()
    assert run_here(script, "--play", "run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == trained
    assert everything() == before
    assert run_here(script, "--play", "run", "--capture-video", "--eval-episodes", 2) == 0
    assert len(list((tmp_path / "run" / "videos").glob("*.mp4"))) == 2


def test_videos(script, tmp_path):
    assert run_here(script, *SMALL[script], "--run-dir", "run", "--capture-video") == 0
    videos = sorted(path.name for path in (tmp_path / "run" / "videos").iterdir())
    assert videos == ["after-training-episode-0.mp4", "before-training-episode-0.mp4"]
    sizes = [(tmp_path / "run" / "videos" / name).stat().st_size for name in videos]
    assert min(sizes) > 1000


def test_offline_tracking(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run_here(script, *SMALL[script], "--run-dir", "run", "--track") == 0
    assert "going on without" not in capsys.readouterr().err
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_failing_tracking_stops_nothing(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    assert run_here(script, *SMALL[script], "--run-dir", "run", "--track") == 0
    captured = capsys.readouterr()
    assert "going on without Weights & Biases" in captured.err
    assert re.search(EVALUATION, captured.out)


def test_without_tracking_wandb_is_not_imported(script, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert run_here(script, *SMALL[script], "--run-dir", "run") == 0
    assert "wandb" not in sys.modules


# --- Interruption


def wait_for(process, run, condition):
    """Wait until a run has come so far."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "episodes.csv").exists() and condition():
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended too soon: {process.communicate()}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_resumed_is_as_never_stopped(script, tmp_path, more=()):
    """SIGKILL at three moments, each run continued from where it was killed."""
    flags = [*SMALL[script], "--total-timesteps", 3000, "--checkpoint-every", 300, *more]
    with start(script, *flags, "--run-dir", "whole") as process:
        process.communicate()
    assert process.returncode == 0
    run = tmp_path / "killed"
    process = start(script, *flags, "--run-dir", run)
    for rows in (1, 5, 9):
        wait_for(
            process, run, lambda rows=rows: (run / "episodes.csv").read_text().count("\n") > rows
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(script, "--resume", run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(EVALUATION, out)
    whole = tmp_path / "whole"
    assert without_seconds(run / "episodes.csv") == without_seconds(whole / "episodes.csv")
    assert same_state(load(run), load(whole))
    assert (run / "evaluation.csv").read_text() == (whole / "evaluation.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("ddpg_continuous", ["--compile"]),
        ("ddpg_continuous", ["--compile", "--env-id", "LunarLanderContinuous-v3"]),
        ("ddpg_continuous", ["--env-id", "HalfCheetah-v5", "--total-timesteps", "12000"]),
        ("ddpg_continuous", ["--env-id", "Hopper-v5", "--batch-norm"]),
        ("dqn_shower", ["--compile", "--env-id", "LunarLander-v3"]),
        ("a3c_cartpole", ["--env-id", "LunarLander-v3", "--total-timesteps", "12000"]),
    ],
)
def test_killed_and_resumed_elsewhere(script, flags, tmp_path):
    """Compiled, on Box2D, on MuJoCo."""
    test_killed_and_resumed_is_as_never_stopped(script, tmp_path, flags)


def test_rows_after_the_checkpoint_are_dropped(script, tmp_path):
    """A kill between two checkpoints, and in mid-row, simulated to the byte."""
    flags = [*SMALL[script], "--total-timesteps", 2000]
    assert run_here(script, *SMALL[script], "--run-dir", "half") == 0
    assert run_here(script, *flags, "--run-dir", "whole") == 0
    half, whole = tmp_path / "half" / "episodes.csv", tmp_path / "whole" / "episodes.csv"
    half.write_text(half.read_text() + "99,1200,1.0,200,1.0,0,0,0\n100,41")
    assert run_here(script, "--resume", "half", "--total-timesteps", 2000) == 0
    rows = without_seconds(half)[1:]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    steps = [int(row[1]) for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] <= 2000
    assert (
        json.loads((tmp_path / "half" / "args.json").read_text())["args"]["total_timesteps"] == 2000
    )
    assert len(without_seconds(whole)) > 1


def test_killed_before_the_first_checkpoint(script, tmp_path):
    assert run_here(script, *SMALL[script], "--run-dir", "run") == 0
    lines = without_seconds(tmp_path / "run" / "episodes.csv")
    os.remove(tmp_path / "run" / "checkpoint.pt")
    assert run_here(script, "--resume", "run") == 0
    assert without_seconds(tmp_path / "run" / "episodes.csv") == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(script, number, tmp_path):
    flags = [*SMALL[script], "--total-timesteps", 10_000_000]
    run = tmp_path / "run"
    process = start(script, *flags, "--run-dir", run)
    wait_for(process, run, lambda: (run / "episodes.csv").read_text().count("\n") > 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"--resume {run}" in out
    assert "Traceback" not in err
    last = without_seconds(run / "episodes.csv")[-1]
    agent = load(run)["agent"]
    episode = agent["episode"] if "episode" in agent else sum(agent["episodes"])
    assert [episode, agent["timestep"]] == [int(last[0]), int(last[1])]
    assert (run / "learning_curve.png").exists()


def test_interrupt_in_the_last_episode_stops_before_the_evaluation(script, monkeypatch, capsys):
    module = importlib.import_module(script)
    train = module.train

    def interrupted(*args):
        yield from train(*args)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "train", interrupted)
    assert run_here(script, *SMALL[script], "--run-dir", "run") == 130
    assert "stopped after 1200 steps; go on with --resume run" in capsys.readouterr().out
    monkeypatch.setattr(module, "train", train)
    assert run_here(script, "--resume", "run") == 0
    assert "evaluation: " in capsys.readouterr().out


def test_resume_of_a_finished_run_only_evaluates(script, tmp_path):
    run_here(script, *SMALL[script], "--run-dir", "run")
    before = (tmp_path / "run" / "episodes.csv").read_bytes(), load(tmp_path / "run")
    assert run_here(script, "--resume", "run", "--eval-episodes", 2) == 0
    assert (tmp_path / "run" / "episodes.csv").read_bytes() == before[0]
    assert same_state(load(tmp_path / "run"), before[1])
    assert (tmp_path / "run" / "evaluation.csv").read_text().count("\n") == 3


# --- Wrong input: one line that names it, exit code 2, nothing written

WRONG = [
    (["--env-id", "Pendlum-v1"], "Pendulum"),
    (["--env-id", "no_such_module:Env-v0"], "no_such_module"),
    (["--env-id", "Pendulum-v99"], "v99"),
    (["--seed", "-1"], "--seed"),
    (["--seed", str(2**64)], "--seed"),
    (["--total-timesteps", "0"], "--total-timesteps"),
    (["--total-timesteps", "many"], "--total-timesteps"),
    (["--eval-episodes", "0"], "--eval-episodes"),
    (["--checkpoint-every", "-5"], "--checkpoint-every"),
    (["--no-such-flag"], "--no-such-flag"),
    (["--resume", "nowhere"], "nowhere"),
    (["--play", "nowhere"], "nowhere"),
    (["--resume", "a", "--play", "b"], "--resume"),
    (["--capture-video", "--env-id", "tests.environments:Truncates-v0"], "--capture-video"),
]
SPACES = ("DictObservations", "ImageObservations", "DiscreteActions")
NOT_NEGATIVE = (
    *("--actor-learning-rate", "--critic-learning-rate", "--critic-weight-decay", "--gamma"),
    *("--tau", "--buffer-size", "--batch-size", "--learning-starts", "--noise-theta"),
    *("--noise-sigma", "--noise-dt", "--noise-decay-end", "--noise-final"),
)
NOT_ZERO = (
    *("--actor-learning-rate", "--critic-learning-rate", "--buffer-size", "--batch-size"),
    *("--learning-starts", "--noise-dt"),
)
NOT_NEGATIVE_DQN = (
    *("--learning-rate", "--gamma", "--target-update", "--temperature", "--epsilon-start"),
    *("--epsilon-end", "--epsilon-fraction", "--buffer-size", "--batch-size", "--learning-starts"),
    "--learning-rate-decay-start",
)
NOT_ZERO_DQN = (
    *("--learning-rate", "--target-update", "--temperature", "--buffer-size", "--batch-size"),
    "--learning-starts",
)
NOT_NEGATIVE_A3C = (
    *("--learning-rate", "--rmsprop-alpha", "--rmsprop-epsilon", "--gamma"),
    *("--t-max", "--entropy-coef", "--value-coef", "--max-grad-norm", "--num-workers"),
)
NOT_ZERO_A3C = (
    *("--learning-rate", "--rmsprop-epsilon", "--t-max", "--max-grad-norm", "--num-workers"),
)
WRONG_DDPG = [
    *[(["--env-id", f"tests.environments:{name}-v0"], "Box") for name in SPACES],
    *[([flag, "-1"], flag) for flag in NOT_NEGATIVE],
    *[([flag, "0"], flag) for flag in NOT_ZERO],
    *[([flag, "nan"], flag) for flag in ("--actor-learning-rate", "--gamma", "--noise-sigma")],
    (["--env-id", "tests.environments:UnboundedActions-v0"], "bounded"),
    (["--env-id", "CartPole-v1"], "Discrete(2)"),
    (["--critic-learning-rate", "inf"], "--critic-learning-rate"),
    (["--gamma", "1.01"], "--gamma 1.01"),
    (["--tau", "2"], "--tau 2.0"),
    (["--noise-final", "1.5"], "--noise-final"),
    (["--noise-theta", "2"], "--noise-theta"),
    (["--hidden-sizes", "0", "10"], "--hidden-sizes"),
    (["--hidden-sizes", "10"], "--hidden-sizes"),
    (["--batch-size", "65", "--buffer-size", "64"], "--batch-size 65"),
    (["--batch-size", "1", "--batch-norm"], "--batch-size 1"),
    (["--learning-starts", "3000"], "--learning-starts 3000"),
    (["--noise", "pink"], "pink"),
    (["--device", "tpu"], "tpu"),
    (["--action-layer", "3"], "3"),
]
WRONG_DQN = [
    *[(["--env-id", f"tests.environments:{name}-v0"], "Box") for name in SPACES[:2]],
    (["--env-id", "Pendulum-v1"], "Discrete"),
    *[([flag, "-1"], f"{flag} -1") for flag in NOT_NEGATIVE_DQN],
    *[([flag, "0"], f"{flag} 0") for flag in NOT_ZERO_DQN],
    *[([flag, "nan"], flag) for flag in ("--learning-rate", "--target-update", "--temperature")],
    (["--learning-rate", "inf"], "--learning-rate"),
    (["--gamma", "1.01"], "--gamma 1.01"),
    (["--target-update", "1.5"], "--target-update 1.5: must be in (0, 1), or a whole number"),
    (["--target-update", "inf"], "--target-update"),
    (["--target-update", "2001"], "--target-update 2001"),
    (["--epsilon-start", "0.1", "--epsilon-end", "0.2"], "--epsilon-end 0.2"),
    (["--epsilon-start", "1.1"], "--epsilon-start"),
    (["--epsilon-fraction", "1.1"], "--epsilon-fraction"),
    (["--hidden-sizes", "0", "10"], "--hidden-sizes"),
    (["--batch-size", "65", "--buffer-size", "64"], "--batch-size 65"),
    (["--learning-starts", "3000"], "--learning-starts 3000"),
    (["--exploration", "greedy"], "greedy"),
    (["--device", "tpu"], "tpu"),
]


WRONG_A3C = [
    *[(["--env-id", f"tests.environments:{name}-v0"], "Box") for name in SPACES[:2]],
    (["--env-id", "Pendulum-v1"], "Discrete"),
    *[([flag, "-1"], f"{flag} -1") for flag in NOT_NEGATIVE_A3C],
    *[([flag, "0"], f"{flag} 0") for flag in NOT_ZERO_A3C],
    *[([flag, "nan"], flag) for flag in ("--learning-rate", "--entropy-coef", "--max-grad-norm")],
    *[([flag, "inf"], flag) for flag in ("--learning-rate", "--entropy-coef", "--value-coef")],
    (["--gamma", "1.01"], "--gamma 1.01"),
    (["--rmsprop-alpha", "1"], "--rmsprop-alpha 1"),
    (["--num-workers", "3", "--total-timesteps", "2"], "--num-workers 3"),
    (["--hidden-sizes", "0", "10"], "--hidden-sizes"),
    (["--optimizer", "sgd"], "sgd"),
]


def check_usage_error(script, flags, named, capsys):
    before = everything()
    capsys.readouterr()
    assert run_here(script, *flags) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err and not captured.out
    assert everything() == before


@pytest.mark.parametrize(("flags", "named"), WRONG)
def test_wrong_input(script, flags, named, capsys):
    check_usage_error(script, flags, named, capsys)


@pytest.mark.parametrize(("flags", "named"), WRONG_DDPG)
def test_wrong_input_ddpg(flags, named, capsys):
    check_usage_error("ddpg_continuous", ["--total-timesteps", "2000", *flags], named, capsys)


@pytest.mark.parametrize(("flags", "named"), WRONG_DQN)
def test_wrong_input_dqn(flags, named, capsys):
    check_usage_error("dqn_shower", ["--total-timesteps", "2000", *flags], named, capsys)


@pytest.mark.parametrize(("flags", "named"), WRONG_A3C)
def test_wrong_input_a3c(flags, named, capsys):
    check_usage_error("a3c_cartpole", ["--total-timesteps", "2000", *flags], named, capsys)


@pytest.mark.parametrize("script", ["ddpg_continuous", "dqn_shower"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_missing_device(script, device, capsys):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}[device]
    if there:
        pytest.skip(f"{device} is there")
    check_usage_error(script, ["--device", device], f"--device {device}", capsys)


def test_run_dir_that_is_taken(script, tmp_path, capsys):
    run_here(script, *SMALL[script], "--run-dir", "run")
    check_usage_error(script, [*SMALL[script], "--run-dir", "run"], "--run-dir run", capsys)
    (tmp_path / "file").write_text("")
    check_usage_error(script, [*SMALL[script], "--run-dir", "file"], "--run-dir file", capsys)


def test_resume_of_something_else(script, tmp_path, capsys):
    run_here(script, *SMALL[script], "--run-dir", "run")
    other = SCRIPTS[SCRIPTS.index(script) - 1]
    run_here(other, *SMALL[other], "--run-dir", "other")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()

    for flag in ("--resume", "--play"):
        check_usage_error(script, [flag, "other"], f"{other}.py", capsys)
        flags = [flag, "run", "--env-id", "MountainCarContinuous-v0"]
        check_usage_error(script, flags, "--env-id MountainCarContinuous-v0", capsys)
        check_usage_error(script, [flag, "run", "--seed", "77"], "--seed 77", capsys)
        for broken in (whole[: len(whole) // 2], b"", b"hello", pickle.dumps({"a": 1})):
            checkpoint.write_bytes(broken)
            check_usage_error(script, [flag, "run"], "checkpoint.pt", capsys)
            assert checkpoint.read_bytes() == broken
        shutil.copy(tmp_path / "other" / "checkpoint.pt", checkpoint)
        check_usage_error(script, [flag, "run"], "checkpoint.pt", capsys)
        checkpoint.write_bytes(whole)
    flags = ["--resume", "run", "--total-timesteps", "1000"]
    check_usage_error(script, flags, "--total-timesteps 1000", capsys)
    content = json.loads((tmp_path / "run" / "args.json").read_text())
    del content["args"]["seed"]
    (tmp_path / "run" / "args.json").write_text(json.dumps(content))
    check_usage_error(script, ["--resume", "run"], "args.json", capsys)
    (tmp_path / "run" / "args.json").write_text("{}")
    check_usage_error(script, ["--resume", "run"], "args.json", capsys)


def test_checkpoint_cannot_execute(script, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    run_here(script, *SMALL[script], "--run-dir", "run")
    torch.save({"script": script, "agent": Evil()}, tmp_path / "run" / "checkpoint.pt")
    check_usage_error(script, ["--resume", "run"], "checkpoint.pt", capsys)
    assert not (tmp_path / "executed").exists()


def test_play_of_a_run_without_checkpoint(script, tmp_path, capsys):
    run_here(script, *SMALL[script], "--run-dir", "run")
    os.remove(tmp_path / "run" / "checkpoint.pt")
    check_usage_error(script, ["--play", "run"], "checkpoint.pt", capsys)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    flags = ["--env-id", "tests.environments:Truncates-v0", "--hidden-sizes", 4, 4]
    flags += ["--no-compile", "--learning-starts", 10, "--batch-size", 50]
    assert run_here("ddpg_continuous", *flags, "--total-timesteps", 70, "--run-dir", "run") == 0
    good = load(tmp_path / "run")
    sample = ddpg.ReplayBuffer.sample

    def poisoned(*arguments):
        return sample(*arguments) * torch.inf

    monkeypatch.setattr(ddpg.ReplayBuffer, "sample", poisoned)
    assert run_here("ddpg_continuous", "--resume", "run", "--total-timesteps", 140) == 1
    assert "step 71" in capsys.readouterr().err
    assert same_state(load(tmp_path / "run"), good)


NAN_REWARD = {
    "a3c_cartpole": ("NanRewardDiscrete", ["--num-workers", 1]),
    "ddpg_continuous": ("NanReward", ["--no-compile", "--learning-starts", 10]),
    "dqn_shower": ("NanRewardDiscrete", ["--learning-starts", 10]),
}


@pytest.mark.parametrize("script", NAN_REWARD)
def test_nan_reward_stops_a_run(script, tmp_path, capsys):
    name, flags = NAN_REWARD[script]
    flags = [*flags, "--env-id", f"tests.environments:{name}-v0", "--total-timesteps", 100]
    assert run_here(script, *flags, "--run-dir", "run") == 1
    assert re.search("reward became nan at step 20", capsys.readouterr().err)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
