"""Forks: what the habits of PyTorch's users bring in works exactly, or stops with an error that
names the cause. Each is made from the text of ddpg_continuous.py; TD3 is in test_td3.py.
"""

import copy
import pickle
import re
import sys

import numpy as np
import pytest
import torch

import ddpg_continuous
from tests.conftest import (
    SMALL,
    each_device,
    import_fork,
    load,
    outcome,
    read_csv,
    run_here,
)
from tests.oracle import make_batch

FLAGS = SMALL["ddpg_continuous"]
INIT = "        self.buffer = ReplayBuffer(args.buffer_size, env)\n"
PARAMETER = "nn.Parameter(torch.zeros(()))"
ALPHA = f"""        self.log_alpha = {PARAMETER}
        self.alpha_optimizer = Adam([self.log_alpha], 0.1)
"""
LOSS = "-self.critic(s, self.actor(s)).mean()"
LOG = '"q": q.mean()}'
STEP = "        self.actor_optimizer.minimize(actor_loss)\n"
ALPHA_STEP = "        self.alpha_optimizer.minimize((self.log_alpha + 1).square())\n"
ADD = "            agent.timestep += 1\n"
FORKS = {  # what takes the place of what
    "optim": {
        "self.critic_optimizer = Adam(": "self.critic_optimizer = torch.optim.Adam(",
        "self.critic_optimizer.minimize(critic_loss)": "self.critic_optimizer.zero_grad(); "
        "critic_loss.backward(); self.critic_optimizer.step()",
        "agent.critic_optimizer.learning_rate.fill_(decay * args.critic_learning_rate)": "pass",
    },
    "parameter": {
        INIT: INIT + ALPHA,
        LOSS: LOSS + " * self.log_alpha.detach().exp()",
        STEP: STEP + ALPHA_STEP,
        LOG: '"q": q.mean(), "alpha": self.log_alpha.exp()}',
    },
    "item": {
        INIT: INIT + ALPHA,
        LOSS: LOSS + " * self.log_alpha.exp().item()",
        STEP: STEP + ALPHA_STEP,
    },
    "rsample": {
        "agent.act(observation) + scale * noise": "agent.act(observation) + np.random.randn() "
        "+ torch.distributions.Normal(0.0, 1.0).rsample((1,)).numpy() + random.random() "
        "+ env.action_space.sample()",
    },
    "attributes": {  # a tensor, a number of NumPy's, a list, one and a value to log that come late
        INIT: INIT
        + "        self.temperature, self.best, self.recent = torch.ones(()), -1e9, []\n",
        ADD: ADD + "            agent.temperature.mul_(0.999)\n"
        "            agent.best = np.maximum(agent.best, reward)\n"
        "            agent.recent = [*agent.recent[-3:], float(reward)]\n"
        "            agent.late = agent.timestep\n",
        "**means}": '**means, "best": agent.best, **({"late": 1.0} if agent.episode > 1 else {})}',
    },
    "deque": {INIT: INIT + "        self.recent = __import__('collections').deque(maxlen=9)\n"},
    "another dtype": {
        INIT: INIT + "        self.best = torch.tensor(0)\n",
        ADD: ADD + "            agent.best = torch.tensor(0.5)\n",
    },
    "turns": {
        INIT: INIT + "        self.recent = []\n",
        "agent.episode += 1": "agent.episode += 1\n            if agent.episode > 3:"
        "\n                agent.recent.append(np.float64(1))",
    },
    "array": {INIT: INIT + "        self.buffer.priorities = np.ones(3)\n"},
    "modules in a list": {INIT: INIT + "        self.ensemble = [Critic(1, 1, (2,))]\n"},
    "parameters in a tuple": {INIT: INIT + f"        self.alphas = ({PARAMETER},)\n"},
    "parameters in a dict": {
        INIT: INIT + "        self.alphas = {'left': torch.zeros((), requires_grad=True)}\n"
    },
    "buffer": {  # an attribute of a subclass of ours
        INIT: "        class Prioritized(ReplayBuffer):\n            top = 1.0\n\n"
        + INIT.replace("ReplayBuffer", "Prioritized"),
        ADD: ADD + "            agent.buffer.top = 0.9 * agent.buffer.top + abs(float(reward))\n",
    },
}


@pytest.fixture
def fork(request, tmp_path):
    """Write a fork, import it; return the module."""
    path = tmp_path / f"fork_{re.sub(' ', '_', request.param)}.py"
    yield import_fork("ddpg_continuous", path, FORKS[request.param])
    del sys.modules[path.stem]


def batches(device="cpu"):
    for seed in range(4):
        actions = np.random.default_rng(seed).uniform(-1, 1, (6, 1))
        yield {name: x.to(device) for name, x in make_batch(3, actions, seed)[1].items()}


def eager_and_compiled(fork, device="cpu"):
    """Return two agents in the same state, and their updates."""
    env, args = fork.make_env("Pendulum-v1"), fork.Args(hidden_sizes=(8, 8), device=device)
    agents = [fork.Agent(env, args) for _ in range(2)]
    return *agents, fork.compiled(agents[1].update, device)


@each_device
@pytest.mark.parametrize("fork", ["parameter", "item"], indirect=True)
def test_compiled_equals_eager_or_stops(fork, device):
    """So does the script itself, as one of the forks only adds to it."""
    eager, graph, update = eager_and_compiled(fork, device)
    for number, batch in enumerate(batches(device)):
        for agent in (eager, graph):  # what training changes between updates
            agent.actor_optimizer.learning_rate.fill_(1e-2 / (1 + number))
        log = eager.update(copy.deepcopy(batch))
        try:
            torch.testing.assert_close(update(batch), log, rtol=1e-4, atol=1e-5)
        except torch._dynamo.exc.Unsupported as error:
            assert fork.__name__ == "fork_item"
            assert ".item()" in str(error) and f"{fork.__name__}.py" in str(error)
            return
    assert eager.log_alpha.item() < -0.3  # it was trained
    for name in ("actor", "critic", "target_actor", "target_critic", "actor_optimizer"):
        states = [getattr(agent, name).state_dict() for agent in (eager, graph)]
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fork", ["optim"], indirect=True)
def test_torchs_optimizer_learns_or_stops(fork):
    eager, graph, update = eager_and_compiled(fork)
    weights = eager.critic.layers[0].weight.clone()
    for batch in batches():
        eager.update(batch)
    assert not torch.equal(eager.critic.layers[0].weight, weights)
    line = rf"{fork.__name__}.py\", line \d+, in update\n.*(zero_grad|backward)"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=line):
        update(batch)


@torch._dynamo.config.patch(recompile_limit=2)
def test_a_float_that_changes_is_never_frozen():
    class Agent:
        def __init__(self):
            self.beta = 0.5

        def update(self, x):
            self.beta = min(1.0, self.beta * 1.1)
            return self.beta * x

    for _ in range(2):  # it was frozen where the graph came from a cache
        torch._dynamo.reset()
        eager, graph = Agent(), Agent()
        update = ddpg_continuous.compiled(graph.update, "cpu")
        for calls in range(9):
            try:
                assert update(torch.ones(2)).tolist() == eager.update(torch.ones(2)).tolist()
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                assert calls == 2
                break
        else:
            assert graph.beta == eager.beta == 1.0


@pytest.mark.parametrize(
    "fork", ["optim", "parameter", "rsample", "attributes", "buffer"], indirect=True
)
def test_stopped_and_resumed_is_as_never_stopped(fork, monkeypatch):
    flags = [*FLAGS, "--total-timesteps", 600, "--checkpoint-every", 0, "--learning-starts", 200]
    assert run_here(fork, *flags, "--run-dir", "whole") == 0
    save = fork.save

    def save_and_stop(agent, *where):
        save(agent, *where)
        if agent.episode == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fork, "save", save_and_stop)
        assert run_here(fork, *flags, "--run-dir", "stopped") == 130
    assert run_here(fork, "--resume", "stopped") == 0
    assert outcome("stopped") == outcome("whole")
    state = load("whole")["agent"]
    if fork.__name__ == "fork_attributes":
        assert state["best"] > -20 and len(state["recent"]) == 4
        assert float(state["temperature"]) == pytest.approx(0.999**600, rel=1e-3)
        first, *_, last = read_csv("whole", "episodes.csv")
        assert (first["late"], last["late"]) == ("", "1.0")
    if fork.__name__ == "fork_parameter":
        assert state["log_alpha"].item() < -0.5
    if fork.__name__ == "fork_optim":
        assert state["critic_optimizer"]["state"][0]["step"] == 401
    if fork.__name__ == "fork_buffer":
        assert state["buffer"]["top"] > 1


@pytest.mark.parametrize("fork", ["parameter"], indirect=True)
def test_a_fork_and_its_original_do_not_resume_each_other(fork, capsys):
    for first, second in (("ddpg_continuous", fork), (fork, "ddpg_continuous")):
        run_dir = "run of the original" if second is fork else "run of the fork"
        assert run_here(first, *FLAGS, "--run-dir", run_dir) == 0
        assert run_here(second, "--resume", run_dir) == 2
        assert "checkpoint.pt: of another " in capsys.readouterr().err


@pytest.mark.parametrize("fork", ["another dtype"], indirect=True)
def test_a_tensor_is_never_cast(fork, capsys):
    assert run_here(fork, *FLAGS, "--run-dir", "run") == 0
    assert run_here(fork, "--resume", "run") == 2
    assert "agent.best was saved with another dtype" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fork",
    ["deque", "array", "modules in a list", "parameters in a tuple", "parameters in a dict"],
    indirect=True,
)
def test_what_cannot_be_restored_stops_at_once(fork):
    expected = "collections.deque|buffer: ndarray|ensemble: Critic|alphas: a learned tensor"
    with pytest.raises((pickle.UnpicklingError, TypeError), match=expected):
        fork.main([*FLAGS, "--run-dir", "run"])


@pytest.mark.parametrize("fork", ["turns"], indirect=True)
def test_what_can_no_longer_be_restored_keeps_the_last_checkpoint(fork):
    flags = [*FLAGS, "--checkpoint-every", "0", "--run-dir", "run"]
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        fork.main(flags)
    assert [row["episode"] for row in load("run")["rows"]] == [1, 2, 3]
