"""What every script does alike: command line, outputs, resume, play, tracking, errors.

The harness is the same in all, to the byte, which a test here holds; so what is its own is tested
with the script that is fastest to run.
"""

import ast
import contextlib
import dataclasses
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
import tyro
import yaml

import random_baseline
from tests.conftest import (
    ROOT,
    SCRIPTS,
    SMALL,
    load,
    outcome,
    read_csv,
    run_here,
    start,
    wait_for,
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


def test_same_name_same_bytes_and_the_same_harness():
    seen, harnesses = {}, set()
    for script in SCRIPTS:
        source = (ROOT / f"{script}.py").read_text()
        harnesses.add(re.search(r"\n# The harness.*\nif __name__", source, re.S)[0])
        lines, end = source.splitlines(), 0
        for node in ast.parse(source).body:
            definition, end = lines[end : node.end_lineno], node.end_lineno
            assigned = getattr(node, "targets", None)
            name = assigned[0].id if assigned else getattr(node, "name", None)
            if name not in (None, "Args", "Agent", "train", "make_env"):
                assert seen.setdefault(name, definition) == definition, f"{name} in {script}.py"
    assert len(harnesses) == 1


def arguments(script):
    """Return the fields of a script's Args."""
    return dataclasses.fields(importlib.import_module(script).Args)


def test_common_arguments():
    columns = [[(field.name, str(field.type)) for field in arguments(s)[:10]] for s in SCRIPTS]
    assert all(column == columns[0] for column in columns)


def test_inline_dependencies_are_the_requirements(script):
    block = (ROOT / f"{script}.py").read_text().split("# ///")[1]
    lines = [line.removeprefix("#").strip() for line in block.splitlines()[1:]]
    inline = set(tomllib.loads("\n".join(lines))["dependencies"])
    requirements = set((ROOT / "requirements.txt").read_text().split())
    assert all("==" in line for line in requirements)
    assert {line for line in requirements if not line.startswith("pytest")} == inline


def test_every_argument_is_read_and_in_the_help(script, capsys):
    source = (ROOT / f"{script}.py").read_text()
    assert run_here(script, "--help") == 0
    out = capsys.readouterr().out
    assert "for episode" in out or "each actor-learner does" in out  # the algorithm
    assert out.count("(default:") >= len(arguments(script))
    for field in arguments(script):
        assert re.search(rf"args\.{field.name}\b", source), field.name
        assert "--" + field.name.replace("_", "-") in out


# --- A run and what it leaves


def test_run_leaves_its_outputs(script, run):
    run, out = run
    assert re.search(EVALUATION + "run\n$", out)
    assert {path.name for path in run.iterdir()} == {
        *("args.json", "checkpoint.pt", "episodes.csv", "evaluation.csv", "learning_curve.png")
    }
    assert json.loads((run / "args.json").read_text())["total_timesteps"] == 1200
    rows = read_csv(run, "episodes.csv")
    assert list(rows[0])[:5] == ["episode", "timestep", "seconds", "return", "length"]
    assert [int(row["episode"]) for row in rows] == list(range(1, len(rows) + 1))
    steps = np.cumsum([int(row["length"]) for row in rows]).tolist()
    assert steps == [int(row["timestep"]) for row in rows]
    assert len(rows[0]) == {"random_baseline": 6, "dqn_shower": 8}.get(script, 9)
    assert all(np.isfinite(float(value or 0)) for value in rows[-1].values())
    seeds = [row["seed"] for row in read_csv(run, "evaluation.csv")]
    assert seeds == ["10000", "10001", "10002"]
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


@pytest.mark.parametrize("env_id", ["CartPole-v1", "dqn_shower:Shower-v0"])
def test_play_opens_a_window_where_there_is_a_screen(env_id, monkeypatch):
    """Also if the run was filmed, and if Gymnasium has to show the pictures itself."""
    flags = ["--env-id", env_id, "--eval-episodes", 1, "--capture-video"]
    assert run_here(FASTEST, *RUN, *flags) == 0
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("DISPLAY", ":0")
    modes, make = [], gym.make
    monkeypatch.setattr(gym, "make", lambda id, **k: modes.append(k.get("render_mode")) or make(id))
    assert run_here(FASTEST, "--play", "run") == 0
    assert "human" in modes


def test_offline_tracking(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, log = [], wandb.Run.log

    def spy(run, row, **options):
        logged.append(row)
        assert run.config["total_timesteps"] == 1200 and run.offline
        assert run.id.endswith("-run")  # --resume goes on with it
        assert run.project == "minimal-rl"
        log(run, row, **options)

    monkeypatch.setattr(wandb.Run, "log", spy)
    assert run_here(FASTEST, *RUN, "--track", "--capture-video") == 0
    rows = load("run")["rows"]
    assert rows and logged[: len(rows)] == rows
    assert {name for row in logged[len(rows) :] for name in row} == {
        *("evaluation", "rl-video-episode-0", "rl-video-episode-1")
    }
    before = everything()
    assert run_here(FASTEST, *RUN, "--track") == 2  # there is such a folder
    assert everything() == before
    logged.clear()
    for flags in ([], ["--track"]):
        assert run_here(FASTEST, "--play", "run", *flags) == 0 and len(logged) == len(flags)


def test_without_tracking_wandb_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it is an error
    assert run_here(FASTEST, *RUN) == 0
    assert run_here(FASTEST, *RUN, "--run-dir", "tracked", "--track") == 2
    assert not Path("tracked").exists()


def test_sweep_runs_offline_as_its_agent_starts_it(tmp_path):
    """And its script takes each value of each parameter, the ends of those that vary."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "benchmarks" / "sweep.yaml").read_text())
    script = importlib.import_module(sweep["program"].removesuffix(".py"))
    chosen = {}
    for name, given in sweep["parameters"].items():
        given.pop("distribution", None)
        values = given.pop("values", given.values())
        for value in values:
            assert getattr(tyro.cli(script.Args, args=[f"--{name}={value}"]), name) == value
            chosen[name] = {"value": value}
    chosen |= {"total_timesteps": {"value": 1000}, "eval_episodes": {"value": 1}}
    filled = create_sweep_command_args({"args": chosen})
    filled |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable]}
    filled |= {"program": [ROOT / sweep["program"]]}
    command = [x for word in sweep["command"] for x in filled.get(word.strip("${}"), [word])]
    offline = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "run1"}
    subprocess.run(command, check=True, env=os.environ | offline | {"CXX": "none"})
    (log,) = tmp_path.glob("wandb/offline-run-*/run-run1.wandb")
    assert sweep["metric"]["name"].encode() in log.read_bytes()


# --- Interruption


def slow(script, flags):
    flags = f"--total-timesteps 2400 {flags}"
    return pytest.param(script, flags, (1, 4, 8), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("script", "flags", "kills"),
    [
        ("a3c_cartpole", "", [25]),  # about half of the run; it learns by then
        ("ddpg_continuous", "", [3]),
        ("dqn_shower", "", [25]),
        ("random_baseline", "", [25]),
        slow("ddpg_continuous", "--compile"),
        slow("ddpg_continuous", "--compile --env-id LunarLanderContinuous-v3"),
        slow("ddpg_continuous", "--env-id HalfCheetah-v5 --total-timesteps 12000"),
        slow("dqn_shower", "--compile --env-id LunarLander-v3"),
        slow("a3c_cartpole", "--env-id LunarLander-v3 --total-timesteps 12000"),
    ],
)
def test_killed_and_resumed_is_as_never_stopped(script, flags, kills):
    """Killed each time that it has so many rows; also compiled, on Box2D, on MuJoCo."""
    flags = [*SMALL[script], *flags.split(), "--seed", 6, "--checkpoint-every", 0]
    assert run_here(script, *flags, "--run-dir", "whole") == 0
    flags += ["--run-dir", "run"]
    for rows in kills:
        process = start(script, *flags)
        wait_for(process, "run", rows)
        process.kill()
        process.communicate()
        flags = ["--resume", "run"]
    assert run_here(script, "--resume", "run") == 0
    assert outcome("run") == outcome("whole")
    runs = "whole", trained(script)[0]  # of another seed
    returns = [[row["return"] for row in load(run)["rows"][:3]] for run in runs]
    assert returns[0] != returns[1]  # what is always the same would pass, too


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on():
    process = start(FASTEST, *RUN, "--total-timesteps", 10**7, "--checkpoint-every", 0)
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
    assert json.loads(load("run")["args"])["total_timesteps"] == total  # what is given anew wins
    assert len(read_csv("run", "evaluation.csv")) == 2  # and the rest stays
    timesteps = [row["timestep"] for row in load("run")["rows"]]
    assert timesteps == sorted(set(timesteps)) and total - 300 < timesteps[-1] <= total


def test_resume_of_a_finished_run_only_evaluates():
    """What a kill has left half-written is written anew, from the last whole checkpoint."""
    assert run_here(FASTEST, *RUN) == 0
    *before, _ = outcome("run")
    rows = Path("run/episodes.csv").read_bytes()
    args = json.loads(Path("run/args.json").read_text())
    for name in ("checkpoint.tmp", "episodes.csv", "args.json"):
        Path("run", name).write_text("{")
    assert run_here(FASTEST, "--resume", "run", "--eval-episodes", 3) == 0
    *after, evaluation = outcome("run")
    assert after == before and len(evaluation) == 3
    assert Path("run/episodes.csv").read_bytes() == rows
    assert json.loads(Path("run/args.json").read_text()) == args | {"eval_episodes": 3}


def test_a_finished_run_that_goes_on_is_evaluated():
    assert run_here(FASTEST, *RUN) == 0
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", 3600) == 0
    found = [row["timestep"] for row in load("run")["rows"] if "evaluation" in row]
    assert len(found) == 2 and 1800 <= found[1] < 2400  # half of the whole


def test_a_finished_run_with_fewer_steps_is_still_a_run():
    assert run_here("dqn_shower", *SMALL["dqn_shower"], "--run-dir", "run") == 0
    for _ in range(2):
        assert run_here("dqn_shower", "--resume", "run", "--total-timesteps", 50) == 0
    assert run_here("dqn_shower", "--play", "run") == 0


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

WRONG_VALUES = [
    ("seed", f"-1 1.5 {2**63}"),
    ("evaluations", "-1 1.5"),
    ("total_timesteps eval_episodes", "0 -1 1.5 many"),
    ("checkpoint_every entropy_coef value_coef noise_sigma", "-1 nan inf"),
    ("learning_rate actor_learning_rate critic_learning_rate", "0 -1 nan inf"),
    ("rmsprop_epsilon epsilon_fraction", "0 -1 nan inf"),
    ("gamma tau learning_rate_final rmsprop_alpha noise_theta epsilon_final", "-0.1 1.01 nan"),
    ("noise_final", "0 -0.1 1.01 nan"),
    ("batch_size buffer_size hidden_sizes num_workers t_max", "0 -1 1.5"),
    ("target_network_frequency", "0 -1 1.5"),
    ("learning_starts", "0 -1 1.5 30000"),
]
WRONG_VALUES = {name: values.split() for names, values in WRONG_VALUES for name in names.split()}
WRONG_SPACES = "Terminates SequenceObservationsDiscrete"
DDPG_SPACES = "DiscreteActions UnboundedActions MatrixActions SequenceObservations"
WRONG_USES = [  # and what the message is to name
    ("--env-id Pendlum-v1", "--env-id Pendlum-v1.*Pendulum"),
    ("--env-id no_such_module:Env-v0", "--env-id no_such_module:Env-v0"),
    ("--env-id Pendulum-v99", "--env-id Pendulum-v99"),
    ("--no-such-flag", "--no-such-flag"),
    ("--device tpu", "--device"),
    ("--env-id CartPole-v1 --env-kwargs no_such 1", "--env-id CartPole-v1.*no_such"),
    ("--resume nowhere", "nowhere"),
    ("--play nowhere", "nowhere"),
    ("--resume runs --play other", "--resume and --play are not allowed together"),
    ("--resume runs --run-dir other", "--resume and --run[-_]dir are not allowed together"),
    ("--resume runs --run_dir other", "--resume and --run[-_]dir are not allowed together"),
    ("--run-dir taken", "--run-dir taken"),
    ("--run-dir taken/file/run", "--run-dir taken/file/run"),
]


def check_usage_error(script, flags, named, capsys):
    before = everything()
    capsys.readouterr()
    assert run_here(script, *flags) == 2, flags
    captured = capsys.readouterr()
    assert re.search(named, " ".join(captured.err.split())), (flags, captured.err)
    assert "Traceback" not in captured.err and not captured.out
    assert captured.err.count("\n") == 1 or "error: " not in captured.err.split("\n")[0]
    assert everything() == before


def test_wrong_use(script, capsys):
    os.mkdir("taken")
    Path("taken/file").touch()
    uses = [*WRONG_USES]
    spaces = {"ddpg_continuous": DDPG_SPACES, "random_baseline": ""}.get(script, WRONG_SPACES)
    for name in spaces.split():
        uses.append((f"--env-id tests.environments:{name}-v0", f"{name}-v0.*Box"))
    numbers = [a.name for a in arguments(script) if type(a.default) in (int, float, tuple)]
    for name in numbers:
        for value in WRONG_VALUES[name]:
            uses.append((f"--{name.replace('_', '-')} {value}", name.replace("_", "[_-]")))
    for flags, named in uses:
        check_usage_error(script, ["--total-timesteps", "20000", *flags.split()], named, capsys)


@pytest.mark.parametrize("env_id", ["Terminates-v0", "Grey-v0"])
def test_what_cannot_be_filmed(env_id, capsys):
    flags = ["--env-id", f"tests.environments:{env_id}", "--capture-video"]
    check_usage_error(FASTEST, flags, "--capture-video", capsys)


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.1), (False, 30)])
def test_a_log_file_gets_a_line_every_half_minute(terminal, seconds, monkeypatch):
    intervals, bar = [], random_baseline.tqdm

    def spy(**options):
        intervals.append(options["mininterval"])
        return bar(**options)

    monkeypatch.setattr(random_baseline, "tqdm", spy)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run_here(FASTEST, *RUN) == 0
    assert intervals == [seconds]


def test_an_error_of_an_environment_is_shown_with_its_traceback():
    before = everything()
    with pytest.raises(TypeError, match="no_such_option"):
        run_here(FASTEST, "--env-id", "tests.environments:Broken-v0")
    assert everything() == before


@pytest.mark.parametrize("script", ["ddpg_continuous", "dqn_shower"])
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_missing_device(script, device, capsys):
    if torch.get_device_module(device).is_available():
        pytest.skip(f"{device} is there")
    check_usage_error(script, ["--device", device], f"device: {device}", capsys)


def test_resume_of_something_else(script, run, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    shutil.copytree(trained(SCRIPTS[SCRIPTS.index(script) - 1])[0], "other")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    torch.save(load("run") | {"agent": Evil()}, "evil.pt")
    evil = Path("evil.pt").read_bytes()
    for flag in ("--resume", "--play"):
        check_usage_error(script, [flag, "other"], "other", capsys)
        for broken in (whole[: len(whole) // 2], b"", b"hello", pickle.dumps({"a": 1}), evil):
            checkpoint.write_bytes(broken)
            check_usage_error(script, [flag, "run"], "run: not a run", capsys)
            assert checkpoint.read_bytes() == broken
    with pytest.raises(pickle.UnpicklingError):
        importlib.import_module(script).load(None, tmp_path / "run")  # the evil one
    assert not (tmp_path / "executed").exists()
    checkpoint.write_bytes(whole)
    if script != "random_baseline":
        flags = ["--resume", "run", "--hidden-sizes", "3", "3"]
        check_usage_error(script, flags, "run: .*size", capsys)


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
    good, update = outcome("run"), dqn.Agent.update

    def poison(agent, *given):
        agent.q_network[-1].bias.data.fill_(torch.nan)
        return update(agent, *given)

    monkeypatch.setattr(dqn.Agent, "update", poison)
    for steps in (1205, 2000):
        with pytest.raises(
            FloatingPointError, match="q_network.* is NaN; the last checkpoint is good"
        ):
            dqn.main(["--resume", "run", "--total-timesteps", str(steps)])
        assert outcome("run") == good
