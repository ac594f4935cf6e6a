"""Exact optima by dynamic programming, and what the learned policies are worth.

    python benchmarks/optimum.py runs/benchmarks/dqn_shower_*{Shower,Cliff,Taxi,Frozen}*/??

For each of these runs of DQN it writes a row to results/exact.csv: what its greedy policy expects
of an episode with its time limit, and what the best policy expects, computed from the
environment's own table of transitions; the shower's is written from the environment's definition,
not from its code. Of the shower it draws results/shower_q.png, a run's Q beside the exact one.
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dqn_shower as dqn

RESULTS = Path(__file__).parent / "results"
GAMMA = 0.99  # of DQN


class Table(NamedTuple):
    """A finite environment."""

    transitions: np.ndarray  # [S, A, S], probabilities; less than 1 in all where an episode ends
    rewards: np.ndarray  # [S, A], expected
    starts: np.ndarray  # [S], probabilities
    steps: int  # the time limit

    def optimal_q(self) -> np.ndarray:
        """Return Q*(s,a) without a time limit, [S, A]: DQN bootstraps there."""
        q = np.zeros_like(self.rewards)
        for _ in range(5000):
            q = self.rewards + GAMMA * self.transitions @ q.max(axis=1)
        return q

    def expected_return(self, policy: np.ndarray) -> float:
        """Return what a policy, [S] → action, expects of an episode."""
        states, values = np.arange(len(policy)), np.zeros(len(policy))
        for _ in range(self.steps):
            values = (self.rewards + self.transitions @ values)[states, policy]
        return float(self.starts @ values)


def shower_table() -> Table:
    """An action turns the temperature by −1, 0 or +1; the reward is +1 if it is then within 37 to
    39, else −1; then it drifts by −1, 0 or +1, equally likely. It starts from 35, …, 41."""
    turned = (np.arange(101)[:, None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action]
    drifted = (turned[..., None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action, drift]
    transitions = (drifted[..., None] == np.arange(101)).mean(axis=2)
    starts = np.isin(np.arange(101), range(35, 42)) / 7
    return Table(transitions, np.where((turned >= 37) & (turned <= 39), 1.0, -1.0), starts, 60)


def read_table(env: gym.Env) -> Table:
    """Read the table of one of Gymnasium's toy-text environments."""
    toy, S, A = env.unwrapped, env.unwrapped.observation_space.n, env.action_space.n
    transitions, rewards = np.zeros((S, A, S)), np.zeros((S, A))
    for s, a in np.ndindex(S, A):
        for probability, s_next, reward, terminated in toy.P[s][a]:
            rewards[s, a] += probability * reward
            transitions[s, a, s_next] += probability * (not terminated)
    return Table(transitions, rewards, toy.initial_state_distrib, env.spec.max_episode_steps)


def learned(run_dir: Path) -> tuple[str, Table, np.ndarray]:
    """Return a run's environment, the table of that, and the Q-values of the network, [S, A]."""
    args = TypeAdapter(dqn.Args).validate_json((run_dir / "args.json").read_text())
    env = dqn.make_env(args)
    agent = dqn.Agent(env, args)
    dqn.load(agent, run_dir)
    shower = isinstance(env.unwrapped, dqn.ShowerEnv)
    table = shower_table() if shower else read_table(env)
    # As `make_env` has them: temperatures from 38 °C, or a 1 in the place of the state's number.
    observations = np.arange(101)[:, None] - 38 if shower else np.eye(len(table.starts))
    inputs = dqn.torch.tensor(observations, dtype=dqn.torch.float32)
    return env.unwrapped.spec.id, table, agent.q_network(inputs).detach().numpy()


def draw(q: np.ndarray) -> None:
    """Draw the shower's Q against temperature, learned beside exact, less its mean at 38 °C."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    exact = shower_table().optimal_q()
    for axes, values, title in zip(panels, (q, exact), ("learned", "exact")):
        labels = ("−1 degree", "0", "+1 degree")
        axes.plot(range(30, 47), (values - values[38].mean())[30:47], "o-", ms=3, label=labels)
        axes.axvspan(37, 39, color="palegreen", alpha=0.5, label="comfortable")
        axes.set(title=title, xlabel="temperature, °C", ylabel="Q, less its mean at 38 °C")
    panels[0].legend(fontsize="small")
    figure.savefig(RESULTS / "shower_q.png", dpi=80)


def main(runs: list[Path]) -> None:
    """Judge each run; draw the first of the shower."""
    rows = [("environment", "seed", "expected_return", "optimum", "optimal")]
    for run in runs:
        name, table, q = learned(run)
        best = table.expected_return(table.optimal_q().argmax(axis=1))
        value = table.expected_return(q.argmax(axis=1))
        if name == "Shower-v0" and name not in dict(row[:2] for row in rows):
            draw(q)
        rows.append((name, run.name, round(value, 6), round(best, 6), abs(value - best) < 1e-9))
    with open(RESULTS / "exact.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
