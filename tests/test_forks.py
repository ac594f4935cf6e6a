"""Forks: what the habits of PyTorch's users bring in works exactly, or stops with an error that
names the cause. Each is made from the text of a script; TD3 is in test_td3.py.
"""

import copy
import re
import sys

import numpy as np
import pytest
import torch

import ddpg_continuous
from tests.conftest import (
    SCRIPTS,
    SMALL,
    each_device,
    import_fork,
    load,
    outcome,
    read_csv,
    run_here,
    start,
)
from tests.oracle import make_batch

FLAGS = SMALL["ddpg_continuous"]
INIT = "        self.buffer = ReplayBuffer(args.buffer_size, env)\n"
PARAMETER = "nn.Parameter(torch.zeros(()))"
STEP = "        self.actor_optimizer.step()\n"
ALPHA_STEP = f"""{STEP}
        alpha_loss = self.log_alpha * (1.0 - log_prob.detach()).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
"""
ADD = "            agent.timestep += 1\n"
OPTIM = {  # torch's own optimiser, with a learning rate that is a number of NumPy's
    "self.critic_optimizer = Adam(": "self.critic_optimizer = torch.optim.Adam(",
    "self.critic_optimizer.lr.fill_(fraction * args.critic_learning_rate)": "for group in "
    "self.critic_optimizer.param_groups: group['lr'] = fraction * args.critic_learning_rate",
}
SAC = {  # with a learned temperature, as CleanRL writes it
    "mlp(S, *hidden_sizes, A)": "mlp(S, *hidden_sizes, 2 * A)",
    "        return torch.tanh(self.layers(s))\n": """
        mean, log_std = self.layers(s).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp(), validate_args=False)
        a = normal.rsample()
        log_prob = normal.log_prob(a) - torch.log(1 - torch.tanh(a) ** 2 + 1e-6)
        return torch.tanh(a), log_prob.sum(dim=-1)
""",
    "self.actor(s).cpu()": "torch.tanh(self.actor.layers(s).chunk(2, dim=-1)[0]).cpu()",
    INIT: f"""{INIT}        self.log_alpha = {PARAMETER}
        self.alpha_optimizer = Adam([self.log_alpha], lr=0.01)
""",
    "q_next = self.target_critic(s_next, self.target_actor(s_next))": "alpha = self.log_alpha.exp()"
    "\n            a_next, log_prob = self.actor(s_next)"
    "\n            q_next = self.target_critic(s_next, a_next) - alpha * log_prob",
    "actor_loss = -self.critic(s, self.actor(s)).mean()": "a_new, log_prob = self.actor(s)\n"
    "        actor_loss = (alpha * log_prob - self.critic(s, a_new)).mean()",
    "        critic_loss.backward()\n": "        critic_loss.backward()\n"
    "        nn.utils.clip_grad_norm_(self.critic.parameters(), 0.1)\n",
    STEP: ALPHA_STEP,
    '"q": q.mean()}': '"q": q.mean(), "alpha": alpha}',
}
Q_NEXT = "q_next = self.target_critic(s_next, self.target_actor(s_next))"
ITEM = {Q_NEXT: SAC[Q_NEXT].replace("exp()", "exp().item()"), '"q": q.mean()}': '"q": q.mean()}'}
FORKS = {  # what takes the place of what
    "optim": OPTIM,
    "breaks": OPTIM | {"fullgraph=True, options": "options"},
    "sac": SAC,
    "item": SAC | ITEM,
    "dropout": {
        "layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]": "layers += [nn.Linear(fan_in, fan_out)"
        ", nn.Dropout(0.5), nn.ReLU()]",
    },
    "random": {
        "agent.act(observation) + ": "agent.act(observation) + np.random.randn() "
        "+ torch.distributions.Normal(0.0, 1.0).rsample((1,)).numpy() + random.random() "
        "+ env.action_space.sample() + ",
    },
    "attributes": {  # of many kinds, one and a value to log that come late
        INIT: INIT + "        self.temperature, self.best, self.recent = torch.ones(()), -1e9, []\n"
        "        self.stats = {'lengths': [np.int64(3)], 'last': deque([np.ones(2)], maxlen=4)}\n"
        "        self.best_weights, self.seen = None, Counter()\n",
        ADD: ADD + "            agent.temperature.mul_(0.999)\n"
        "            agent.best = np.maximum(agent.best, np.float32(reward))\n"
        "            agent.recent = [*agent.recent[-3:], (float(reward), observation)]\n"
        "            agent.stats['last'].append(0.9 * agent.stats['last'][-1] + action)\n"
        "            agent.late = agent.timestep\n"
        "            agent.seen[agent.episode] += 1\n"
        "            agent.best_weights = copy.deepcopy(agent.actor.state_dict())\n",
        "**means)": '**means, best=agent.best + agent.stats["last"][0].sum(), **({"late": 1.0} '
        "if agent.episode > 1 else {}))",
    },
    "n-step": {  # a deque in the buffer
        "        self.count = 0": "        self.recent = deque(maxlen=3)\n        self.count = 0",
        "        if not np.isfinite(": "        self.recent.append(transition)\n"
        "        rewards = [past[2] for past in self.recent]\n"
        "        transition = (*self.recent[0][:2], sum(rewards), *transition[3:])\n"
        "        if not np.isfinite(",
    },
    "rollout": {  # longer than an episode
        INIT: INIT + "        self.rollout = []\n",
        ADD: ADD + "            agent.rollout.append((observation, torch.tensor(action)))\n"
        "            if len(agent.rollout) == 350: agent.rollout.clear()\n",
        "float(reward))\n            observation,": "float(reward) + sum(float(old[0]) "
        "for old, _ in agent.rollout[:9]))\n            observation,",
    },
    "module": {  # a number beside a module's parameters, and one in an optimiser of one's own
        "        self.layers = mlp(S, *hidden_sizes, A)\n": "        self.layers = mlp(S, "
        "*hidden_sizes, A)\n        self.calls = 0\n",
        "        return torch.tanh(self.layers(s))\n": "        self.calls += 1\n"
        "        return torch.tanh(self.layers(s)) * (0.5 if self.calls % 7 else 1.0)\n",
        "class Actor(nn.Module):\n": "class Actor(nn.Module):\n    def get_extra_state(self): "
        "return {'calls': self.calls}\n\n    def set_extra_state(self, state): pass\n\n",
        "zeros = torch.cat(": "self.t = 0\n        zeros = torch.cat(",
        "steps = self.lr *": "self.t += 1\n        steps = 0.9 ** (self.t % 5) * self.lr *",
    },
    "buffer": {  # attributes of a subclass of ours
        INIT: "        class Prioritized(ReplayBuffer):\n            top = 1.0\n\n"
        + INIT.replace("ReplayBuffer", "Prioritized")
        + "        self.buffer.priorities = np.ones(3)\n",
        ADD: ADD + "            agent.buffer.top = 0.9 * agent.buffer.top + abs(float(reward))\n"
        "            agent.buffer.priorities *= 0.99\n",
    },
    "gradients": {  # that accumulate, and a layer that does not learn
        "        self.critic_optimizer.zero_grad()\n": "        if self.timestep % 7 == 0:\n"
        "            self.critic_optimizer.zero_grad()\n",
        "        self.actor_optimizer = ": "        self.critic.layers[0].requires_grad_(False)\n"
        "        self.actor_optimizer = ",
    },
    "mode": {  # what a state_dict leaves out
        INIT: INIT + "        self.register_buffer('mean', torch.zeros(()), persistent=False)\n"
        "        self.critic.layers.calls = 0\n",
        ADD: ADD + "            agent.mean += 0.01\n            agent.critic.layers.calls += 1\n"
        "            if agent.timestep == 300: agent.critic.eval()\n",
        "noise_scale * noise  #": "(noise_scale + agent.mean.item() + agent.critic.training "
        "+ agent.critic.layers.calls % 3) * noise  #",
    },
    "numpy": {  # its random numbers would not be those of NumPy's generator
        "q = self.critic(s, a)\n": "q = self.critic(s, a) + torch.from_numpy("
        "np.random.normal(size=6)).float()\n",
    },
    "hook": {INIT: INIT + "        self.critic.layers[0].weight.register_hook(torch.neg)\n"},
    "late": {
        "agent.episode += 1": "agent.episode += 1\n            if agent.episode > 3:"
        "\n                agent.recent = {1}"
    },
}
NOT_SAVED = {  # an attribute, and what the error says
    "self.actor.layers[0].weight.data": "'.new'. would come back as a copy",
    "[p.detach() for p in self.actor.parameters()]": "'.new'..0. would come back as a copy",
    "self.actor.layers[0].weight.detach().numpy()[1:]": "'.new'. would come back as a copy",
    "self.critic.layers[0].weight.detach().numpy()[::-1]": "'.new'. would come back as a copy",
    "__import__('enum').IntEnum('E', 'a').a": "'.new'.: E is not saved",
    "np.ma.zeros(2)": "'.new'.: MaskedArray",
    "[defaultdict(list)]": "'.new'..0.: defaultdict",
    "{'a': {1}}": "'.new'..'a'.: set",
    "[Critic(1, 1, (2,))]": "'.new'..0.: Critic",
    "np.random.default_rng()": "'.new'.: Generator",
    f"({PARAMETER},)": "'.new'..0. would come back as a copy: use nn.Parameter",
    "torch.zeros((), requires_grad=True)": "'.new'. would come back as a copy: use nn.Parameter",
}


def make_fork(name, path, changes):
    """Write a fork of DDPG, import it; return the module."""
    path = path / f"fork_{re.sub('[ -]', '_', name)}.py"
    yield import_fork("ddpg_continuous", path, changes)
    del sys.modules[path.stem]


@pytest.fixture
def fork(request, tmp_path):
    yield from make_fork(request.param, tmp_path, FORKS[request.param])


def batches(device="cpu"):
    for seed in range(4):
        actions = np.random.default_rng(seed).uniform(-1, 1, (6, 1))
        yield {name: x.to(device) for name, x in make_batch(3, actions, seed)[1].items()}


def eager_and_compiled(fork, device="cpu"):
    """Return two agents in the same state, and their updates."""
    args = fork.Args(hidden_sizes=(8, 8), device=device)
    agents = [fork.Agent(fork.make_env(args), args) for _ in range(2)]
    return *agents, fork.compiled(agents[1].update, device)


@each_device
@pytest.mark.parametrize("fork", ["sac", "dropout", "item"], indirect=True)
def test_compiled_equals_eager(fork, device):
    """With the same random numbers. So does the script itself, to which SAC only adds."""
    eager, graph, update = eager_and_compiled(fork, device)
    before = copy.deepcopy(eager.state_dict())
    for number, batch in enumerate(batches(device)):
        logs = []
        for agent, function in ((eager, eager.update), (graph, update)):
            agent.actor_optimizer.lr.fill_(1e-2 / (1 + number))  # what training changes
            torch.manual_seed(number)
            logs.append(function(copy.deepcopy(batch)))
        torch.testing.assert_close(*logs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(eager.state_dict(), graph.state_dict(), rtol=1e-4, atol=1e-5)
    for name, value in eager.named_parameters():
        assert not torch.equal(value, before[name]), name  # it was trained


@pytest.mark.parametrize("name", ["optim", "breaks"])
def test_what_does_not_compile_stops_with_its_line(name, tmp_path):
    """The second lets graphs break, and then torch loses gradients."""
    (fork,) = make_fork(name, tmp_path, FORKS[name])
    flags = [*FLAGS, "--compile", "--run-dir", "run"]
    process = start(fork.__file__.removesuffix(".py"), *flags)
    _, err = process.communicate(timeout=120)
    line = rf"fork_{name}.py\", line \d+, in update\n.*zero_grad"
    named = {"optim": line, "breaks": "keep fullgraph=True"}[name]
    assert process.returncode == 1 and re.search(named, err) and "--no-compile" in err, err


@pytest.mark.parametrize("fork", ["hook"], indirect=True)
def test_hooks_of_parameters_are_refused_where_they_would_be_ignored(fork):
    with pytest.raises(RuntimeError, match="hooks of parameters do not compile"):
        eager_and_compiled(fork)


def test_a_hook_that_comes_late_is_not_ignored():
    eager, graph, update = eager_and_compiled(ddpg_continuous)
    for number, batch in enumerate(batches()):
        if number == 2:
            for agent in (eager, graph):
                agent.critic.register_forward_hook(lambda module, given, q: 2 * q + 1)
        torch.testing.assert_close(update(batch), eager.update(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fork", ["numpy"], indirect=True)
def test_random_numbers_of_numpy_are_refused_by_their_line(fork):
    *_, update = eager_and_compiled(fork)
    with pytest.raises(Exception, match=r"fork_numpy.py\", line \d+, in update") as caught:
        update(next(batches()))
    assert "--no-compile" in caught.value.__notes__[-1]


@torch._dynamo.config.patch(recompile_limit=2)
def test_a_float_that_changes_is_never_frozen():
    class Agent(torch.nn.Module):
        def __init__(self):
            super().__init__()
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
            except torch._dynamo.exc.FailOnRecompileLimitHit as error:
                assert calls == 2 and "tensors for what changes" in error.__notes__[0]
                break
        else:
            assert graph.beta == eager.beta == 1.0


RESUMED = ["optim", "sac", "random", "attributes", "n-step", "rollout", "module", "buffer"]
RESUMED += ["gradients", "mode"]


@pytest.mark.parametrize("fork", RESUMED, indirect=True)
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
    state, name = load("whole")["agent"], fork.__name__
    if name == "fork_attributes":
        assert state["best"].dtype == np.float32 and state["best"] > -20
        assert len(state["recent"]) == 4 and state["stats"]["last"].maxlen == 4
        assert float(state["temperature"]) == pytest.approx(0.999**600, rel=1e-3)
        first, *_, last = read_csv("whole", "episodes.csv")
        assert (first["late"], last["late"]) == ("", "1.0")
    expected = {
        "fork_optim": lambda: state["critic_optimizer"]["state"][0]["step"] == 401,
        "fork_sac": lambda: state["log_alpha"].abs() > 0.5,
        "fork_n_step": lambda: len(state["buffer"]["recent"]) == 3,
        "fork_rollout": lambda: len(state["rollout"]) == 250,
        "fork_module": lambda: state["actor_optimizer.t"] == 401 and state["actor.calls"] > 1000,
        "fork_buffer": lambda: state["buffer"]["top"] > 1 > state["buffer"]["priorities"][0],
    }
    assert expected.get(name, lambda: True)()


@pytest.mark.parametrize("fork", ["sac", "optim"], indirect=True)
def test_a_fork_and_its_original_do_not_resume_each_other(fork, capsys):
    """Even if they differ only in an optimiser."""
    for first, second in (("ddpg_continuous", fork), (fork, "ddpg_continuous")):
        run_dir = "run of the original" if second is fork else "run of the fork"
        assert run_here(first, *FLAGS, "--run-dir", run_dir) == 0
        assert run_here(second, "--resume", run_dir) == 2
        assert re.search(f"{run_dir}: .*(of another|state_dict)", capsys.readouterr().err)


@pytest.mark.parametrize("attribute", NOT_SAVED)
def test_what_cannot_be_restored_stops_before_training(attribute, tmp_path):
    changes = {INIT: INIT + f"        self.new = {attribute}\n"}
    (fork,) = make_fork("attribute", tmp_path, changes)
    with pytest.raises(TypeError, match=f"agent.{NOT_SAVED[attribute]}"):
        fork.main([*FLAGS, "--run-dir", "run"])
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_optimiser_that_comes_late_is_named(tmp_path, capsys):
    changes = {ADD: ADD + "            agent.late = torch.optim.SGD(agent.actor.parameters())\n"}
    fork = import_fork("ddpg_continuous", tmp_path / "f.py", changes)
    assert run_here(fork, *FLAGS, "--run-dir", "run") == 0
    assert run_here(fork, "--resume", "run") == 2
    assert "made after Agent.__init__: {'.late.state_dict'}" in capsys.readouterr().err


def test_a_value_to_log_does_not_take_the_place_of_the_return(tmp_path):
    for name, taken in (("q", "return"), ("actor_loss", "seconds")):
        fork = import_fork("ddpg_continuous", tmp_path / "f.py", {f'"{name}": ': f'"{taken}": '})
        with pytest.raises(TypeError, match=taken):
            fork.main([*FLAGS, "--run-dir", taken])


@pytest.mark.parametrize("fork", ["late"], indirect=True)
def test_what_can_no_longer_be_restored_keeps_the_last_checkpoint(fork):
    flags = [*FLAGS, "--checkpoint-every", "0", "--run-dir", "run"]
    with pytest.raises(TypeError, match="agent.'.recent'.: set"):
        fork.main(flags)
    assert [row["episode"] for row in load("run")["rows"]] == [1, 2, 3]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("wrapper", ["NormalizeObservation(env)", "NormalizeReward(env)"])
def test_wrappers_with_statistics_are_refused(script, wrapper, tmp_path, capsys):
    """Also below other wrappers."""
    changes = {"    env = gym.make(": "    env = wrapped("}
    module = import_fork(script, tmp_path / "fork.py", changes)
    module.wrapped = lambda *given, **options: eval(
        f"gym.wrappers.TimeAwareObservation(gym.wrappers.{wrapper})",
        {"gym": module.gym, "env": module.gym.make(*given, **options)},
    )
    assert run_here(module, *SMALL[script], "--run-dir", "run") == 2
    assert "statistics" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("init", "step", "named"),
    [
        ("torch.optim.Adam([nn.Parameter(self.theta)])", "{0}.step()", "'state'..0..'step'"),
        ("0", "{0} += 1", "'.new'"),
        ("0", "{0} += self.timestep > 600", "'.new'"),
        ("torch.zeros(())", "{0} = {0} + 1", "'.new'"),
    ],
)
def test_what_workers_do_not_share_is_an_error(init, step, named, tmp_path):
    """State that torch.optim makes in a worker, a number, a tensor that takes another's place."""
    step = step.format("self.new")
    share, update = "        self.share_memory()\n", "        root = (self.g"
    changes = {share: f"        self.new = {init}\n{share}", update: f"        {step}\n{update}"}
    if "optim" in init:
        changes[update] = (
            "        self.new.param_groups[0]['params'][0].grad = gradient\n" + changes[update]
        )
    import_fork("a3c_cartpole", tmp_path / "fork.py", changes)
    process = start(tmp_path / "fork", *SMALL["a3c_cartpole"], "--run-dir", "run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and re.search(f"workers share.*{named}", err), err
