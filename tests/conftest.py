"""How the tests start the scripts, and forks of them."""

import csv
import hashlib
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map_only

ROOT = Path(__file__).parent.parent
SMALL = {  # flags that make a run short, and yet learn
    "a3c_cartpole": "--num-workers 1 --hidden-sizes 8 8",
    "random_baseline": "",
    "ddpg_continuous": "--no-compile --learning-starts 500 --hidden-sizes 16 16 --batch-size 16 "
    "--buffer-size 1000",
    "dqn_shower": "--env-id CartPole-v1 --learning-starts 300 --hidden-sizes 8 8 --batch-size 16 "
    "--buffer-size 1000",
}
SMALL = {
    script: f"{flags} --total-timesteps 1200 --eval-episodes 2 --evaluations 2".split()
    for script, flags in SMALL.items()
}
SCRIPTS = sorted(SMALL)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])

started = []  # processes, of this test
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    """Run each test in an empty folder, so that what a script leaves there can be seen."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    yield
    while started:  # what a failed test has left
        started.pop().kill()


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


def import_fork(script, path, changes):
    """Write a script with some of its text exchanged, import it; return the module."""
    source = (ROOT / f"{script}.py").read_text()
    for old, new in changes.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where pydantic looks up types
    spec.loader.exec_module(module)
    return module


def start(script, *flags):
    """Start a script as a process of its own."""
    command = [sys.executable, ROOT / f"{script}.py", *map(str, flags)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=env)
    started.append(process)
    return process


def wait_for(process, run_dir, rows, seconds=60):
    """Wait until a run has written more than so many rows."""
    path, deadline = Path(run_dir, "episodes.csv"), time.monotonic() + seconds
    while not (path.exists() and path.read_text().count("\n") > rows + 1):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def load(run_dir):
    """Return what the checkpoint of a run holds."""
    checkpoint = torch.load(Path(run_dir, "checkpoint.pt"), weights_only=True)
    agent = checkpoint["agent"].pop("tensors")
    for path, value in checkpoint["agent"].items():
        agent[path.lstrip(".").removesuffix(".state_dict")] = value
    return checkpoint | {"agent": agent, "rows": json.loads(checkpoint["rows"])}


def read_csv(*path):
    """Return the rows of a CSV file."""
    return list(csv.DictReader(Path(*path).read_text().splitlines()))


def outcome(run_dir):
    """Return what a run has left, but for the seconds; arrays by digests of their bytes."""
    checkpoint, episodes = load(run_dir), read_csv(run_dir, "episodes.csv")
    for row in checkpoint["rows"] + episodes:
        del row["seconds"]

    def digest(x):
        return x.dtype, x.shape, hashlib.sha256(np.asarray(x).tobytes()).hexdigest()

    agent = tree_map_only((torch.Tensor, np.ndarray), digest, dict(checkpoint["agent"]))
    return agent, checkpoint["rows"], episodes, read_csv(run_dir, "evaluation.csv")
