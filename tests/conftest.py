"""How the tests start the scripts."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SMALL = {  # flags that make a run short, and yet learn
    "a3c_cartpole": "--num-workers 1 --hidden-sizes 8 8",
    "random_baseline": "",
    "ddpg_continuous": "--no-compile --learning-starts 500 --hidden-sizes 16 16 --batch-size 16 "
    "--buffer-size 1000",
    "dqn_shower": "--env-id CartPole-v1 --learning-starts 300 --hidden-sizes 8 8 "
    "--buffer-size 1000",
}
SMALL = {
    script: f"{flags} --total-timesteps 1200 --eval-episodes 2".split()
    for script, flags in SMALL.items()
}
SCRIPTS = sorted(SMALL)

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    """Run each test in an empty folder, so that what a script leaves there can be seen."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(params=SCRIPTS)
def script(request):
    """Each script in turn, by its name."""
    return request.param


def run_here(script, *flags):
    """Run a script in this process; return its exit code."""
    module = importlib.import_module(script) if isinstance(script, str) else script
    try:
        module.main([str(flag) for flag in flags])
    except SystemExit as exit:
        return exit.code
    return 0


def start(script, *flags, **environment):
    """Start a script as a process of its own."""
    path = ROOT / f"{script}.py" if isinstance(script, str) else script
    return subprocess.Popen(
        [sys.executable, path, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def without_seconds(path):
    """Return the lines of episodes.csv without their time column."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [row[:2] + row[3:] for row in rows]


def same_state(a, b):
    """Whether two checkpoints hold the same bytes, tensor by tensor, but for the seconds."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same_state(a[k], b[k]) for k in a if k not in ("seconds", "args")
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    return a == b


def load(run_dir):
    """Return what the checkpoint of a run holds."""
    checkpoint = torch.load(Path(run_dir) / "checkpoint.pt", weights_only=True)
    return checkpoint | {"rows": json.loads(checkpoint["rows"])}
