"""DDPG, and what DQN has in common with it, against oracles that share no code with them."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import ddpg_continuous as ddpg
import dqn_shower as dqn
from tests import environments
from tests.oracle import backward, first_adam_step, forward, make_batch, parameters


def test_update_against_numpy():
    flags = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-2, "tau": 0.1}
    env = environments.Counter(action=gym.spaces.Box(-1, 1, (2,)))
    agent = ddpg.Agent(env, ddpg.Args(hidden_sizes=(7, 5), **flags))
    nets = agent.actor, agent.critic, agent.target_actor, agent.target_critic
    with torch.no_grad():
        for net in nets:  # last layers large enough for their gradients to matter
            net.layers[-1].weight.uniform_(-1, 1)
        for net in nets[2:]:  # targets unlike the networks, or a mix-up would not show
            for parameter in net.parameters():
                parameter.mul_(0.9)
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 2))
    (s, a, r, s_next, terminated), batch = make_batch(2, actions)
    actor, critic, target_actor, target_critic = map(parameters, nets)

    a_next = np.tanh(forward(target_actor, s_next)[0])
    q_next = forward(target_critic, np.hstack((s_next, a_next)))[0][:, 0]
    y = r + 0.98 * np.where(terminated, 0, q_next)
    q, inputs = forward(critic, np.hstack((s, a)))
    critic_loss = np.mean((q[:, 0] - y) ** 2)
    gradients, _ = backward(critic, inputs, 2 * (q - y[:, None]) / len(y))
    critic = [p + first_adam_step(g, 1e-2) for p, g in zip(critic, gradients)]

    before_tanh, actor_inputs = forward(actor, s)
    mu = np.tanh(before_tanh)
    q_mu, inputs = forward(critic, np.hstack((s, mu)))  # with the critic just updated
    dq_da = backward(critic, inputs, np.ones_like(q_mu))[1][:, 2:]
    ascent, _ = backward(actor, actor_inputs, dq_da * (1 - mu**2) / len(s))  # ∇a Q ∇θ μ, mean
    actor = [p + first_adam_step(-g, 1e-3) for p, g in zip(actor, ascent)]
    target_actor = [0.1 * new + 0.9 * old for new, old in zip(actor, target_actor)]
    target_critic = [0.1 * new + 0.9 * old for new, old in zip(critic, target_critic)]

    log = agent.update(batch)
    expected = {"critic_loss": critic_loss, "actor_loss": -q_mu.mean(), "q": q.mean()}
    assert {name: float(value) for name, value in log.items()} == pytest.approx(expected, abs=1e-5)
    for net, oracle in zip(nets, (actor, critic, target_actor, target_critic)):
        for parameter, value in zip(net.parameters(), oracle, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, atol=1e-5)
    for parameter, gradient in zip(agent.critic.parameters(), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad, gradient, atol=1e-5)  # and none of the actor's


@pytest.mark.parametrize("compiler", ["none", "false", "ls"])
def test_where_compiling_fails_it_runs_eagerly(compiler, tmp_path, monkeypatch, capsys):
    """As it is missing, fails, or does something else: it is tried."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": (None, compiler)}):
        assert ddpg.compiled(len, "cpu") is len
    err = capsys.readouterr().err
    assert "slower, as with --no-compile: compiling fails" in err and err.count("\n") == 1


@pytest.mark.parametrize("clip", [0, 0.01])
def test_adam_against_torch(clip):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    theirs = copy.deepcopy(ours)
    optimizer = ddpg.Adam(ours.parameters(), lr=1e-2)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(16, 4)
        for net, adam in ((ours, optimizer), (theirs, reference)):
            adam.zero_grad()
            (net(x) - x.sum(1, keepdim=True)).pow(2).mean().backward()
            if clip:
                assert nn.utils.clip_grad_norm_(net.parameters(), clip) > clip
            adam.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def test_targets_follow_the_parameters_and_copy_the_buffers():
    target, network = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    network.weight.data.fill_(5.0)
    network(torch.randn(8, 3))
    ddpg.soft_update(target, network, 0.25)
    assert target.weight.tolist() == [2.0] * 3
    for copied, original in zip(target.buffers(), network.buffers(), strict=True):
        assert torch.equal(copied, original)


# --- What the training loop does, some of it in DQN's, too


def actions_of(episodes, steps, **flags):
    """Return the actions of a training run without updates, whose policy is 0: the noise."""
    flags |= {"env_id": "tests.environments:NeverEnds-v0", "max_episode_steps": steps}
    total = episodes * steps
    args = ddpg.Args(total_timesteps=total, learning_starts=total, compile=False, **flags)
    env = ddpg.make_env(args)
    agent = ddpg.Agent(env, args)
    agent.act = lambda observation: np.zeros(1)
    return np.array([np.ravel(env.unwrapped.actions) for _ in ddpg.train(env, agent)])


@pytest.mark.parametrize("theta", [0.15, 1.0])
def test_ornstein_uhlenbeck_noise(theta):
    """It is Gaussian noise if θ = 1."""
    x = actions_of(200, 60, noise_theta=theta, noise_sigma=0.1, noise_final=1.0)
    variances = 0.1**2 * np.cumsum((1 - theta) ** (2 * np.arange(60)))  # from x = 0
    assert (abs(x.mean(0)) < 4 * (variances / 200) ** 0.5).all()
    np.testing.assert_allclose(x.var(0), variances, rtol=0.35)
    assert x.std() == pytest.approx(variances.mean() ** 0.5, rel=0.05)
    assert (abs(x) > 2 * variances**0.5).mean() == pytest.approx(0.0455, abs=0.01)
    for lag in (1, 3):
        correlation = np.corrcoef(x[:, 20:-lag].ravel(), x[:, 20 + lag :].ravel())[0, 1]
        assert correlation == pytest.approx((1 - theta) ** lag, abs=0.05)


def test_noise_shrinks_over_the_run():
    full, shrinking = (
        actions_of(8, 50, noise_sigma=0.1, noise_final=final).ravel() for final in (1.0, 0.2)
    )
    np.testing.assert_allclose(shrinking, full * 0.2 ** (np.arange(400) / 400), rtol=1e-5)
    assert not actions_of(8, 50, noise_sigma=0.0).any()


def make_learner(script, name, **flags):
    """Return an environment, of actions that suit DDPG or DQN, and an agent for 70 steps of it."""
    env_id = f"tests.environments:{name}{'Discrete' if script is dqn else ''}-v0"
    args = script.Args(env_id=env_id, total_timesteps=70, compile=False, **flags)
    env = script.make_env(args)
    return env, script.Agent(env, args)


@pytest.mark.parametrize(("script", "rates"), [(ddpg, [1e-4, 1e-3]), (dqn, [1e-3])])
def test_learning_rates_fall_over_the_second_half_and_means_are_logged(script, rates):
    env, agent = make_learner(script, "Truncates", learning_starts=1, learning_rate_final=0.2)
    optimizers = [part for part in agent.children() if isinstance(part, script.Adam)]
    seen = []

    def spy(*_):
        seen.append([optimizer.lr.item() for optimizer in optimizers])
        return {"x": agent.timestep}

    agent.update = spy
    assert [row["x"] for row in script.train(env, agent)] == list(range(4, 70, 7))  # means of 7
    fractions = np.interp(np.arange(70), [35, 70], [1, 0.2])
    np.testing.assert_allclose(seen, np.outer(fractions, rates), rtol=1e-5)


@pytest.mark.parametrize("script", [ddpg, dqn])
@pytest.mark.parametrize("name", ["Terminates", "Truncates"])
def test_the_buffer_holds_what_happened(script, name):
    """The environment hands out the same array at each step; `make_env` copies it."""
    env, agent = make_learner(script, name, learning_starts=70)
    actions = []
    for row in script.train(env, agent):
        assert (row["return"], row["length"]) == (7.0, 7)
        actions += env.unwrapped.actions
    data = agent.buffer.data[:70]
    terminated = np.arange(70) % 7 == 6 if name == "Terminates" else np.zeros(70)
    np.testing.assert_array_equal(data["terminated"], terminated)
    np.testing.assert_array_equal(data["observation"][:, 0], np.arange(70) % 7)
    np.testing.assert_array_equal(data["next_observation"][:, 0], np.arange(70) % 7 + 1)
    np.testing.assert_allclose(data["action"], actions, rtol=1e-6)


@pytest.mark.parametrize("script", [ddpg, dqn])
def test_learning_starts_with_what_the_buffer_holds(script):
    """A fork may store transitions late, or not all of them."""
    env, agent = make_learner(script, "Truncates", learning_starts=1)
    agent.buffer.add = lambda *transition: None
    agent.update = None  # to call it is an error
    assert len(list(script.train(env, agent))) == 10


def test_actions_meet_asymmetric_bounds():
    env = ddpg.make_env(ddpg.Args(env_id="tests.environments:Asymmetric-v0"))
    assert env.action_space == gym.spaces.Box(-1, 1, (4,))
    low, high = env.unwrapped.action_space.low, env.unwrapped.action_space.high
    env.reset(seed=0)
    for action, expected in ((-1, low), (1, high), (0, (low + high) / 2), (1.0000001, high)):
        env.step(np.full(4, action))  # it asserts that its bounds hold, to the last bit
        np.testing.assert_allclose(env.unwrapped.actions[-1], expected, rtol=1e-6)


def test_observations_within_narrow_bounds_are_stretched():
    env = ddpg.make_env(ddpg.Args(env_id="MountainCarContinuous-v0"))
    bounds = env.observation_space.low, env.observation_space.high
    np.testing.assert_allclose(bounds, [[-1.2 / 0.9, -1], [0.6 / 0.9, 1]], rtol=1e-6)
    observation, _ = env.reset(seed=0)
    expected = env.unwrapped.state / [0.9, 0.07]
    np.testing.assert_allclose(observation, expected, rtol=1e-6)
    wide = ddpg.make_env(ddpg.Args(env_id="Pendulum-v1")), gym.make("Pendulum-v1")
    np.testing.assert_array_equal(*(env.reset(seed=0)[0] for env in wide))
    np.testing.assert_array_equal(*(env.observation_space.high for env in wide))
    of_bytes = ddpg.make_env(ddpg.Args(env_id="tests.environments:Bytes-v0")).observation_space
    assert of_bytes.high.tolist() == [127, 2, 5]  # the last is constant


def test_buffer_wraps_around_is_restored_and_sampled_uniformly():
    env = environments.Counter(action=gym.spaces.Box(-1, 1, (1,)))
    buffer, other = (ddpg.ReplayBuffer(5, env) for _ in range(2))
    for i in range(8):
        buffer.add([i, i + 0.5], [-i], 10 * i, [i + 1, i + 1.5], i % 2 == 0)
        assert len(buffer) == min(i + 1, 5)
    assert buffer.data.itemsize == 4 * (2 + 1 + 1 + 2 + 1)
    other.load_state_dict(buffer.state_dict())
    assert other.count == 8
    batch = other.sample(20_000, np.random.default_rng(0), "cpu")
    i = batch["observation"][:, 0]
    counts = np.bincount(i.int(), minlength=8)
    assert not counts[:3].any()  # the last five are kept
    assert ((counts[3:] - 4000) ** 2 / 4000).sum() < 18.5  # χ² with 4 degrees, p = 0.001
    expected = {
        "observation": torch.stack((i, i + 0.5), dim=1),
        "action": -i[:, None],
        "reward": 10 * i,
        "next_observation": torch.stack((i + 1, i + 1.5), dim=1),
        "terminated": 1 - i % 2,
    }
    torch.testing.assert_close(batch, expected)


@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("large", [np.inf, 1e39])
def test_buffer_refuses_what_is_not_finite(field, large):
    """In float32."""
    buffer = ddpg.ReplayBuffer(3, environments.Counter(action=gym.spaces.Box(-1, 1, (1,))))
    transition = [np.zeros(2), np.zeros(1), 1.0, np.zeros(2), False]
    transition[field] = transition[field] + large
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
