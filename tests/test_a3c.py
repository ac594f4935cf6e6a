"""A3C against oracles that share no code with it, and its processes under kill -9."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

import a3c_cartpole as a3c
from tests.conftest import ROOT, SMALL, load, run_here, start, wait_for

LOCK = threading.Lock()
TWO = [*SMALL["a3c_cartpole"], "--num-workers", "2"]


def make_agent(env_id="CartPole-v1", **flags):
    small = {"hidden_sizes": (7, 5), "num_workers": 1}
    args = a3c.Args(env_id=env_id, **small | flags)
    return a3c.Agent(a3c.make_env(env_id), args)


def random_batch(size=6, seed=0):
    """Return random observations, actions and returns."""
    rng = np.random.default_rng(seed)
    observations = torch.tensor(rng.normal(size=(size, 4)), dtype=torch.float32)
    actions = torch.tensor(rng.integers(2, size=size))
    return observations, actions, torch.tensor(5 * rng.normal(size=size)).float()


# --- The networks and the losses


def test_parameters_are_views_of_one_vector():
    agent = make_agent()
    assert agent.theta.shape == (28 + 7 + 35 + 5 + 10 + 2 + 28 + 7 + 35 + 5 + 5 + 1,)
    pi, v = a3c.as_layers(agent.theta, agent.sizes)
    for layers, outputs in ((pi, 2), (v, 1)):
        expected = [((4, 7), (7,)), ((7, 5), (5,)), ((5, outputs), (outputs,))]
        assert [(w.shape, b.shape) for w, b in layers] == expected
    for number, part in enumerate(part for layer in pi + v for part in layer):
        part.fill_(number)  # each number of the vector belongs to exactly one of them
    counts = torch.bincount(agent.theta.long()).tolist()
    assert counts == [28, 7, 35, 5, 10, 2, 28, 7, 35, 5, 5, 1]


def test_initial_weights_are_orthogonal_and_the_policy_is_nearly_uniform():
    agent = make_agent()
    pi, v = a3c.as_layers(agent.theta, agent.sizes)
    for layers, last in ((pi, 0.01 * 2**0.5), (v, 2**0.5)):
        for number, (weights, biases) in enumerate(layers):
            small = weights if weights.shape[0] <= weights.shape[1] else weights.T
            gain = last if number == 2 else 2**0.5
            torch.testing.assert_close(small @ small.T, gain**2 * torch.eye(len(small)))
            assert not biases.any()
    assert not torch.equal(pi[0][0], v[0][0])
    assert torch.equal(agent.theta, make_agent().theta)
    assert not torch.equal(agent.theta, make_agent(seed=2).theta)


def test_networks_equal_torchs_own_in_torch_and_in_numpy():
    agent = make_agent()
    agent.theta.normal_()
    for number, layers in enumerate(a3c.as_layers(agent.theta, agent.sizes)):
        modules = []
        for weights, biases in layers:
            module = torch.nn.Linear(*weights.shape)
            module.weight.data, module.bias.data = weights.T, biases
            modules += [module, torch.nn.ReLU()]
        observations = torch.randn(9, 4)
        expected = torch.nn.Sequential(*modules[:-1])(observations).detach()
        torch.testing.assert_close(a3c.forward(layers, observations), expected)
        arrays = a3c.as_layers(agent.theta.numpy(), agent.sizes)[number]
        for observation, row in zip(observations.numpy(), expected):
            np.testing.assert_allclose(a3c.forward(arrays, observation), row, rtol=1e-4, atol=1e-4)


def numpy_loss(theta, agent, observations, actions, returns, advantages=None):
    """Return the loss in float64, from the paper; advantages are constants of π's part."""
    args, start, outputs = agent.args, 0, []
    for sizes in ((4, 7, 5, 2), (4, 7, 5, 1)):
        x = observations
        for number, (n, units) in enumerate(pairwise(sizes)):
            weights = theta[start : start + n * units].reshape(n, units)
            biases = theta[start + n * units : start + (n + 1) * units]
            x, start = x @ weights + biases, start + (n + 1) * units
            if number < 2:
                x = np.maximum(x, 0)
        outputs.append(x)
    logits, values = outputs[0], outputs[1][:, 0]
    loss = 0.0
    for i in range(len(logits)):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        value, constant = values[i], returns[i] - values[i]
        if advantages is not None:
            constant = advantages[i]
        loss -= np.log(p[actions[i]]) * constant
        loss += args.value_coef * (returns[i] - value) ** 2
        loss -= args.entropy_coef * -(p * np.log(p)).sum()
    return loss, returns - values


@pytest.mark.parametrize(("entropy_coef", "value_coef"), [(0.0, 0.5), (0.7, 0.0), (0.3, 0.2)])
def test_gradient_equals_finite_differences(entropy_coef, value_coef):
    agent = make_agent(entropy_coef=entropy_coef, value_coef=value_coef)
    agent.theta.normal_(std=0.5)
    batch = random_batch()
    gradient, log = agent.gradient(agent.theta, *batch)
    arrays = [part.double().numpy() for part in batch]
    arrays[1] = batch[1].numpy()
    theta = agent.theta.double().numpy()
    _, advantages = numpy_loss(theta, agent, *arrays)
    assert log["value_loss"] == pytest.approx(np.square(advantages).mean(), rel=1e-4)
    assert log["value"] == pytest.approx((arrays[2] - advantages).mean(), rel=1e-3)
    expected = np.empty_like(theta)
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = 1e-6
        losses = [numpy_loss(theta + d, agent, *arrays, advantages)[0] for d in (step, -step)]
        expected[k] = (losses[0] - losses[1]) / 2e-6
    np.testing.assert_allclose(gradient, expected, atol=1e-3, rtol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_gradients_do_not_accumulate():
    """The regression that others have: the gradient of the same batch is the same each time."""
    agent = make_agent()
    batch = random_batch()
    first, _ = agent.gradient(agent.theta, *batch)
    for _ in range(3):
        again, _ = agent.gradient(agent.theta, *batch)
        torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert agent.theta.grad is None


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("ending", ["Terminates", "Truncates"])
def test_n_step_returns_by_brute_force(gamma, ending):
    """The episode lasts 7 steps, in rollouts of 4 and 3; only termination cuts the bootstrap."""
    flags = {"t_max": 4, "gamma": gamma, "scale_rewards": False}
    agent = make_agent(f"tests.environments:{ending}Discrete-v0", **flags)
    rewards = [1.0, -2.0, 0.5, 3.0, 7.0, -1.0, 2.0]
    env = a3c.make_env(agent.args.env_id)
    env.unwrapped.reward = lambda step: rewards[step - 1]
    with torch.no_grad():
        a3c.as_layers(agent.theta, agent.sizes)[1][-1][1][:] = 1000.0  # V, everywhere about
    agent.update = lambda gradient: None
    seen, gradient = [], agent.gradient
    agent.gradient = lambda theta, s, a, R: seen.append((s, R)) or gradient(theta, s, a, R)
    row = next(a3c.actor_learner(env, agent, 0, LOCK))
    assert (row["length"], row["return"], agent.timestep) == (7, sum(rewards), 7)
    assert [s[:, 0].tolist() for s, _ in seen] == [[0, 1, 2, 3], [4, 5, 6]]
    _, arrays = a3c.as_layers(agent.theta.numpy(), agent.sizes)
    last = env.unwrapped.observation.astype(np.float32)
    values = [a3c.forward(arrays, s)[0] for s in (seen[1][0][0].numpy(), last)]
    values[1] *= ending == "Truncates"
    for (_, R), part, value in zip(seen, (rewards[:4], rewards[4:]), values):
        n = len(part)
        expected = [
            sum(gamma**k * r for k, r in enumerate(part[i:])) + gamma ** (n - i) * value
            for i in range(n)
        ]
        np.testing.assert_allclose(R, expected, rtol=1e-5)


def test_rewards_are_divided_by_the_deviation_of_their_discounted_sums():
    """Two episodes of 7 steps, in rollouts of 4 and 3; the sums begin anew with each episode."""
    agent = make_agent("tests.environments:TerminatesDiscrete-v0", t_max=4, gamma=0.9)
    rewards = [1.0, -2.0, 0.5, 3.0, 7.0, -1.0, 2.0]
    env = a3c.make_env(agent.args.env_id)
    env.unwrapped.reward = lambda step: rewards[step - 1]
    agent.theta.zero_()  # V is 0
    agent.update = lambda gradient: None
    seen, gradient = [], agent.gradient
    agent.gradient = lambda *rollout: seen.append(rollout[-1]) or gradient(*rollout)
    episodes = a3c.actor_learner(env, agent, 0, LOCK)
    assert [next(episodes)["return"] for _ in range(2)] == [sum(rewards)] * 2
    sums = [sum(0.9 ** (t - k) * rewards[k] for k in range(t + 1)) for t in range(7)] * 2
    for R, end, last in zip(seen, (4, 7, 11, 14), (3, 6, 3, 6)):
        assert R[-1] == pytest.approx(rewards[last] / np.std(sums[:end]), rel=1e-5)


@pytest.mark.parametrize(
    ("sums", "deviation"), [([0.0, 0.0], 1.0), ([0.1, 0.1], 1.0), ([1e-6, 3e-6], 1e-6)]
)
def test_deviations_of_equal_and_of_tiny_sums(sums, deviation):
    assert make_agent().deviation(sums, LOCK) == pytest.approx(deviation)


def test_each_rollout_begins_with_the_shared_parameters():
    agent, seen = make_agent("tests.environments:TruncatesDiscrete-v0", t_max=4), []
    agent.theta.zero_()
    agent.gradient = lambda theta, *_: seen.append(theta[0].item()) or (agent.theta, {})
    agent.update = lambda gradient: agent.theta.add_(1.0)
    next(a3c.actor_learner(a3c.make_env(agent.args.env_id), agent, 0, LOCK))
    assert seen == [0.0, 1.0]  # a weight, before and after the first update


def test_rollouts_end_where_the_run_ends():
    agent = make_agent("tests.environments:TruncatesDiscrete-v0", t_max=4, total_timesteps=16)
    episodes = list(a3c.actor_learner(a3c.make_env(agent.args.env_id), agent, 0, LOCK))
    assert len(episodes) == 2 and agent.timestep == 16


def test_the_log_has_means_over_the_rollouts_that_log_a_value():
    agent = make_agent("tests.environments:TruncatesDiscrete-v0", t_max=4)
    logs = iter([{"a": 4.0, "b": 8.0}, {"a": 30.0}])
    agent.gradient = lambda *_: (torch.zeros_like(agent.theta), next(logs))
    row = next(a3c.actor_learner(a3c.make_env(agent.args.env_id), agent, 0, LOCK))
    assert (row["a"], row["b"]) == (17.0, 8.0)


@pytest.mark.parametrize("logits", [[0.0, 1.0, -2.0], [1e4, 1e4 - 1.0, -1e4], [-1e4, -1e4, -1e4]])
def test_actions_are_drawn_from_softmax(logits):
    rng, logits = np.random.default_rng(1), np.array(logits, np.float32)
    counts = np.bincount([a3c.sample_softmax(logits, rng) for _ in range(20_000)], minlength=3)
    expected = torch.tensor(logits).double().softmax(0).numpy()
    assert np.abs(counts / 20_000 - expected).max() < 0.015


# --- The update and what is shared


def test_two_steps_of_rmsprop_by_hand():
    flags = {"rmsprop_alpha": 0.9, "rmsprop_epsilon": 0.01, "learning_rate": 0.1}
    agent = make_agent(**flags, total_timesteps=1000)
    g, expected = 0.0, agent.theta.double().numpy()
    for gradient, timestep, rate in ((0.5, 0, 0.1), (-3.0, 500, 0.05), (1.0, 1000, 0.0)):
        agent.T.fill_(timestep)  # the rate falls with T
        agent.update(torch.full_like(agent.theta, gradient))
        g = 0.9 * g + 0.1 * gradient**2
        expected = expected - rate * gradient / np.sqrt(g + 0.01)
        np.testing.assert_allclose(agent.theta, expected, atol=1e-6)


def test_a_gradient_that_is_not_finite_leaves_theta_alone():
    agent = make_agent()
    before = agent.theta.clone()
    gradient = torch.zeros_like(before)
    gradient[3] = torch.nan
    with pytest.raises(FloatingPointError, match="at step 0"):
        agent.update(gradient)
    assert torch.equal(agent.theta, before) and not agent.g.any()


def test_what_learns_is_in_shared_memory():
    agent = make_agent()
    assert all(tensor.is_shared() for tensor in (agent.theta, agent.g, agent.T, agent.sums))


def test_a_constant_gradient_moves_by_as_many_steps():
    """N updates move θ by N steps, not by 1 + 2 + … + N; α = 0 makes each step η."""
    agent = make_agent(rmsprop_alpha=0.0, rmsprop_epsilon=1e-12, learning_rate=0.001)
    before = agent.theta.clone()
    for _ in range(10):
        agent.update(torch.ones_like(agent.theta))
    torch.testing.assert_close(agent.theta, before - 10 * 0.001, rtol=0, atol=1e-5)


def count_to_the_end(number, agent, lock, folder, all_there):
    all_there.wait(60)
    counted = 0
    while agent.count_step(lock):
        counted += 1
    Path(folder, str(number)).write_text(str(counted))


def test_the_counter_is_exact_under_four_workers(tmp_path):
    agent = make_agent(total_timesteps=30_000)
    context = multiprocessing.get_context("spawn")
    given = agent, context.Lock(), str(tmp_path), context.Barrier(4)
    processes = [context.Process(target=count_to_the_end, args=(n, *given)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    counts = [int((tmp_path / str(number)).read_text()) for number in range(4)]
    assert sum(counts) == agent.timestep == 30_000
    assert sorted(counts)[-2] > 0  # or nothing was counted at the same time


def test_the_best_parameters_are_kept():
    agent = make_agent()
    agent.theta.fill_(1.0)
    for _ in range(99):
        agent.keep_best(10.0)
    assert agent.best_theta[0] == 1.0  # the last until there have been 100 episodes
    agent.keep_best(10.0)
    for theta, return_, best in ((2.0, 9.0, 1.0), (3.0, 500.0, 3.0), (4.0, 0.0, 3.0)):
        agent.theta.fill_(theta)
        agent.keep_best(return_)
        assert agent.best_theta[0] == best


def test_best_plays_the_best():
    agent, best = make_agent(), make_agent(best=True)
    for each in (agent, best):
        output = a3c.as_layers(each.theta.zero_(), each.sizes)[0][-1][1]
        output[0] = 1.0
        each.best_theta.copy_(each.theta)
        output[1] = 2.0
    assert (agent.act(np.zeros(4)), best.act(np.zeros(4))) == (1, 0)


# --- The processes


def children(pid):
    """Return the processes that a process has started, and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with_parent = path.read_text().rpartition(")")[2].split()
        if int(with_parent[1]) == pid and with_parent[0] != "Z":
            found.append(int(path.parent.name))
    return found


def workers(pid):
    """Return those of them that are workers, not multiprocessing's resource tracker."""
    return [
        child
        for child in children(pid)
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def ignores_ctrl_c(pid):
    mask = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return int(mask, 16) >> (signal.SIGINT - 1) & 1


def gone(pids, seconds=10):
    """Whether processes end within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def start_and_wait(*flags, rows=5):
    """Start a long run in the folder run; return its process when some episodes are through."""
    flags = [*TWO, "--total-timesteps", 10**7, "--checkpoint-every", 0, *flags]
    process = start("a3c_cartpole", *flags, "--run-dir", "run")
    wait_for(process, "run", rows)
    return process


def shared_memory(pids):
    """Return the files in shared memory that processes have mapped."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return {Path(path) for path in re.findall(r"/dev/shm/\S+", maps) if Path(path).exists()}


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@on_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stop_leaves_a_checkpoint_and_no_process(number):
    """Ctrl-C reaches every process of the group, which workers ignore from their start on. Here
    they are in an episode without an end."""
    process = start_and_wait("--env-id", "tests.environments:EndsOnce-v0", rows=1)
    pids, both = children(process.pid), workers(process.pid)
    memory = shared_memory([process.pid, *pids])
    assert len(both) == 2 and memory and all(map(ignores_ctrl_c, both))
    for pid in (*(both if number == signal.SIGINT else ()), process.pid):
        os.kill(pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "--resume run" in err and "Traceback" not in err
    assert gone(pids) and not any(path.exists() for path in memory)
    assert load("run")["agent"]["T"] > 0


@on_linux
def test_a_killed_worker_ends_the_run_and_it_resumes():
    process = start_and_wait(rows=30)
    pids = children(process.pid)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert re.search(r"process [01] terminated with signal SIGKILL|a worker ended early", err)
    assert gone(pids)
    agent = load("run")["agent"]
    assert agent["T"] >= 100 and sum(agent["episodes"]) > 0

    total = int(agent["T"]) + 2000
    assert run_here("a3c_cartpole", "--resume", "run", "--total-timesteps", total) == 0
    rows, again = load("run")["rows"], load("run")["agent"]
    steps = [row["timestep"] for row in rows]
    assert steps == sorted(steps)
    assert again["T"] == total
    assert sum(again["episodes"]) == len(rows) == rows[-1]["episode"]
    played = sum(row["length"] for row in rows)
    assert played <= total  # the rest are the steps of episodes that were cut off


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RuntimeError", "RuntimeError: the environment broke"),
        ("SystemExit", "a worker ended early, at step"),  # with code 0, as if all were well
    ],
)
def test_a_failing_worker_ends_the_run_with_its_traceback(error, message):
    flags = ["--env-id", f"tests.environments:{error}AfterAWhile-v0", "--num-workers", 1]
    process = start("a3c_cartpole", *flags, "--run-dir", "run", "--checkpoint-every", 0)
    _, err = process.communicate(timeout=60)  # a busy machine takes half of that to start
    assert process.returncode == 1
    assert message in err
    assert load("run")["agent"]["T"] >= 10


def test_an_open_generator_does_not_keep_a_process_from_ending(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import a3c_cartpole as a3c\n"
        "if __name__ == '__main__':\n"
        "    args = a3c.Args(num_workers=1)\n"
        "    agent = a3c.Agent(a3c.make_env(args.env_id), args)\n"
        "    episodes = a3c.train(None, agent)\n"
        "    print(next(episodes)['length'] > 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


@on_linux
def test_more_workers_take_up_a_run_and_closing_the_generator_ends_them():
    agent = make_agent(total_timesteps=10**7)  # of one worker
    agent.args = dataclasses.replace(agent.args, num_workers=2)
    episodes = a3c.train(None, agent)
    rows = [next(episodes)]
    while len(agent.episodes) < 2 or min(agent.episodes) < 2:
        rows.append(next(episodes))
    assert len(rows) == agent.episode and sum(row["length"] for row in rows) <= agent.timestep
    assert agent.recent_returns == [row["return"] for row in rows[-100:]]  # it keeps the best
    pids = workers(os.getpid())
    assert len(pids) == 2
    episodes.close()
    assert gone(pids)


def test_two_workers_play_different_episodes():
    env = a3c.make_env("CartPole-v1")
    rows = [next(a3c.actor_learner(env, make_agent(num_workers=2), n, LOCK)) for n in (0, 1)]
    assert rows[0] != rows[1]
