"""DDPG against oracles that share no code with it."""

import copy
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch

import ddpg_continuous as ddpg
from tests import environments
from tests.conftest import run_here, start
from tests.oracle import backward, first_adam_step, forward, layers


def make_agent(**flags):
    small = {"compile": False, "hidden_sizes": (7, 5), "batch_size": 6, "buffer_size": 100}
    env = environments.Counter(low=[-1.0, -2.0], high=[1.0, 3.0])
    agent = ddpg.Agent(env, ddpg.Args(**small | flags))
    with torch.no_grad():  # last layers large enough for their gradients to matter
        for net in (agent.actor, agent.critic, agent.target_actor, agent.target_critic):
            net.layers[-1].weight.uniform_(-1, 1)
    return agent


def make_batch(size=6, seed=0):
    """Return s, a, r, s_next, terminated in float64, and as a buffer would give them."""
    rng = np.random.default_rng(seed)
    s, s_next = rng.normal(size=(2, size, 2))
    a, r = rng.uniform(-1, 1, (size, 2)), rng.normal(size=size)
    arrays = s, a, r, s_next, (np.arange(size) % 3 == 0).astype(float)
    names = "observation", "action", "reward", "next_observation", "terminated"
    return arrays, dict(zip(names, map(torch.FloatTensor, arrays)))


def test_update_against_numpy():
    agent = make_agent(actor_learning_rate=1e-3, critic_learning_rate=1e-2, tau=0.1)
    with torch.no_grad():  # targets unlike the networks, or a mix-up would not show
        for net in (agent.target_actor, agent.target_critic):
            for parameter in net.parameters():
                parameter.mul_(0.9)
    (s, a, r, s_next, terminated), batch = make_batch()
    nets = agent.actor, agent.critic, agent.target_actor, agent.target_critic
    actor, critic, target_actor, target_critic = (layers(net.layers) for net in nets)

    a_next = np.tanh(forward(target_actor, s_next)[0])
    q_next = forward(target_critic, np.hstack((s_next, a_next)))[0][:, 0]
    y = r + 0.98 * np.where(terminated, 0, q_next)
    q, inputs = forward(critic, np.hstack((s, a)))
    critic_loss = np.mean((q[:, 0] - y) ** 2)
    gradients, _ = backward(critic, inputs, 2 * (q - y[:, None]) / len(y))
    critic = [p + first_adam_step(g, 1e-2) for g, p in zip(gradients, sum(critic, ()))]
    critic = list(zip(critic[0::2], critic[1::2]))

    before_tanh, actor_inputs = forward(actor, s)
    mu = np.tanh(before_tanh)
    q_mu, inputs = forward(critic, np.hstack((s, mu)))  # with the critic just updated
    dq_da = backward(critic, inputs, np.ones_like(q_mu))[1][:, 2:]
    ascent, _ = backward(actor, actor_inputs, dq_da * (1 - mu**2) / len(s))  # ∇a Q ∇θ μ, mean
    actor = [p + first_adam_step(-g, 1e-3) for g, p in zip(ascent, sum(actor, ()))]

    log = agent.update(batch)
    expected = {"critic_loss": critic_loss, "actor_loss": -q_mu.mean(), "q": q.mean()}
    assert {name: float(value) for name, value in log.items()} == pytest.approx(expected, abs=1e-5)
    critic = sum(critic, ())
    targets = [
        [0.1 * new + 0.9 * old for new, old in zip(news, sum(olds, ()))]
        for news, olds in ((actor, target_actor), (critic, target_critic))
    ]
    for net, oracle in zip(nets, (actor, critic, *targets)):
        for parameter, value in zip(net.parameters(), oracle, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, atol=1e-5)
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_without_a_compiler_it_runs_eagerly(missing, monkeypatch, capsys):
    if missing == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(ddpg.sysconfig, "get_path", lambda name: "/nonexistent")
    assert ddpg.compiled(make_agent, "cpu") is make_agent
    assert capsys.readouterr().err.count("slower, as with --no-compile") == 1


def test_adam_against_torch():
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    theirs = copy.deepcopy(ours)
    optimizer = ddpg.Adam(ours.parameters(), 1e-2)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(16, 4)
        optimizer.minimize((ours(x) - x.sum(1, keepdim=True)).pow(2).mean())
        reference.zero_grad()
        (theirs(x) - x.sum(1, keepdim=True)).pow(2).mean().backward()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_targets_follow_the_parameters_and_copy_the_buffers():
    target, network = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    network.weight.data.fill_(5.0)
    network(torch.randn(8, 3))
    ddpg.soft_update(target, network, 0.25)
    assert target.weight.tolist() == [2.0] * 3
    for copied, original in zip(target.buffers(), network.buffers(), strict=True):
        assert torch.equal(copied, original)


# --- What the training loop does: it plays an environment that keeps the actions it is given


def actions_of(episodes=1, steps=400, **flags):
    """Return the actions of a training run without updates, whose policy is 0: the noise."""
    env = gym.wrappers.TimeLimit(ddpg.make_env("tests.environments:NeverEnds-v0"), steps)
    total = episodes * steps
    args = ddpg.Args(total_timesteps=total, learning_starts=total, compile=False, **flags)
    agent, found = ddpg.Agent(env, args), []
    agent.act = lambda observation: np.zeros(1)
    for _ in ddpg.train(env, agent):
        found.append(np.ravel(env.unwrapped.actions))
    return np.array(found)


def test_ornstein_uhlenbeck_noise():
    x = actions_of(200, 60, noise_sigma=0.1, noise_final=1.0)
    for t in (0, 5, 59):  # from x = 0: var = σ² (1 − (1−θ)^(2(t+1))) / (1 − (1−θ)²)
        variance = 0.01 * (1 - 0.85 ** (2 * t + 2)) / (1 - 0.85**2)
        assert abs(x[:, t].mean()) < 4 * (variance / 200) ** 0.5
        assert x[:, t].var() == pytest.approx(variance, rel=0.35)
    lagged = np.corrcoef(x[:, 20:-3].ravel(), x[:, 23:].ravel())[0, 1]
    assert lagged == pytest.approx(0.85**3, abs=0.05)


def test_theta_1_is_gaussian_noise_and_sigma_0_none():
    (x,) = actions_of(steps=4000, noise_theta=1.0, noise_sigma=0.3, noise_final=1.0)
    assert x.std() == pytest.approx(0.3, rel=0.05)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.06
    assert not actions_of(noise_sigma=0.0).any()


def test_noise_shrinks_over_the_run():
    flags = {"noise_theta": 1.0, "noise_sigma": 0.1}
    shrinking, full = (actions_of(8, 50, **flags, noise_final=f).ravel() for f in (0.2, 1.0))
    share = (shrinking / full)[abs(full) > 0.03]
    at = np.flatnonzero(abs(full) > 0.03)
    expected = 0.2 ** (at / 400)
    np.testing.assert_allclose(share, expected, atol=0.3)
    assert np.median(abs(share - expected)) < 0.03


def test_learning_rates_fall_over_the_second_half_and_means_are_logged():
    args = ddpg.Args(total_timesteps=70, learning_starts=1, compile=False, hidden_sizes=(4, 4))
    env = ddpg.make_env("tests.environments:Truncates-v0")
    agent, seen = ddpg.Agent(env, args), []

    def spy(batch):
        optimizers = agent.actor_optimizer, agent.critic_optimizer
        seen.append([float(o.learning_rate) for o in optimizers])
        return {"x": agent.timestep}

    agent.update = spy
    assert [row["x"] for row in ddpg.train(env, agent)] == list(range(4, 70, 7))  # means of 7
    share = np.interp(np.arange(70), [35, 70], [1, 0])
    np.testing.assert_allclose(seen, np.outer(share, [1e-4, 1e-3]), rtol=1e-5)


@pytest.mark.parametrize("name", ["Terminates", "Truncates"])
def test_the_buffer_holds_what_happened(name):
    """The environment hands out the same array at each step; no wrapper copies it."""
    env = gym.make(f"tests.environments:{name}-v0")
    env = gym.wrappers.TransformAction(env, np.float32, env.action_space)
    args = ddpg.Args(total_timesteps=70, learning_starts=70, compile=False, hidden_sizes=(4, 4))
    agent = ddpg.Agent(env, args)
    rows = list(ddpg.train(env, agent))
    assert [(row["return"], row["length"]) for row in rows] == [(7.0, 7)] * 10
    data = agent.buffer.data[:70]
    terminated = np.arange(70) % 7 == 6 if name == "Terminates" else np.zeros(70)
    np.testing.assert_array_equal(data["terminated"], terminated)
    np.testing.assert_array_equal(data["observation"][:, 0], np.arange(70) % 7)
    np.testing.assert_array_equal(data["next_observation"][:, 0], np.arange(70) % 7 + 1)


def test_actions_meet_asymmetric_bounds():
    env = ddpg.make_env("tests.environments:Asymmetric-v0")
    assert env.action_space == gym.spaces.Box(-1, 1, (4,))
    low, high = env.unwrapped.action_space.low, env.unwrapped.action_space.high
    env.reset(seed=0)
    for action, expected in ((-1, low), (1, high), (0, (low + high) / 2), (1.0000001, high)):
        env.step(np.full(4, action))  # it asserts that its bounds hold, to the last bit
        np.testing.assert_allclose(env.unwrapped.actions[-1], expected, rtol=1e-6)


def test_observations_within_narrow_bounds_are_stretched():
    env = ddpg.make_env("MountainCarContinuous-v0")
    bounds = env.observation_space.low, env.observation_space.high
    np.testing.assert_allclose(bounds, [[-1.2 / 0.9, -1], [0.6 / 0.9, 1]], rtol=1e-6)
    observation, _ = env.reset(seed=0)
    expected = env.unwrapped.state / [0.9, 0.07]
    np.testing.assert_allclose(observation, expected, rtol=1e-6)
    wide = ddpg.make_env("Pendulum-v1"), gym.make("Pendulum-v1")
    np.testing.assert_array_equal(*(env.reset(seed=0)[0] for env in wide))
    np.testing.assert_array_equal(*(env.observation_space.high for env in wide))
    of_bytes = ddpg.make_env("tests.environments:Bytes-v0").observation_space
    assert of_bytes.high.tolist() == [127, 2, 5]  # the last is constant


def test_buffer_wraps_around_and_is_restored():
    env = environments.Counter(low=[-9.0], high=[9.0])
    buffer = ddpg.ReplayBuffer(5, env)
    for i in range(8):
        buffer.add([i, i + 0.5], [-i], 10 * i, [i + 1, i + 1.5], i % 2 == 0)
    other = ddpg.ReplayBuffer(5, env)
    other.load_state_dict(buffer.state_dict())
    assert len(other) == 5 and other.count == 8
    batch = other.sample(500, np.random.default_rng(0), "cpu")
    shapes = [tuple(column.shape) for column in batch.values()]
    assert shapes == [(500, 2), (500, 1), (500,), (500, 2), (500,)]
    i = batch["observation"][:, 0]
    assert set(i.tolist()) == {3, 4, 5, 6, 7}  # the last five, and each of them
    torch.testing.assert_close(batch["observation"][:, 1], i + 0.5)
    torch.testing.assert_close(batch["action"][:, 0], -i)
    torch.testing.assert_close(batch["reward"], 10 * i)
    torch.testing.assert_close(batch["next_observation"][:, 0], i + 1)
    torch.testing.assert_close(batch["terminated"], 1 - i % 2)


def test_buffer_samples_uniformly():
    buffer = ddpg.ReplayBuffer(10, environments.Counter())
    for i in range(10):
        buffer.add([i, 0], [0], 0, [0, 0], False)
    batch = buffer.sample(20_000, np.random.default_rng(0), "cpu")
    counts = np.bincount(batch["observation"][:, 0].int())
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # χ² with 9 degrees, p = 0.001


def test_buffer_memory():
    buffer = ddpg.ReplayBuffer(1_000_000, gym.make("Pendulum-v1"))
    assert buffer.data.nbytes == 1_000_000 * (2 * 3 + 1 + 2) * 4


@pytest.mark.parametrize("field", range(4))
def test_buffer_refuses_what_is_not_finite(field):
    buffer = ddpg.ReplayBuffer(3, environments.Counter())
    transition = [np.zeros(2), np.zeros(1), 1.0, np.zeros(2), False]
    transition[field] = transition[field] + np.inf
    with pytest.raises(FloatingPointError, match="transition 0 is not finite"):
        buffer.add(*transition)
    assert buffer.count == 0


def test_initial_weights():
    agent = ddpg.Agent(environments.Counter(), ddpg.Args(compile=False))
    for net in (agent.actor, agent.critic):
        for layer in net.layers[::2]:
            bound = 3e-3 if layer is net.layers[-1] else layer.in_features**-0.5
            for parameter in layer.parameters():
                largest = parameter.abs().max().item()
                assert largest <= bound
                assert parameter.numel() < 100 or largest > 0.9 * bound


def test_learning_starts_with_what_the_buffer_holds(monkeypatch):
    """As in a fork that stores a transition some steps late."""
    late, add = [], ddpg.ReplayBuffer.add

    def add_late(buffer, *transition):
        late.append([np.array(x) for x in transition])
        if len(late) > 3:
            add(buffer, *late[-4])

    monkeypatch.setattr(ddpg.ReplayBuffer, "add", add_late)
    flags = ["--env-id", "tests.environments:Truncates-v0", "--no-compile", "--run-dir", "run"]
    flags += ["--learning-starts", 1, "--total-timesteps", 20, "--hidden-sizes", 4, 4]
    assert run_here("ddpg_continuous", *flags) == 0


@pytest.mark.slow
def test_it_learns_pendulum():
    process = start("ddpg_continuous", "--total-timesteps", 10_000, "--eval-episodes", 50)
    out, err = process.communicate()
    mean = float(out.split("mean return ")[1].split()[0])
    assert mean >= -150, err  # random actions score about −1,200
