"""What every script does alike: command line, outputs, resume, play, tracking, errors.

The harness is the same in all, to the byte, which a test here holds; so what is its own is tested
with the script that is fastest to run.
"""

import ast
import contextlib
import csv
import functools
import importlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import random_baseline
from tests.conftest import (
    ROOT,
    SCRIPTS,
    SMALL,
    check_same_run,
    load,
    read_csv,
    run_here,
    same_state,
    start,
    wait_for,
    without_seconds,
)

FASTEST = "random_baseline"
RUN = [*SMALL[FASTEST], "--run-dir", "run"]
EVALUATION = r"evaluation: mean return -?\d+\.\d ± \d+\.\d over \d+ episodes; the run is in "


@functools.cache
def trained(script):
    """Train a script once for several tests; return the folder of the run, and what it printed."""
    run_dir = Path(tempfile.mkdtemp(), "run")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run_here(script, *SMALL[script], "--run_dir", run_dir, "--eval_episodes", 3) == 0
    return run_dir, out.getvalue()


@pytest.fixture
def run(script, tmp_path):
    """Put a finished run of a script into the folder run; return it, and what it printed."""
    run_dir, out = trained(script)
    return shutil.copytree(run_dir, tmp_path / "run"), out.replace(str(run_dir), "run")


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
            if name not in ("Args", "Agent", "train", "make_env"):
                assert seen.setdefault(name, source) == source, f"{name} in {script}.py"


def test_same_harness_and_common_arguments():
    sources = [(ROOT / f"{script}.py").read_text() for script in SCRIPTS]
    assert len({re.search(r"\n# The harness.*\nif __name__", s, re.S)[0] for s in sources}) == 1
    columns = [re.findall(r"^    (\w+: [^=]+)=", definitions(s)["Args"], re.M) for s in SCRIPTS]
    assert len({tuple(column[:12]) for column in columns}) == 1


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


def test_help_shows_the_algorithm_and_every_default(script, capsys):
    assert run_here(script, "--help") == 0
    out = capsys.readouterr().out
    assert "for episode" in out or "for each actor-learner" in out
    fields = re.findall(r"^    (\w+): .* = ", definitions(script)["Args"], re.M)
    assert [name for name in fields if "--" + name.replace("_", "-") not in out] == []
    assert out.count("(default:") >= len(fields)


# --- A run and what it leaves


def test_run_leaves_its_outputs(script, run):
    run, out = run
    assert re.search(EVALUATION + "run\n$", out)
    assert {path.name for path in run.iterdir()} == {
        *("args.json", "checkpoint.pt", "episodes.csv", "evaluation.csv", "learning_curve.png")
    }
    assert json.loads((run / "args.json").read_text())["total_timesteps"] == 1200
    rows = list(csv.DictReader((run / "episodes.csv").read_text().splitlines()))
    assert list(rows[0])[:5] == ["episode", "timestep", "seconds", "return", "length"]
    assert [int(row["episode"]) for row in rows] == list(range(1, len(rows) + 1))
    steps = np.cumsum([int(row["length"]) for row in rows]).tolist()
    assert steps == [int(row["timestep"]) for row in rows]
    assert len(rows[0]) == {"random_baseline": 5, "dqn_shower": 7}.get(script, 8)
    assert all(np.isfinite(float(value)) for value in rows[-1].values())
    evaluation = list(csv.DictReader((run / "evaluation.csv").read_text().splitlines()))
    assert [int(row["seed"]) for row in evaluation] == [10_000, 10_001, 10_002]
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_default_run_dir():
    flags = ("--env-id", "tests.environments:Terminates-v0", "--total-timesteps", 20)
    for _ in range(2):
        assert run_here("random_baseline", *flags, "--seed", 3) == 0
    names = os.listdir("runs")
    assert len(names) == 2
    assert re.fullmatch(r"tests\.environments-Terminates-v0__random_baseline__3__[\d_-]+", names[0])


def test_play_and_videos(script, run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    before = everything()
    assert run_here(script, "--play", "run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == run[1].splitlines()[-1]
    assert everything() == before
    assert run_here(script, "--play", "run", "--eval-episodes", 1, "--capture-video") == 0
    (video,) = (tmp_path / "run" / "videos").iterdir()
    assert video.name == "rl-video-episode-0.mp4" and video.stat().st_size > 1000


def test_play_opens_a_window_where_there_is_a_screen(monkeypatch):
    """Also if the run was filmed."""
    assert run_here(FASTEST, *RUN, "--eval-episodes", 1, "--capture-video") == 0
    monkeypatch.setenv("DISPLAY", ":0")
    modes, make = [], gym.make
    monkeypatch.setattr(gym, "make", lambda id, **k: modes.append(k.get("render_mode")) or make(id))
    assert run_here(FASTEST, "--play", "run") == 0
    assert modes == ["human"]


def test_offline_tracking(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, log = [], wandb.Run.log

    def spy(run, row, **options):
        logged.append(row)
        assert run.config["total_timesteps"] == 1200 and run.offline
        assert run.id.endswith("-run")  # --resume goes on with it
        log(run, row, **options)

    monkeypatch.setattr(wandb.Run, "log", spy)
    assert run_here(FASTEST, *RUN, "--track", "--capture-video") == 0
    rows = load("run")["rows"]
    assert rows and logged[: len(rows)] == rows
    assert {name for row in logged[len(rows) :] for name in row} == {
        *("evaluation", "rl-video-episode-0", "rl-video-episode-1")
    }


def test_without_tracking_wandb_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it is an error
    assert run_here(FASTEST, *RUN) == 0
    with pytest.raises(ImportError):
        run_here(FASTEST, *RUN, "--run-dir", "tracked", "--track")


def sweep_arguments():
    """Return the sweep, and for each parameter the values to try, the ends of those that vary."""
    sweep = yaml.safe_load((ROOT / "benchmarks" / "sweep.yaml").read_text())
    values = {
        name: [given[key] for key in ("value", "min", "max") if key in given]
        + given.get("values", [])
        for name, given in sweep["parameters"].items()
    }
    return sweep, values


def test_sweep_is_a_command_line_that_its_script_takes():
    sweep, choices = sweep_arguments()
    script = importlib.import_module(sweep["program"].removesuffix(".py"))
    for name, values in choices.items():
        for value in values:
            chosen = {other: others[0] for other, others in choices.items()} | {name: value}
            args = script.parse_args([f"--{key}={value}" for key, value in chosen.items()])
            assert getattr(args, name) == value


def test_sweep_runs_offline_as_its_agent_starts_it(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep, choices = sweep_arguments()
    chosen = {name: {"value": values[0]} for name, values in choices.items()}
    chosen |= {"total_timesteps": {"value": 1000}, "eval_episodes": {"value": 1}}
    filled = create_sweep_command_args({"args": chosen})
    filled |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable]}
    filled |= {"program": [str(ROOT / sweep["program"])]}
    command = []
    for word in create_sweep_command(sweep["command"]):
        command += filled.get(word[2:-1], [word]) if word.startswith("${") else [word]
    offline = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "run1"}
    subprocess.run(command, check=True, env=os.environ | offline | {"CXX": "none"})
    (log,) = tmp_path.glob("wandb/offline-run-*/run-run1.wandb")
    assert sweep["metric"]["name"].encode() in log.read_bytes()


# --- Interruption


def check_killed_and_resumed(script, *flags, kills):
    """Kill a run when it has so many rows, go on with it; in the end it is as if never killed."""
    flags = [*SMALL[script], *flags, "--checkpoint-every", 0]
    assert run_here(script, *flags, "--run-dir", "whole") == 0
    for rows in kills:
        again = rows > kills[0]
        process = start(script, *(["--resume", "run"] if again else [*flags, "--run-dir", "run"]))
        wait_for(process, "run", rows)
        process.kill()
        process.communicate()
    assert run_here(script, "--resume", "run") == 0
    check_same_run("run", "whole")


def test_killed_and_resumed_is_as_never_stopped(script):
    kill = 3 if script == "ddpg_continuous" else 25  # about half of the run; it learns by then
    check_killed_and_resumed(script, "--seed", 6, kills=(kill,))
    runs = "whole", trained(script)[0]  # of another seed
    returns = [[row["return"] for row in load(run)["rows"][:3]] for run in runs]
    assert returns[0] != returns[1]  # what is always the same would pass, too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("ddpg_continuous", "--compile"),
        ("ddpg_continuous", "--compile --env-id LunarLanderContinuous-v3"),
        ("ddpg_continuous", "--env-id HalfCheetah-v5 --total-timesteps 12000"),
        ("dqn_shower", "--compile --env-id LunarLander-v3"),
        ("a3c_cartpole", "--env-id LunarLander-v3 --total-timesteps 12000"),
    ],
)
def test_killed_and_resumed_elsewhere(script, flags):
    """Compiled, on Box2D, on MuJoCo; three times."""
    flags = ["--total-timesteps", 2400, *flags.split()]
    check_killed_and_resumed(script, *flags, kills=(1, 4, 8))


def test_killed_while_a_checkpoint_is_written(tmp_path):
    """What is half-written never takes the place of the last checkpoint."""
    assert run_here(FASTEST, *RUN) == 0
    whole = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.tmp").write_bytes(whole[:500])
    (tmp_path / "run" / "episodes.csv").write_text("episode,times")
    (tmp_path / "run" / "args.json").write_text("{")
    assert run_here(FASTEST, "--resume", "run") == 0
    assert len(without_seconds(tmp_path / "run" / "episodes.csv")) == len(load("run")["rows"]) + 1
    assert json.loads((tmp_path / "run" / "args.json").read_text())["total_timesteps"] == 1200


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on():
    flags = [*RUN, "--total-timesteps", 10**7, "--checkpoint-every", 0]
    process = start(FASTEST, *flags)
    wait_for(process, "run", 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume run" in err and "Traceback" not in err
    rows = load("run")["rows"]
    assert len(rows) >= 2
    total = rows[-1]["timestep"] + 300
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", total) == 0
    assert load("run")["rows"][: len(rows)] == rows


def test_resume_of_a_finished_run_only_evaluates(tmp_path):
    run_here(FASTEST, *RUN)
    before = (tmp_path / "run" / "episodes.csv").read_bytes(), load("run")
    assert run_here(FASTEST, "--resume", "run", "--eval-episodes", 3) == 0
    assert (tmp_path / "run" / "episodes.csv").read_bytes() == before[0]
    assert same_state(load("run"), before[1])
    assert (tmp_path / "run" / "evaluation.csv").read_text().count("\n") == 4


def test_what_is_given_anew_wins():
    run_here(FASTEST, *RUN)
    args = random_baseline.parse_args(["--resume", "run", "--total-timesteps", "1500"])
    assert (args.total_timesteps, args.eval_episodes) == (1500, 2)
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", 1500) == 0
    assert json.loads(load("run")["args"])["total_timesteps"] == 1500
    timesteps = [row["timestep"] for row in load("run")["rows"]]
    assert timesteps == sorted(set(timesteps)) and 1200 < timesteps[-1] <= 1500


def test_checkpoints_come_every_so_many_seconds(monkeypatch):
    saves, save = [], random_baseline.save
    monkeypatch.setattr(
        random_baseline, "save", lambda *a: saves.append(time.monotonic()) or save(*a)
    )
    flags = ["--total-timesteps", 20_000, "--eval-episodes", 1]
    assert run_here(FASTEST, *flags, "--checkpoint-every", 0.1, "--run-dir", "a") == 0
    assert len(saves) > 4 and min(np.diff(saves[:-1])) >= 0.1
    saves.clear()
    assert run_here(FASTEST, *flags, "--checkpoint-every", 1000, "--run-dir", "b") == 0
    assert len(saves) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "score"),
    [
        ("ddpg_continuous", "--total-timesteps 10000 --eval-episodes 50", -150),  # random: −1,200
        ("a3c_cartpole", "--total-timesteps 300000 --num-workers 2 --eval-episodes 20", 450),
    ],
)
def test_it_learns(script, flags, score):
    assert run_here(script, *flags.split(), "--run-dir", "run") == 0
    returns = [float(row["return"]) for row in read_csv("run", "evaluation.csv")]
    assert np.mean(returns) >= score


# --- Wrong input: a message that names it, exit code 2, nothing written

NUMBERS = "seed total_timesteps eval_episodes checkpoint_every"
WRONG = {
    "all": [
        *[(f"--{name.replace('_', '-')} -1", name) for name in NUMBERS.split()],
        ("--env-id Pendlum-v1", "--env-id Pendlum-v1.*Pendulum"),
        ("--env-id no_such_module:Env-v0", "--env-id no_such_module:Env-v0"),
        ("--env-id Pendulum-v99", "--env-id Pendulum-v99"),
        ("--total-timesteps 0", "total_timesteps"),
        ("--total-timesteps many", "total.timesteps.*many"),
        ("--eval-episodes 0", "eval_episodes"),
        ("--checkpoint-every nan", "checkpoint_every"),
        ("--no-such-flag", "--no-such-flag"),
        ("--resume nowhere", "nowhere"),
        ("--play nowhere", "nowhere"),
        ("--resume runs --play other", "--play.*not allowed with.*--resume"),
        ("--resume runs --run-dir other", "--run-dir.*not allowed with.*--resume"),
    ],
    "ddpg_continuous": [
        ("actor_learning_rate critic_learning_rate noise_sigma", "-1 nan inf"),
        ("gamma tau learning_rate_final noise_theta noise_final", "-0.1 1.01 nan"),
        ("noise_final", "0"),
        ("batch_size buffer_size learning_starts hidden_sizes", "0 -1 1.5"),
        ("learning_starts", "30000"),
        ("device", "tpu"),
        ("env_id", "CartPole-v1"),
    ],
    "dqn_shower": [
        ("learning_rate epsilon_fraction", "0 -1 nan inf"),
        ("gamma tau learning_rate_final epsilon_final", "-0.1 1.01 nan"),
        (
            "batch_size buffer_size learning_starts target_network_frequency hidden_sizes",
            "0 -1 1.5",
        ),
        ("learning_starts", "30000"),
        ("device", "tpu"),
        ("env_id", "Pendulum-v1 tests.environments:FirstActionFive-v0"),
    ],
    "a3c_cartpole": [
        ("learning_rate rmsprop_epsilon", "0 -1 nan inf"),
        ("gamma rmsprop_alpha", "-0.1 1.01 nan"),
        ("entropy_coef value_coef", "-1 nan inf"),
        ("num_workers t_max hidden_sizes", "0 -1 1.5"),
        ("env_id", "Pendulum-v1 tests.environments:FirstActionFive-v0"),
    ],
    "random_baseline": [],
}
SPACES = "DictObservations ImageObservations"
DDPG_SPACES = f"{SPACES} DiscreteActions UnboundedActions MatrixActions"


def wrong_uses(script):
    """Return flags, and what the message is to name."""
    yield from WRONG["all"]
    for names, values in WRONG[script]:
        for name in names.split():
            for value in values.split():
                yield f"--{name.replace('_', '-')} {value}", name.replace("_", "[_-]")
    spaces = DDPG_SPACES if script == "ddpg_continuous" else SPACES
    for name in spaces.split() if script != "random_baseline" else ():
        yield f"--env-id tests.environments:{name}-v0", f"{name}-v0.*Box"


def check_usage_error(script, flags, named, capsys):
    before = everything()
    capsys.readouterr()
    assert run_here(script, *flags) == 2, flags
    captured = capsys.readouterr()
    assert re.search(named, " ".join(captured.err.split())), (flags, captured.err)
    assert "Traceback" not in captured.err and not captured.out
    assert everything() == before


def test_wrong_use(script, capsys):
    uses = list(wrong_uses(script))
    assert len(uses) >= 14
    for flags, named in uses:
        check_usage_error(script, ["--total-timesteps", "20000", *flags.split()], named, capsys)


@pytest.mark.parametrize("flags", [["Broken-v0"], ["Truncates-v0", "--capture-video"]])
def test_an_error_of_an_environment_is_shown_with_its_traceback(flags):
    """It is raised as it is; the second environment has no render_mode."""
    before = everything()
    with pytest.raises((TypeError, ValueError), match="no_such_option|render_mode"):
        run_here(FASTEST, "--env-id", "tests.environments:" + flags[0], *flags[1:])
    assert everything() == before


@pytest.mark.parametrize("script", ["ddpg_continuous", "dqn_shower"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_missing_device(script, device, capsys):
    if {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}[device]:
        pytest.skip(f"{device} is there")
    check_usage_error(script, ["--device", device], f"device: {device}", capsys)


def test_run_dir_that_is_taken(script, run, tmp_path, capsys):
    check_usage_error(script, [*SMALL[script], "--run-dir", "run"], "--run-dir run", capsys)
    (tmp_path / "file").write_text("")
    check_usage_error(script, [*SMALL[script], "--run-dir", "file/x"], "--run-dir file", capsys)


def test_resume_of_something_else(script, run, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    shutil.copytree(trained(SCRIPTS[SCRIPTS.index(script) - 1])[0], tmp_path / "other")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for flag in ("--resume", "--play"):
        check_usage_error(script, [flag, "other"], "other", capsys)
        torch.save(load("run") | {"agent": Evil()}, tmp_path / "evil.pt")
        evil = (tmp_path / "evil.pt").read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"hello", pickle.dumps({"a": 1}), evil):
            checkpoint.write_bytes(broken)
            check_usage_error(script, [flag, "run"], "run: not a run", capsys)
            assert checkpoint.read_bytes() == broken
        with pytest.raises(pickle.UnpicklingError):
            importlib.import_module(script).load(None, tmp_path / "run")  # the evil one
        shutil.copy(tmp_path / "other" / "checkpoint.pt", checkpoint)
        check_usage_error(script, [flag, "run"], "run", capsys)
        os.remove(checkpoint)
        check_usage_error(script, [flag, "run"], "run", capsys)
        checkpoint.write_bytes(whole)
    assert not (tmp_path / "executed").exists()
    if script != "random_baseline":
        flags = ["--resume", "run", "--hidden-sizes", "3", "3"]
        check_usage_error(script, flags, "checkpoint.pt.*size", capsys)


@pytest.mark.parametrize("what", ["NanReward", "NanObservation"])
@pytest.mark.parametrize("script", ["a3c_cartpole", "ddpg_continuous", "dqn_shower"])
def test_nan_stops_a_run(script, what):
    kind = "" if script == "ddpg_continuous" else "Discrete"
    flags = ["--env-id", f"tests.environments:{what}{kind}-v0", "--run-dir", "run"]
    with pytest.raises(Exception, match="FloatingPointError|nan|not finite"):
        run_here(script, *SMALL[script], *flags, "--checkpoint-every", 0)
    assert load("run")["rows"] == []


def test_nan_in_the_agent_stops_and_keeps_the_last_good_checkpoint(monkeypatch):
    """Also when no episode ends after it."""
    import dqn_shower as dqn

    flags = [*SMALL["dqn_shower"], "--run-dir", "run", "--checkpoint-every", 0]
    assert run_here(dqn, *flags) == 0
    good, update = load("run"), dqn.Agent.update

    def poison(agent, *given):
        agent.q_network[-1].bias.data.fill_(torch.nan)
        return update(agent, *given)

    monkeypatch.setattr(dqn.Agent, "update", poison)
    for steps in (1205, 2000):
        with pytest.raises(FloatingPointError, match="agent.q_network is NaN; run has"):
            dqn.main(["--resume", "run", "--total-timesteps", str(steps)])
        assert same_state(load("run"), good)
