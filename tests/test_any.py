"""Any environment, any machine: what strangers bring works, or ends with one line and code 2."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

import a3c_cartpole as a3c
import ddpg_continuous as ddpg
import dqn_shower as dqn
from tests.conftest import ROOT, SCRIPTS, SMALL, load, outcome, read_csv, run_here, start, wait_for
from tests.environments import Counter, Helped, Replies

FASTEST = "random_baseline"
SHORT = ["--total-timesteps", "200", "--evaluations", "1", "--eval-episodes", "1"]
LEARN = ["--hidden-sizes", "8", "--learning-starts", "100", "--batch-size", "8", "--no-compile"]
LEARN += ["--buffer-size", "1000"]


def standard_environments():
    """Return the ids of all that Gymnasium registers, in their latest versions."""
    specs = [s for s in gym.registry.values() if ":" not in s.id and s.namespace is None]
    latest = {}
    for spec in specs:
        if str(spec.entry_point).startswith("gymnasium.envs") and spec.version is not None:
            latest[spec.name] = max(latest.get(spec.name, 0), spec.version)
    excluded = ("functional", "jax")  # need JAX
    names = [f"{name}-v{version}" for name, version in latest.items()]
    return sorted(n for n in names if not re.search("|".join(excluded), str(gym.spec(n)), re.I))


@pytest.mark.parametrize("env_id", standard_environments())
def test_gymnasiums_environments(env_id, capsys):
    """The table in benchmarks/README.md names each."""
    table = (ROOT / "benchmarks" / "README.md").read_text()
    (row,) = re.findall(rf"^\|.*[ ,]{env_id}[,:].*$", table.split("## Which env")[1], re.M)
    script = (
        "dqn_shower" if isinstance(gym.make(env_id).action_space, Discrete) else "ddpg_continuous"
    )
    code = run_here(script, "--env-id", env_id, *SHORT, *LEARN, "--max-episode-steps", 60)
    assert code == 0 and script in row, capsys.readouterr().err


class Row:
    """As pandas has them: no array, but to be made one."""

    def __array__(self, *given, **options):
        return np.array([1.0, 2.0])


OBSERVATIONS = {
    "dict": (Dict(b=Box(-9, 9, (1,)), a=Discrete(3)), {"a": 1, "b": np.ones(1)}, [1, 0, 1, 0]),
    "tuple": (Tuple([Discrete(2), MultiBinary(2)]), (0, np.array([1, 0], np.int8)), [1, 0, 1, 0]),
    "matrix": (Box(0, 255, (2, 2), np.uint8), np.eye(2, dtype=np.uint8), [1, 0, 0, 1]),
    "number": (Discrete(3, start=5), 7, [0, 0, 1]),
    "list": (Box(-9, 9, (2,)), [1.0, 2], [1, 2]),
    "masked": (Box(-9, 9, (2,)), np.ma.array([1, 2.0], mask=[0, 1]), [1, 2]),
    "row": (Box(-9, 9, (2,)), Row(), [1, 2]),
    "fractions": (Box(0, 9, (2,), np.int64), [1.5, 2.0], [1.5, 2]),
    "float64": (Box(-1e300, 1e300, (1,), np.float64), np.ones(1), [1]),
}


@pytest.mark.parametrize("script", ["a3c_cartpole", "ddpg_continuous", "dqn_shower"])
@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.filterwarnings("ignore")  # of Gymnasium's, on some of these observations
def test_observations_of_all_kinds_are_vectors(kind, script):
    space, observation, expected = OBSERVATIONS[kind]
    if script == "ddpg_continuous":  # which stretches what lies within 0 and 1
        expected = {"dict": [1, 0, 2, 0], "tuple": [2, 0, 2, 0], "number": [0, 0, 2]}.get(
            kind, expected
        )
    action = Box(-1, 1, (1,)) if script == "ddpg_continuous" else Discrete(2)
    gym.register("Kind-v0", lambda: Replies(space, observation, action), max_episode_steps=9)
    module = sys.modules[script]
    args = module.Args(env_id="Kind-v0")
    env = module.make_env(args)
    for found in (env.reset()[0], env.step(env.action_space.sample())[0]):
        assert found.dtype == np.float32 and found.tolist() == expected
    agent = module.Agent(env, args)
    assert module.evaluate(agent, env, 1)[0]["length"] == 9
    if script != "a3c_cartpole":  # whose workers would not know the environment
        flags = ["--env-id", "Kind-v0", *SHORT, *LEARN, "--run-dir", "run"]
        assert run_here(script, *flags) == 0


@pytest.mark.parametrize("limit", [None, 50])
def test_without_a_time_limit_episodes_end_all_the_same(limit, capsys):
    flags = ["--env-id", "tests.environments:NeverEnds-v0", *SHORT, "--total-timesteps", 2000]
    flags += ["--max-episode-steps", limit] if limit else []
    assert run_here(FASTEST, *flags, "--run-dir", "run") == 0
    assert {row["length"] for row in load("run")["rows"]} == {limit or 1000}
    assert ("1,000 steps; see --max-episode-steps" in capsys.readouterr().err) == (limit is None)
    assert run_here(FASTEST, *SHORT, "--run-dir", "another") == 0  # CartPole has a limit
    assert "time limit" not in capsys.readouterr().err


MAX = float(np.finfo(np.float32).max)
BOUNDS = [  # and what −1, 0, 0.016 and 1 are in them
    (Box(-100, 100, (1,), np.int8), [-100, 0, 2, 100]),
    (Box(0, 10, (1,), np.int32), [0, 5, 5, 10]),
    (Box(-2 * 10**9, 2 * 10**9, (1,), np.int32), [-(2 * 10**9), 0, 32 * 10**6, 2 * 10**9]),
    (Box(-(2**63), 2**63 - 1, (1,), np.int64), [-(2**63), None, None, 2**63 - 1]),
    (Box(-MAX, MAX, (1,)), [-MAX, 0, None, MAX]),
    (Box(-1, 3, (1,), np.float64), [-1, 1, 1.032, 3]),
]


@pytest.mark.parametrize(("space", "expected"), BOUNDS)
def test_actions_meet_bounds_of_all_kinds(space, expected):
    gym.register("Bounds-v0", lambda: Counter(action=space), max_episode_steps=9, order_enforce=0)
    env = ddpg.make_env(ddpg.Args(env_id="Bounds-v0"))
    env.reset()
    for action, value in zip((-1, 0, 0.016, 1), expected):
        env.step(np.full(1, action))  # which asserts that the action is in the space
        assert value is None or env.unwrapped.actions[-1] == value


@pytest.mark.parametrize(
    ("name", "expected"), [("FirstActionFive", [5, 6, 7]), ("ByteActions", [0, 1, 2])]
)
def test_discrete_actions_from_0_of_64_bits(name, expected):
    for script in (a3c, dqn):
        args = script.Args(env_id=f"tests.environments:{name}-v0")
        env = script.make_env(args)
        env.reset()
        for action in range(3):
            env.step(action)
        assert env.unwrapped.actions == expected
        assert env.action_space == Discrete(3) and env.action_space.dtype == np.int64


def test_too_large_a_buffer(capsys):
    assert run_here("dqn_shower", "--buffer-size", 10**14, "--run-dir", "run") == 2
    assert "--buffer-size" in capsys.readouterr().err and not os.path.exists("run")


def test_an_environment_that_make_env_has_not_made_is_refused():
    with pytest.raises(ValueError, match="make_env gives actions"):
        ddpg.Agent(gym.make("Pendulum-v1"), ddpg.Args())


def test_another_environment_of_the_name_of_the_shower(monkeypatch):
    monkeypatch.delitem(gym.registry, "Shower-v0")
    gym.register("Shower-v0", lambda: Counter(action=Discrete(2)), max_episode_steps=9)
    env = dqn.make_env(dqn.Args())
    assert env.reset()[0][0] == 0.0  # not −38
    dqn.plot_temperatures(dqn.Agent(env, dqn.Args()), Path("nowhere"))


@pytest.mark.parametrize("env_id", ["tests.environments:Truncates-v0", "CartPole"])
def test_ids_of_all_kinds(env_id):
    assert run_here(FASTEST, "--env-id", env_id, *SHORT) == 0


def test_an_environment_that_exits_is_an_error():
    gym.register("Exits-v0", lambda: Helped(Discrete(2), SystemExit(0)), max_episode_steps=50)
    with pytest.raises(RuntimeError, match="called sys.exit"):
        run_here(FASTEST, "--env-id", "Exits-v0", *SHORT)
    assert not helpers_that_live()


@pytest.mark.parametrize("options", ["map_name 9x9", "no_such 1"])
def test_wrong_options_of_the_environment(options, capsys):
    flags = ["--env-id", "FrozenLake-v1", "--env-kwargs", *options.split()]
    assert run_here(FASTEST, *flags) == 2
    assert options.split()[1 if "9x9" in options else 0] in capsys.readouterr().err


def test_tracking_without_a_login_stops_before_a_folder_is_made(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    process = start(FASTEST, *SHORT, "--track", "--run-dir", "run,#:?")
    assert "error: --track: " in process.communicate(timeout=60)[1]
    assert process.returncode == 2 and not os.path.exists("run,#:?")


def test_two_that_resume_one_run_corrupt_nothing():
    assert run_here(FASTEST, *SHORT, "--run-dir", "run") == 0
    flags = ["--resume", "run", "--total-timesteps", 4000, "--checkpoint-every", 0]
    both = [start(FASTEST, *flags) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    steps = [row["timestep"] for row in load("run")["rows"]]
    assert steps == sorted(set(steps)) and steps[-1] > 3500


def test_a_disk_that_is_full_keeps_the_last_checkpoint(monkeypatch):
    assert run_here(FASTEST, *SHORT, "--run-dir", "run") == 0
    monkeypatch.setattr(torch, "save", lambda state, path: path.write_bytes(b"half"))
    with pytest.raises(Exception) as caught:
        run_here(FASTEST, "--resume", "run", "--total-timesteps", 400)
    assert "is the disk full" in caught.value.__notes__[0]
    assert load("run")["timestep"] == 200 and not list(Path("run").glob("*.tmp"))


def test_ctrl_c_while_a_checkpoint_is_written_keeps_the_last_one(monkeypatch):
    def save(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    assert run_here(FASTEST, *SHORT, "--run-dir", "run") == 0
    monkeypatch.setattr(torch, "save", save)
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", 400) == 130
    assert load("run")["timestep"] == 200 and not list(Path("run").glob("*.tmp"))
    assert run_here(FASTEST, *SHORT, "--run-dir", "new") == 130  # before there is one
    assert not list(Path("new").iterdir())


def test_options_of_the_environment():
    flags = ["--env-id", "FrozenLake-v1", "--env-kwargs", "is_slippery", "False", "map_name", "8x8"]
    assert run_here(FASTEST, *flags, *SHORT, "--run-dir", "run") == 0
    assert run_here(FASTEST, "--play", "run") == 0
    assert run_here(FASTEST, "--resume", "run", *flags[2:4], "True", "--total-timesteps", 300) == 0
    kwargs = {"is_slippery": True, "map_name": "8x8"}
    assert json.loads(load("run")["args"])["env_kwargs"] == kwargs


def test_environments_that_draw_random_numbers_elsewhere():
    flags = ["--env-id", "tests.environments:Draws-v0", *SHORT, *LEARN]
    for run_dir in ("a", "b"):
        assert run_here("ddpg_continuous", *flags, "--run-dir", run_dir) == 0
    assert outcome("a") == outcome("b")


# --- Environments are closed, however a run ends


def helpers_that_live():
    """Return those processes of environments that have not ended, after some have been there."""
    assert os.listdir("helpers")
    return [pid for pid in os.listdir("helpers") if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("how", ["finished", "error", "exit 2", "interrupt"])
def test_environments_are_closed(how):
    error = {"error": RuntimeError, "interrupt": KeyboardInterrupt}.get(how)
    action = Box(-1, 1, (1, 1) if how == "exit 2" else (1,))
    gym.register("Helped-v0", lambda: Helped(action, error), max_episode_steps=50)
    flags = ["--env-id", "Helped-v0", *SHORT, *LEARN]
    if how == "error":
        with pytest.raises(RuntimeError):
            run_here("ddpg_continuous", *flags)
    else:
        expected = {"finished": 0, "exit 2": 2, "interrupt": 130}[how]
        assert run_here("ddpg_continuous", *flags) == expected
    assert not helpers_that_live()


def test_the_plot_of_temperatures_closes_its_environment(monkeypatch):
    closed, agent = [], dqn.Agent(dqn.make_env(dqn.Args()), dqn.Args())
    monkeypatch.setattr(dqn.ShowerEnv, "close", lambda env: closed.append(env))
    dqn.plot_temperatures(agent, Path())
    assert len(closed) == 1


def test_workers_environments_may_start_processes_and_are_closed():
    """Also if training is outside the main thread."""
    args = a3c.Args(env_id="tests.environments:HelpedDiscrete-v0", num_workers=1)
    env, rows = a3c.make_env(args), []
    agent = a3c.Agent(env, args)

    def train_for_a_while():
        episodes = a3c.train(env, agent)
        rows.extend(next(episodes) for _ in range(3))
        episodes.close()

    thread = threading.Thread(target=train_for_a_while)
    thread.start()
    thread.join(timeout=60)
    env.close()
    assert len(rows) == 3 and len(os.listdir("helpers")) == 2
    assert not helpers_that_live()


# --- Any machine


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_terminal_that_is_not_utf_8(script):
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, ROOT / f"{script}.py", "--help"]
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0


@pytest.mark.parametrize("threads", ["", "4,2", "0"])
def test_any_number_of_threads(threads):
    command = [sys.executable, ROOT / f"{FASTEST}.py", *SHORT]
    assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}).returncode == 0


def test_a_checkpoint_of_a_gpu_opens_without_one(monkeypatch):
    flags = [*SMALL["dqn_shower"], "--run-dir", "run"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        patched.setattr(torch, "load", lambda *given, **options: None)  # the check of `save`
        assert run_here("dqn_shower", *flags) == 0
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load("run/checkpoint.pt")
    assert run_here("dqn_shower", "--play", "run") == 0
    assert run_here("dqn_shower", "--resume", "run") == 0


def test_a_file_that_cannot_be_written_does_not_end_a_run(capsys):
    flags = [*SMALL[FASTEST], "--run-dir", "run", "--total-timesteps"]
    assert run_here(FASTEST, *flags, 300) == 0
    os.remove("run/episodes.csv")
    os.mkdir("run/episodes.csv")
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", 600) == 0
    assert "not written: " in capsys.readouterr().err
    os.rmdir("run/episodes.csv")
    assert run_here(FASTEST, "--resume", "run", "--total-timesteps", 900) == 0
    assert len(read_csv("run", "episodes.csv")) == len(load("run")["rows"])


def test_sigterm_stops_as_ctrl_c_does_and_the_message_is_true():
    flags = [*SMALL[FASTEST], "--run-dir", "run", "--total-timesteps", 10**7]
    process = start(FASTEST, *flags, "--checkpoint-every", 0, "--evaluations", 0)
    wait_for(process, "run", 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    timestep = load("run")["rows"][-1]["timestep"]
    assert process.returncode == 130
    assert f"--resume run goes on after step {timestep}\n" in err and "the run is in run" in err


def test_checkpoints_take_at_most_a_tenth_of_the_time(monkeypatch):
    import random_baseline

    saves, save = [], random_baseline.save
    slow = lambda *given: (time.sleep(0.1), saves.append(time.monotonic()), save(*given))  # noqa: E731
    monkeypatch.setattr(random_baseline, "save", slow)
    flags = ["--total-timesteps", 40_000, "--evaluations", 0, "--checkpoint-every", 0.01]
    assert run_here(FASTEST, *flags, "--run-dir", "run") == 0
    assert len(saves) >= 3 and min(np.diff(saves[1:-1]), default=1) > 0.9


@pytest.mark.parametrize(
    ("size", "kept"), [(5, [3, 4, 5, 6, 7]), (3, [5, 6, 7]), (9, [3, 4, 5, 6, 7])]
)
def test_a_buffer_of_another_size_keeps_the_last_transitions(size, kept):
    env = Counter(action=Box(-1, 1, (1,)))
    old, new = ddpg.ReplayBuffer(5, env), ddpg.ReplayBuffer(size, env)
    for i in range(8):
        old.add([i, 0], [0], 0, [0, 0], False)
    new.load_state_dict(old.state_dict())
    assert sorted(new.data["observation"][: len(new), 0]) == [*kept]
    assert new.count == (5 if size == 9 else 8)
    new.add([8, 0], [0], 0, [0, 0], False)  # in the place of the oldest, or behind the last
    expected = [*kept, 8] if size == 9 else [*kept[1:], 8]
    assert sorted(new.data["observation"][: len(new), 0]) == expected


def test_evaluations_while_training_change_nothing_else():
    for script in ("a3c_cartpole", "ddpg_continuous"):
        rows = {}
        for number in (0, 3):
            flags = [*SMALL[script], "--evaluations", number, "--run-dir", f"{script}{number}"]
            assert run_here(script, *flags) == 0
            rows[number] = load(f"{script}{number}")["rows"]
        greedy = [row.pop("evaluation") for row in rows[3] if "evaluation" in row]
        assert len(greedy) == 3 or len(greedy) == 2 < rows[3][-1]["timestep"] < 1200
        for row in rows[0] + rows[3]:
            del row["seconds"]
        assert rows[0] == rows[3]
