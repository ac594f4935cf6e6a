"""TD3, the fork of the README, by the command of the README."""

import copy
import importlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, SMALL, read_csv, run_here

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def td3(tmp_path_factory):
    """Apply the patch with the README's own command, import what comes of it."""
    folder = tmp_path_factory.mktemp("fork")
    command = re.search(r"^    (cp ddpg_continuous.py .*td3.patch)$", README, re.M)[1]
    (folder / "benchmarks").mkdir()
    for name in ("ddpg_continuous.py", "benchmarks/td3.patch"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(command, shell=True, check=True, cwd=folder)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("td3_continuous")
    sys.path.remove(str(folder))


def test_fork_to_td3_runs(td3, capsys):
    assert run_here(td3, *SMALL["ddpg_continuous"], "--run-dir", "run") == 0
    assert "evaluation: mean return" in capsys.readouterr().out
    *_, row = read_csv("run", "episodes.csv")
    assert float(row["critic_loss"]) > 0 and row["actor_loss"]
    assert run_here(td3, "--policy-delay", "0") == 2


def td3_by_the_paper(agent, batch, delayed):
    """Clipped double Q-learning, target policy smoothing, delayed updates (Fujimoto 2018), with
    torch's own Adam; the agent's networks are left alone. Return networks and losses."""
    parts = ("actor", "critic", "target_actor", "target_critic")
    nets = {name: copy.deepcopy(getattr(agent, name)) for name in parts}
    actor, critic, target_actor, target_critic = nets.values()
    s, a, r, s_next, terminated = batch.values()

    with torch.no_grad():
        noise = torch.clip(0.2 * torch.randn(a.shape), -0.5, 0.5)
        a_next = torch.clip(target_actor(s_next) + noise, -1, 1)
        x = torch.hstack((s_next, a_next))
        q_next = torch.minimum(target_critic.q1(x), target_critic.q2(x))[:, 0]
        y = torch.where(terminated == 1, r, r + 0.98 * q_next)
    x = torch.hstack((s, a))
    critic_loss = sum((q(x)[:, 0] - y).pow(2).mean() for q in (critic.q1, critic.q2))
    critic_loss.backward()
    torch.optim.Adam(critic.parameters(), 1e-3).step()
    losses = {"critic_loss": critic_loss}
    if not delayed:
        losses["actor_loss"] = -critic.q1(torch.hstack((s, actor(s)))).mean()
        losses["actor_loss"].backward()
        torch.optim.Adam(actor.parameters(), 1e-4).step()
        with torch.no_grad():
            for target, net in ((target_actor, actor), (target_critic, critic)):
                for old, new in zip(target.parameters(), net.parameters()):
                    old.copy_(0.5 * new + 0.5 * old)
    return nets, losses


@torch._inductor.config.patch(fallback_random=True)  # compiled: the noise of the eager one
@pytest.mark.parametrize("compile", [False, True])
def test_fork_to_td3_is_td3(td3, compile):
    for delayed in (False, True):
        args = td3.Args(hidden_sizes=(8, 8), batch_size=16, tau=0.5)
        agent = td3.Agent(td3.make_env(args), args)
        update = td3.compiled(agent.update, "cpu") if compile else agent.update
        rng = np.random.default_rng(0)
        with torch.no_grad():  # Q₁ and Q₂ apart, and the actions of μ′ near the ends
            for net in (agent.critic, agent.target_critic, agent.target_actor):
                for parameter in net.parameters():
                    parameter.uniform_(-1, 1)
        for _ in range(20):
            s, s_next, a = rng.normal(size=3), rng.normal(size=3), rng.uniform(-1, 1, 1)
            agent.buffer.add(s, a, rng.normal(), s_next, rng.integers(2))
        batch = agent.buffer.sample(args.batch_size, rng, "cpu")
        torch.manual_seed(0)
        nets, losses = td3_by_the_paper(agent, batch, delayed)
        torch.manual_seed(0)
        logged = update(batch, delayed)
        assert logged.keys() == losses.keys() | {"q"}
        for name, loss in losses.items():
            torch.testing.assert_close(logged[name], loss.detach(), rtol=1e-4, atol=1e-5)
        for name, net in nets.items():
            found, expected = getattr(agent, name).state_dict(), net.state_dict()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
