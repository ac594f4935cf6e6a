"""A3C against oracles that share no code with it, and its processes under kill -9."""

import dataclasses
import os
import re
import signal
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

import a3c_cartpole as a3c
from tests.conftest import SMALL, load, run_here, start, wait_for
from tests.oracle import forward

LOCK = threading.Lock()


def make_agent(env_id="CartPole-v1", **flags):
    args = a3c.Args(env_id=env_id, **{"hidden_sizes": (7, 5), "num_workers": 1} | flags)
    return a3c.Agent(a3c.make_env(args), args)


# --- The networks and the losses


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


def numpy_networks(theta, observations):
    """Return the logits and the values, by the parameters of π, 4 → 7 → 5 → 2, and V in θ."""
    sizes = [4 * 7, 7, 7 * 5, 5, 5 * 2, 2, 4 * 7, 7, 7 * 5, 5, 5, 1]
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    parts[::2] = [w.reshape(-1, len(b)).T for w, b in zip(parts[::2], parts[1::2])]
    return forward(parts[:6], observations)[0], forward(parts[6:], observations)[0][:, 0]


@pytest.mark.parametrize(("entropy_coef", "value_coef"), [(0.0, 0.5), (0.7, 0.0), (0.3, 0.2)])
def test_gradient_equals_finite_differences(entropy_coef, value_coef):
    agent = make_agent(entropy_coef=entropy_coef, value_coef=value_coef)
    agent.theta.normal_(std=0.5)
    rng = np.random.default_rng(0)
    s, a, R = rng.normal(size=(6, 4)), rng.integers(2, size=6), 5 * rng.normal(size=6)
    batch = torch.tensor(s).float(), torch.tensor(a), torch.tensor(R).float()
    theta = agent.theta.double().numpy()
    logits, values = numpy_networks(theta, s)
    advantages = R - values  # constants of π's part of the loss

    def loss(theta):
        logits, values = numpy_networks(theta, s)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        policy_loss = -(np.log(p[range(6), a]) * advantages).sum()
        entropy = -(p * np.log(p)).sum()
        return policy_loss + value_coef * np.square(R - values).sum() - entropy_coef * entropy

    expected = [(loss(theta + d) - loss(theta - d)) / 2e-6 for d in 1e-6 * np.eye(len(theta))]
    assert np.abs(expected).max() > 0.1
    for _ in range(2):  # nothing accumulates
        gradient, log = agent.loss_gradient(agent.theta, *batch)
        np.testing.assert_allclose(gradient, expected, atol=1e-3, rtol=1e-3)
    assert log["value_loss"] == pytest.approx(np.square(advantages).mean(), rel=1e-4)
    assert log["value"] == pytest.approx(values.mean(), rel=1e-3)
    pi, v = a3c.as_layers(agent.theta.numpy(), agent.sizes)  # to act: one observation, in NumPy
    for observation, *outputs in zip(s.astype(np.float32), logits, values[:, None]):
        for layers, output in zip((pi, v), outputs):
            found = a3c.forward(layers, observation)
            np.testing.assert_allclose(found, output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("ending", ["Terminates", "Truncates"])
@pytest.mark.parametrize("scale_rewards", [False, True])
def test_n_step_returns_by_brute_force(gamma, ending, scale_rewards):
    """In two episodes of 7 steps, in rollouts of 4 and 3. Only termination cuts the bootstrap; the
    discounted sums, by whose deviation rewards are divided, begin anew with each episode."""
    flags = {"t_max": 4, "gamma": gamma, "scale_rewards": scale_rewards}
    agent = make_agent(f"tests.environments:{ending}Discrete-v0", **flags)
    agent.theta[-1] = 10.0  # so V is about 10 everywhere
    agent.update = lambda gradient: None
    seen, gradient = [], agent.loss_gradient
    agent.loss_gradient = lambda theta, s, a, R: seen.append((s, R)) or gradient(theta, s, a, R)
    rewards = [1.0, -2.0, 0.5, 3.0, 7.0, -1.0, 2.0]
    env = a3c.make_env(agent.args)
    env.unwrapped.reward = lambda step: rewards[step - 1]
    ends = []
    for row in islice(a3c.actor_learner(env, agent, 0, LOCK), 2):
        assert (row["length"], row["return"]) == (7, sum(rewards))
        ends.append(torch.tensor(env.unwrapped.observation).float())
    assert [s[:, 0].tolist() for s, _ in seen] == [[0, 1, 2, 3], [4, 5, 6]] * 2
    assert agent.timestep == 14

    _, v = a3c.as_layers(agent.theta, agent.sizes)
    sums = [sum(gamma ** (t - k) * rewards[k] for k in range(t + 1)) for t in range(7)] * 2
    parts = [rewards[:4], rewards[4:]] * 2
    next_states = seen[1][0][0], ends[0], seen[3][0][0], ends[1]
    for (_, R), part, s_next, steps in zip(seen, parts, next_states, (4, 7, 11, 14)):
        cut = ending == "Terminates" and steps % 7 == 0
        value = 0.0 if cut else a3c.forward(v, s_next).item()
        scale = np.std(sums[:steps]) if scale_rewards else 1.0
        expected = [
            sum(gamma**k * r / scale for k, r in enumerate(part[i:]))
            + gamma ** (len(part) - i) * value
            for i in range(len(part))
        ]
        np.testing.assert_allclose(R, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("sums", "deviation"), [([0.0, 0.0], 1.0), ([0.1, 0.1], 1.0), ([1e-6, 3e-6], 1e-6)]
)
def test_deviations_of_equal_and_of_tiny_sums(sums, deviation):
    assert make_agent().reward_scale(sums, LOCK) == pytest.approx(deviation)


def test_rollouts_begin_with_the_shared_parameters_and_end_where_the_run_ends():
    """The log has means over those that log a value."""
    agent = make_agent("tests.environments:TruncatesDiscrete-v0", t_max=4, total_timesteps=16)
    agent.theta.zero_()
    seen, logs = [], iter([{"a": 4.0, "b": 8.0}, {"a": 30.0}, {}, {}, {}])
    agent.loss_gradient = lambda theta, *_: (
        seen.append(theta[0].item()) or (agent.theta, next(logs))
    )
    agent.update = lambda gradient: agent.theta.add_(1.0)
    rows = list(a3c.actor_learner(a3c.make_env(agent.args), agent, 0, LOCK))
    assert seen == [0.0, 1.0, 2.0, 3.0, 4.0]  # a weight, before and after each update
    assert len(rows) == 2 and agent.timestep == 16
    assert (rows[0]["a"], rows[0]["b"]) == (17.0, 8.0)


@pytest.mark.parametrize("logits", [[0.0, 1.0, -2.0], [1e4, 1e4 - 1.0, -1e4], [-1e4, -1e4, -1e4]])
def test_actions_are_drawn_from_softmax(logits):
    rng, logits = np.random.default_rng(1), np.array(logits, np.float32)
    counts = np.bincount([a3c.sample_softmax(logits, rng) for _ in range(20_000)], minlength=3)
    expected = torch.tensor(logits).double().softmax(0).numpy()
    assert np.abs(counts / 20_000 - expected).max() < 0.015


# --- The update and what is shared


def test_three_steps_of_rmsprop_by_hand():
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
    assert all(tensor.is_shared() for tensor in (agent.theta, agent.g, agent.T, agent.reward_sums))


def count_to_the_end(number, agent, lock, folder, all_there):
    all_there.wait(60)
    counted = 0
    while agent.count_step(lock):
        counted += 1
    (folder / str(number)).write_text(str(counted))


def test_the_counter_is_exact_under_four_workers(tmp_path):
    agent = make_agent(total_timesteps=30_000)
    context = multiprocessing.get_context("spawn")
    given = agent, context.Lock(), tmp_path, context.Barrier(4)
    multiprocessing.spawn(count_to_the_end, given, nprocs=4)
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
        each.acting_theta = each.theta
        output[1] = 2.0
    assert (agent.act(np.zeros(4)), best.act(np.zeros(4))) == (1, 0)


def test_what_is_evaluated_is_the_last_theta_also_within_an_episode():
    flags = ["--env-id", "tests.environments:EndsOnce-v0", "--total-timesteps", 200]
    assert run_here("a3c_cartpole", *SMALL["a3c_cartpole"], *flags, "--run-dir", "run") == 0
    agent, rows = load("run")["agent"], load("run")["rows"]
    assert [row["timestep"] for row in rows] == [7] and agent["T"] == 200
    assert torch.equal(agent["acting_theta"], agent["theta"])


# --- The processes


def children(pid):
    """Return the processes that a process has started, and that live."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(stat.split()[0]) for stat in stats if re.search(rf"\) [^Z] {pid} ", stat)]


def workers(pid):
    """Return those of them that are workers, not multiprocessing's resource tracker."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(pid)}
    return [child for child in commands if "spawn_main" in commands[child]]


def wait_for_end(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_and_wait(*flags, rows):
    """Start a long run in the folder run; return its process when some episodes are through."""
    flags = [*SMALL["a3c_cartpole"], "--num-workers", 2, "--total-timesteps", 10**7, *flags]
    process = start("a3c_cartpole", *flags, "--checkpoint-every", 0, "--run-dir", "run")
    wait_for(process, "run", rows)
    return process


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@on_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stop_leaves_a_checkpoint_and_no_process(number):
    """Ctrl-C reaches every process of the group, which workers ignore from their start on. Here
    they are in an episode without an end."""
    process = start_and_wait("--env-id", "tests.environments:EndsOnce-v0", rows=1)
    pids, both = children(process.pid), workers(process.pid)
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (process.pid, *pids))
    memory = [path for path in map(Path, re.findall(r"/dev/shm/\S+", maps)) if path.exists()]
    assert len(both) == 2 and memory
    for pid in both:
        status = Path(f"/proc/{pid}/status").read_text()
        masks = [int(mask, 16) for mask in re.findall(r"Sig(?:Ign|Blk):\s*(\w+)", status)]
        assert any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)
    for pid in (*(both if number == signal.SIGINT else ()), process.pid):
        os.kill(pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "--resume run" in err and "Traceback" not in err
    wait_for_end(pids)
    assert not any(path.exists() for path in memory)
    assert load("run")["agent"]["T"] > 0


def test_a_worker_that_is_killed_while_it_sends_an_episode(monkeypatch):
    monkeypatch.setenv("MORTAL", "mortal")
    flags = ["--env-id", "tests.environments:Mortal-v0", "--num-workers", 2]
    process = start("a3c_cartpole", *SMALL["a3c_cartpole"], "--total-timesteps", 10**7, *flags)
    _, err = process.communicate(timeout=25)
    assert process.returncode == 1 and "signal SIGKILL" in err


@on_linux
def test_a_killed_worker_ends_the_run_and_it_resumes():
    process = start_and_wait(rows=30)
    pids = children(process.pid)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert re.search(r"process [01] terminated with signal SIGKILL|a worker ended early", err)
    wait_for_end(pids)
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
    (tmp_path / "script.py").write_text(
        "import a3c_cartpole as a3c\n"
        "if __name__ == '__main__':\n"
        "    args = a3c.Args(num_workers=1)\n"
        "    agent = a3c.Agent(a3c.make_env(args), args)\n"
        "    episodes = a3c.train(None, agent)\n"
        "    print(next(episodes)['length'] > 0)\n"
    )
    process = start(tmp_path / "script")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "True\n"), err


@on_linux
def test_more_workers_take_up_a_run_and_closing_the_generator_ends_them():
    agent = make_agent(total_timesteps=10**7)  # of one worker
    agent.args = dataclasses.replace(agent.args, num_workers=2)
    episodes = a3c.train(None, agent)
    rows = [next(episodes)]
    while len(agent.episodes) < 2 or min(agent.episodes) < 2:
        rows.append(next(episodes))
    assert len(rows) == agent.episode and sum(row["length"] for row in rows) <= agent.timestep
    assert list(agent.recent_returns) == [row["return"] for row in rows[-100:]]  # it keeps the best
    pids = workers(os.getpid())
    assert len(pids) == 2
    episodes.close()
    wait_for_end(pids)


def test_two_workers_play_different_episodes():
    env = a3c.make_env(a3c.Args())
    rows = [next(a3c.actor_learner(env, make_agent(num_workers=2), n, LOCK)) for n in (0, 1)]
    assert rows[0] != rows[1]
