"""DQN against oracles that share no code with it."""

import csv
import warnings
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import dqn_shower as dqn
from benchmarks import shower_optimum as optimum
from tests.conftest import run_here

# --- The shower


def make_shower(**options):
    return gym.make("dqn_shower:Shower-v0", **options)


def test_the_environment_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # pygame's own
        check_env(make_shower().unwrapped)


def test_reset_is_uniform_from_35_to_41():
    env = make_shower()
    starts = [env.reset(seed=seed)[0].item() for seed in range(3500)]
    counts = Counter(starts)
    assert set(counts) == {35, 36, 37, 38, 39, 40, 41}
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 22.5  # χ², 6 degrees, p = 0.001


@pytest.mark.parametrize("action", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0, 35, 36, 37, 38, 39, 40, 41, 100])
def test_transitions_and_rewards(temperature, action):
    env = make_shower().unwrapped
    env.reset(seed=10 * temperature + action)
    turned = min(max(temperature + action - 1, 0), 100)
    counts = Counter()
    for _ in range(1500):
        env.temperatures = [float(temperature)]
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == (1 if turned in (37, 38, 39) else -1)
        assert not terminated and not truncated
        assert observation.dtype == np.float32 and env.observation_space.contains(observation)
        counts[observation.item()] += 1
    expected = Counter(float(min(max(turned + drift, 0), 100)) for drift in (-1, 0, 1))
    assert counts.keys() == expected.keys()
    chi2 = sum((counts[t] - 500 * n) ** 2 / (500 * n) for t, n in expected.items())
    assert chi2 < 13.9  # 2 degrees, p = 0.001


def test_an_episode_is_truncated_after_sixty_seconds():
    env = make_shower()
    env.reset(seed=0)
    ends = [env.step(1)[2:4] for _ in range(60)]
    assert ends == [(False, False)] * 59 + [(False, True)]


@pytest.mark.parametrize("action", [3, -1, 0.5, None])
def test_wrong_actions_raise(action):
    env = make_shower().unwrapped
    env.reset(seed=0)
    with pytest.raises(AssertionError, match="is not in"):
        env.step(action)


def test_rendering(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make_shower(render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()]
    for action in (0, 0, 2):
        env.step(action)
        pictures.append(env.render())
    assert all(p.shape == (400, 600, 3) and p.dtype == np.uint8 for p in pictures)
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:]))
    env = make_shower(render_mode="ansi")
    env.reset(seed=0)
    first = env.render()
    env.step(0)
    assert "°C" in first and first != env.render()
    env = make_shower(render_mode="human")
    env.reset(seed=0)
    env.step(1)
    assert env.unwrapped.window is not None
    env.close()
    assert env.unwrapped.window is None


def test_dynamic_programming_gives_the_known_values():
    assert float(optimum.optimal_return()) == pytest.approx(414 / 7, abs=1e-12)
    assert float(optimum.random_return()) == pytest.approx(-35.2705, abs=5e-5)
    env, returns = make_shower(), []
    for seed in range(400):  # and the environment itself gives the same, played by hand
        temperature, return_ = env.reset(seed=seed)[0].item(), 0.0
        for _ in range(60):
            action = 1 + int(np.sign(38 - temperature))
            observation, reward, *_ = env.step(action)
            temperature, return_ = observation.item(), return_ + reward
        returns.append(return_)
    assert np.mean(returns) == pytest.approx(414 / 7, abs=4 * np.std(returns) / 20)


# --- The learner


def make_agent(env_id="CartPole-v1", **flags):
    small = {"hidden_sizes": (7, 5), "batch_size": 6, "buffer_size": 100, "learning_starts": 10}
    args = dqn.Args(env_id=env_id, **small | flags)
    agent = dqn.Agent(dqn.make_env(env_id), args)
    with torch.no_grad():  # a target unlike the network, or a mix-up would not show
        for network in (agent.q_network, agent.target_network):
            network.output.weight.uniform_(-1, 1)
            network.output.bias.zero_()
    return agent


def make_batch(size=6, S=4, A=2):
    rng = np.random.default_rng(0)
    s, s_next, r = rng.normal(size=(size, S)), rng.normal(size=(size, S)), 3 * rng.normal(size=size)
    a, terminated = rng.integers(A, size=size), np.arange(size) % 3 == 0
    rows = np.hstack((s, a[:, None], r[:, None], s_next, terminated[:, None]))
    return (s, a, r, s_next, terminated), torch.tensor(rows, dtype=torch.float32)


def layers(network):
    names = ("hidden1", "hidden2", "output")
    return [
        tuple(p.detach().double().numpy().copy() for p in getattr(network, name).parameters())
        for name in names
    ]


def forward(network, x):
    """Return the outputs, and the input of each layer."""
    inputs = []
    for number, (weight, bias) in enumerate(network):
        inputs.append(x)
        x = x @ weight.T + bias
        if number < 2:
            x = np.maximum(x, 0)
    return x, inputs


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [False, True])
def test_update_against_numpy(double, huber):
    agent = make_agent(double=double, huber=huber, target_update=0.1, learning_rate=1e-2)
    (s, a, r, s_next, terminated), batch = make_batch()
    q_net, target = layers(agent.q_network), layers(agent.target_network)
    index = np.arange(6)

    q_next, by_q = forward(target, s_next)[0], forward(q_net, s_next)[0]
    assert (q_next.argmax(1) != by_q.argmax(1)).any()  # or single and double are the same
    chosen = (by_q if double else q_next).argmax(1)
    y = r + 0.99 * np.where(terminated, 0, q_next[index, chosen])
    q, inputs = forward(q_net, s)
    error = q[index, a] - y
    assert (abs(error) > 1).any() and (abs(error) < 1).any()  # both parts of Huber's loss
    huber_loss = np.where(abs(error) <= 1, error**2 / 2, abs(error) - 0.5)
    loss = np.mean(huber_loss if huber else error**2)

    gradient = np.zeros_like(q)
    gradient[index, a] = (np.clip(error, -1, 1) if huber else 2 * error) / 6
    gradients = []
    for (weight, _), x in zip(reversed(q_net), reversed(inputs)):
        gradients = [gradient.T @ x, gradient.sum(0), *gradients]
        gradient = (gradient @ weight) * (x > 0)
    new = [p - 1e-2 * g / (abs(g) + 1e-8) for p, g in zip(sum(q_net, ()), gradients)]  # Adam

    result = agent.update_and_q_values(batch, torch.from_numpy(s[2]).float())
    np.testing.assert_allclose(result[:2].numpy(), [loss, q[index, a].mean()], atol=1e-5)
    by_new_q = forward(list(zip(new[::2], new[1::2])), s[2:3])[0][0]
    assert abs(by_new_q - q[2]).max() > 1e-3  # the action is to come of what was just learned
    np.testing.assert_allclose(result[2:].numpy(), by_new_q, atol=1e-5)
    for parameter, value in zip(agent.q_network.parameters(), new, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, atol=1e-5)
    for parameter, n, o in zip(agent.target_network.parameters(), new, sum(target, ())):
        np.testing.assert_allclose(parameter.numpy(), 0.1 * n + 0.9 * o, atol=1e-5)


def test_huber_against_torch():
    agent = make_agent(huber=True, learning_rate=1e-9)
    (s, a, r, s_next, terminated), batch = make_batch()
    with torch.no_grad():
        q_next = agent.target_network(torch.tensor(s_next).float()).amax(1)
        y = torch.tensor(r).float() + 0.99 * q_next * torch.tensor(~terminated)
        q = agent.q_network(torch.tensor(s).float())[torch.arange(6), torch.tensor(a)]
    expected = torch.nn.SmoothL1Loss()(q, y).item()
    assert agent.update(batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("flags", [{}, {"double": True, "huber": True, "target_update": 5.0}])
def test_compiled_equals_eager(flags):
    torch.manual_seed(0)
    eager, graph = make_agent(**flags), make_agent(**flags, compile=True)
    graph.target_network.load_state_dict(eager.target_network.state_dict())
    _, batch = make_batch()
    for _ in range(5):
        results = [agent.update_and_q_values(batch, batch[0, :4]) for agent in (eager, graph)]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    for part in ("q_network", "target_network"):
        pairs = zip(getattr(eager, part).parameters(), getattr(graph, part).parameters())
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_hard_target_updates():
    agent = make_agent(target_update=4.0)
    _, batch = make_batch()
    before = [p.clone() for p in agent.target_network.parameters()]
    for agent.timestep in (1, 2, 3):
        agent.update(batch)
        agent.reset_target()
        pairs = zip(before, agent.target_network.parameters())
        assert all(torch.equal(old, new) for old, new in pairs)
    agent.timestep = 4
    agent.reset_target()
    pairs = zip(agent.q_network.parameters(), agent.target_network.parameters())
    assert all(torch.equal(q, target) for q, target in pairs)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_boltzmann_frequencies(offset, temperature):
    q, rng = np.array([1.0, -1.0, 2.0, 1.5]), np.random.default_rng(0)
    draws = [dqn.boltzmann(q + offset, temperature, rng) for _ in range(20_000)]
    expected = 20_000 * torch.softmax(torch.tensor(q / temperature), 0).numpy()
    assert ((np.bincount(draws, minlength=4) - expected) ** 2 / expected).sum() < 16.3  # p = 0.001


def test_values_that_are_not_finite_stop_a_run():
    agent = make_agent()
    agent.q_network.output.bias.data[0] = torch.nan
    agent.timestep = 17
    with pytest.raises(FloatingPointError, match="at step 17"):
        agent.q_values(np.zeros(4, np.float32))


def test_boltzmann_with_values_far_apart():
    rng = np.random.default_rng(0)
    q = np.array([-1e4, 1e4, 0.0], np.float32)
    assert {dqn.boltzmann(q, 1.0, rng) for _ in range(100)} == {1}


@pytest.mark.parametrize(
    ("timestep", "epsilon"), [(0, 0.9), (100, 0.5), (200, 0.1), (201, 0.1), (1000, 0.1)]
)
def test_epsilon_schedule(timestep, epsilon):
    flags = {"epsilon_start": 0.9, "epsilon_end": 0.1, "epsilon_fraction": 0.2}
    agent = make_agent(total_timesteps=1000, **flags)
    agent.timestep = timestep
    assert agent.epsilon() == pytest.approx(epsilon)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    flags = {"epsilon_start": epsilon, "epsilon_end": epsilon, "exploration": "epsilon-greedy"}
    agent = make_agent("Acrobot-v1", **flags)
    agent.reset(np.random.default_rng(0))
    s = np.full(6, 0.5, np.float32)
    q = agent.q_values(s)
    greedy = int(q.argmax())
    draws = np.array([agent.explore(q) for _ in range(3000)])
    share = 1 - epsilon * 2 / 3
    assert (draws == greedy).mean() == pytest.approx(share, abs=0.03)
    assert agent.act(s) == greedy


def test_learning_rate_decays():
    agent = make_agent(total_timesteps=1000, learning_rate_decay_start=0.6)
    for agent.timestep, share in ((0, 1), (600, 1), (800, 0.5), (1000, 0), (1200, 0)):
        agent.anneal()
        assert agent.optimizer.learning_rate.item() == pytest.approx(share * 1e-3)


@pytest.mark.parametrize("name", ["FirstActionFive", "TruncatesDiscrete"])
def test_train_stores_what_happened(name):
    env = gym.make(f"tests.environments:{name}-v0")
    args = dqn.Args(total_timesteps=70, learning_starts=70, batch_size=8)
    agent = dqn.Agent(env, args)
    episodes = list(dqn.train(env, agent, args))
    assert [(e.return_, e.length) for e in episodes] == [(7.0, 7)] * 10
    rows = agent.buffer.rows[:70]
    assert set(rows[:, 2]) == {0, 1, 2}  # indices; the environment asserts that 5, 6, 7 came
    assert rows[:, -1].sum() == (10 if name == "FirstActionFive" else 0)
    np.testing.assert_array_equal(rows[:, 4], rows[:, 0] + 1)  # not the reset observation


def test_the_network_has_723_parameters():
    agent = dqn.Agent(make_shower(), dqn.Args())
    assert sum(p.numel() for p in agent.q_network.parameters()) == 723


def test_it_learns_the_shower_to_the_exact_optimum(tmp_path):
    assert run_here("dqn_shower", "--run-dir", "run", "--seed", 21) == 0
    policy = optimum.learned_q(tmp_path / "run").argmax(1)
    optimal = optimum.optimal_actions()
    assert all(policy[t] in optimal[t] for t in range(35, 42)), policy[35:42]
    assert optimum.policy_return(policy) == optimum.optimal_return()
    assert (tmp_path / "run" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "run" / "evaluation.csv") as file:
        assert np.mean([float(row["return"]) for row in csv.DictReader(file)]) > 55
