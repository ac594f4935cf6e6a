"""DQN against oracles that share no code with it."""

import re
import warnings
from collections import Counter
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import dqn_shower as dqn
from benchmarks import optimum
from tests.conftest import ROOT, each_device, import_fork, read_csv
from tests.oracle import backward, first_adam_step, forward, make_batch, parameters

# --- The shower


def test_the_environment_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # pygame's own
        check_env(gym.make("Shower-v0").unwrapped)


def test_reset_is_uniform_from_35_to_41():
    env = gym.make("Shower-v0")
    starts = [env.reset(seed=seed)[0].item() for seed in range(3500)]
    counts = Counter(starts)
    assert set(counts) == {35, 36, 37, 38, 39, 40, 41}
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 22.5  # χ², 6 degrees, p = 0.001


@pytest.mark.parametrize("action", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0, 35, 36, 37, 38, 39, 40, 41, 100])
def test_transitions_and_rewards(temperature, action):
    env = gym.make("Shower-v0").unwrapped
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


@pytest.mark.parametrize("action", [3, -1, 0.5, None])
def test_wrong_actions_raise(action):
    env = gym.make("Shower-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(AssertionError, match="is not in"):
        env.step(action)


def test_rendering():
    env = gym.make("Shower-v0", render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()]
    for action in (0, 0, 2):
        env.step(action)
        pictures.append(env.render())
    assert all(p.shape == (400, 600, 3) and p.dtype == np.uint8 for p in pictures)
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:]))
    rows = np.flatnonzero((pictures[-1][:, 300] == (152, 251, 152)).all(1))  # the band's green
    assert (rows[0], rows[-1]) == (20 * (48 - 39), 20 * (48 - 37) - 1)


def test_a_window_is_opened_by_gymnasium(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("Shower-v0", render_mode="human")
    env.reset(seed=0)
    env.step(1)
    env.close()


def test_dynamic_programming_gives_the_known_values():
    table = optimum.shower_table()
    assert table.expected_return(table.optimal_q().argmax(1)) == pytest.approx(414 / 7, abs=1e-9)
    values = np.zeros(101)
    for _ in range(60):  # the random agent's
        values = (table.rewards + table.transitions @ values).mean(axis=1)
    assert table.starts @ values == pytest.approx(-35.2705, abs=5e-5)
    env, returns = gym.make("Shower-v0"), []
    for seed in range(400):  # and the environment itself gives the same, played by hand
        temperature, return_ = env.reset(seed=seed)[0].item(), 0.0
        for second in range(1, 61):
            action = 1 + int(np.sign(38 - temperature))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (terminated, truncated) == (False, second == 60)
            temperature, return_ = observation.item(), return_ + reward
        returns.append(return_)
    assert np.mean(returns) == pytest.approx(414 / 7, abs=4 * np.std(returns) / 20)


# --- The learner; what it has in common with DDPG is tested with that

ACTIONS = np.array([0, 1, 1, 0, 1, 0])


def make_agent(env_id="CartPole-v1", script=dqn, **flags):
    small = {"hidden_sizes": (7, 5), "batch_size": 6, "buffer_size": 100, "learning_starts": 10}
    args = script.Args(env_id=env_id, **small | flags)
    agent = script.Agent(script.make_env(args), args)
    with torch.no_grad():  # a target unlike the network, or a mix-up would not show
        for network in (agent.q_network, agent.target_network):
            network[-1].weight.uniform_(-1, 1)
            network[-1].bias.zero_()
    return agent


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [False, True])
@pytest.mark.parametrize("update_target", [False, True])
def test_update_against_numpy(double, huber, update_target, tmp_path):
    """As the script has it, and with double Q-learning, by the lines that the README exchanges."""
    script = dqn
    if double:
        diff = re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
        old, new = ("".join(re.findall(rf"^\{sign}(.*\n)", diff, re.M)) for sign in "-+")
        script = import_fork("dqn_shower", tmp_path / "double_dqn.py", {old: new})
    agent = make_agent(script=script, huber=huber, tau=0.1, learning_rate=1e-2)
    (s, a, r, s_next, terminated), batch = make_batch(4, ACTIONS)
    q_net, target = parameters(agent.q_network), parameters(agent.target_network)
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
    gradients, _ = backward(q_net, inputs, gradient)
    new = [p + first_adam_step(g, 1e-2) for p, g in zip(q_net, gradients)]

    log = agent.update(batch, update_target)
    np.testing.assert_allclose([log["loss"], log["q"]], [loss, q[index, a].mean()], atol=1e-5)
    for parameter, value in zip(agent.q_network.parameters(), new, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, atol=1e-5)
    tau = 0.1 if update_target else 0.0
    for parameter, n, o in zip(agent.target_network.parameters(), new, target):
        np.testing.assert_allclose(parameter.numpy(), tau * n + (1 - tau) * o, atol=1e-5)


@each_device
def test_compiled_equals_eager(device):
    eager, graph = make_agent(device=device), make_agent(device=device)
    updates = eager.update, dqn.compiled(graph.update, device)
    graph.q_network.load_state_dict(eager.q_network.state_dict())
    graph.target_network.load_state_dict(eager.target_network.state_dict())
    batch = {name: value.to(device) for name, value in make_batch(4, ACTIONS)[1].items()}
    for step in range(5):
        logs = [update(batch, step % 2 == 0) for update in updates]
        torch.testing.assert_close(*logs, rtol=1e-4, atol=1e-5)
    for part in ("q_network", "target_network"):
        states = (getattr(agent, part).state_dict() for agent in (eager, graph))
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_the_target_is_reset_every_so_many_steps():
    agent = make_agent(target_network_frequency=4, total_timesteps=30, learning_starts=10)
    seen = []
    agent.update = lambda batch, update_target: seen.append((agent.timestep, update_target)) or {}
    list(dqn.train(dqn.make_env(agent.args), agent))
    assert seen == [(t, t % 4 == 0) for t in range(10, 31)]


def test_actions_are_epsilon_greedy():
    """ε falls from 1 to 0.1 over the first fifth."""
    flags = {"epsilon_final": 0.1, "epsilon_fraction": 0.2}
    agent = make_agent(total_timesteps=10_000, learning_starts=10_000, **flags)
    env, greedy = dqn.make_env(agent.args), []
    act = agent.act
    agent.act = lambda observation: greedy.append(agent.timestep) or act(observation)
    list(dqn.train(env, agent))
    chosen = np.bincount(greedy, minlength=10_000).reshape(20, 500).mean(1)
    epsilon = np.interp(np.arange(250, 10_000, 500), [0, 2000], [1.0, 0.1])
    np.testing.assert_allclose(chosen, 1 - epsilon, atol=0.07)
    assert set(agent.buffer.data["action"]) == {0, 1}


def test_greedy_actions_have_the_highest_value():
    agent = make_agent("Acrobot-v1", hidden_sizes=(64, 64))
    observations = np.random.default_rng(0).normal(size=(20, 6), scale=5)
    best = forward(parameters(agent.q_network), observations)[0].argmax(1)
    assert len(set(best)) > 1
    assert [agent.act(observation) for observation in observations] == best.tolist()


def test_the_tutorials_network_has_723_parameters():
    agent = dqn.Agent(gym.make("Shower-v0"), dqn.Args(hidden_sizes=(24, 24)))
    assert sum(p.numel() for p in agent.q_network.parameters()) == 723


def test_the_shower_is_seen_from_38_degrees():
    env = dqn.make_env(dqn.Args())
    observation, _ = env.reset(seed=3)
    assert observation == env.unwrapped.temperatures[-1] - 38
    assert env.observation_space == gym.spaces.Box(-38, 62, (1,))


@pytest.mark.parametrize(("env_id", "best"), [("CliffWalking-v1", -13), ("FrozenLake-v1", None)])
def test_what_a_policy_expects_is_what_it_earns(env_id, best):
    env = dqn.make_env(dqn.Args(env_id=env_id))
    table = optimum.read_table(env)
    policy = table.optimal_q().argmax(1)
    expected = table.expected_return(policy)
    assert best in (None, pytest.approx(expected))
    agent = SimpleNamespace(act=lambda observation: int(policy[observation.argmax()]))
    returns = [row["return"] for row in dqn.evaluate(agent, env, 500)]
    assert abs(np.mean(returns) - expected) <= 4 * np.std(returns) / 500**0.5 + 1e-9


def test_it_learns_the_shower_to_the_exact_optimum(tmp_path):
    agent, run_dir = dqn.main(["--run-dir", "run", "--seed", "21"])
    name, table, q = optimum.learned(run_dir)
    policy, exact = q.argmax(1), table.optimal_q()
    best = exact[range(101), policy] > exact.max(axis=1) - 1e-6
    assert name == "Shower-v0" and best[35:42].all(), policy[35:42]
    assert table.expected_return(policy) == pytest.approx(414 / 7, abs=1e-9)
    assert np.mean([float(row["return"]) for row in read_csv(run_dir, "evaluation.csv")]) > 55
    dqn.plot_temperatures(agent, tmp_path)
    assert (tmp_path / "temperatures.png").read_bytes().startswith(b"\x89PNG")
