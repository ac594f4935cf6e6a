"""The shower by dynamic programming: the exact optimum, and what the learned policies are worth.

    python benchmarks/shower_optimum.py runs/benchmarks/dqn_shower_*Shower*/??

Of these runs it writes results/shower.csv, and of the first draws results/shower_q.png, its Q
beside the exact one. It is written from the definition of the environment, not from its code: an
action moves the temperature by −1, 0 or +1; +1 if it is then within 37 to 39, else −1; then it
drifts by −1, 0 or +1, equally likely. An episode has 60 steps and starts from 35, …, 41.
"""

import csv
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dqn_shower as dqn

RESULTS = Path(__file__).parent / "results"
STARTS = range(35, 42)  # all that an optimal agent meets: from 36 to 40 it never leaves 36 to 40
TURNED = (np.arange(101)[:, None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action]
NEXT = (TURNED[..., None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action, drift]
REWARD = np.where((TURNED >= 37) & (TURNED <= 39), 1, -1)  # [temperature, action]


def expected_return(choose: Callable[[np.ndarray], np.ndarray]) -> Fraction:
    """Return the exact expected return of an episode, in the mean over the starts.

    `choose` gives the values of a step [101] from those of its three actions [101, 3].
    """
    values = np.full(101, Fraction(0))
    for _ in range(60):
        values = choose(REWARD + values[NEXT].sum(axis=2) / 3)
    return values[STARTS].mean()


def optimal_return() -> Fraction:
    """Return what an optimal agent expects."""
    return expected_return(lambda q: q.max(axis=1))


def policy_return(policy: np.ndarray) -> Fraction:
    """Return what a deterministic policy, an action for each temperature, expects."""
    return expected_return(lambda q: q[range(101), policy])


def optimal_q() -> np.ndarray:
    """Return Q*(s,a) without a horizon, [101, 3]: DQN bootstraps at the time limit."""
    q = np.zeros((101, 3))
    for _ in range(5000):
        q = REWARD + 0.99 * q.max(axis=1)[NEXT].mean(axis=2)
    return q


def learned_q(run_dir: Path) -> np.ndarray:
    """Return the Q-values of a run's network, [101, 3]."""
    args = TypeAdapter(dqn.Args).validate_json((run_dir / "args.json").read_text())
    agent = dqn.Agent(dqn.make_env(args), args)
    dqn.load(agent, run_dir)
    temperatures = torch.arange(101)[:, None] - 38.0  # as `make_env` has them
    return agent.q_network(temperatures).detach().numpy()


def draw(q: np.ndarray) -> None:
    """Draw Q against temperature, learned beside exact, each less its mean at 38 degrees."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(panels, (q, optimal_q()), ("learned", "exact")):
        labels = ("−1 degree", "0", "+1 degree")
        axes.plot(range(30, 47), (values - values[38].mean())[30:47], "o-", ms=3, label=labels)
        axes.axvspan(37, 39, color="palegreen", alpha=0.5, label="comfortable")
        axes.set(title=title, xlabel="temperature, °C", ylabel="Q, less its mean at 38 °C")
    panels[0].legend(fontsize="small")
    figure.savefig(RESULTS / "shower_q.png", dpi=80)


def main(runs: list[Path]) -> None:
    """Judge each run, draw the first."""
    rows = [("run", "expected_return", "optimal", "actions_at_35_to_41")]
    for run in runs:
        policy = learned_q(run).argmax(axis=1)
        value, actions = policy_return(policy), "".join("-0+"[policy[t]] for t in STARTS)
        rows.append((run.name, round(float(value), 6), value == optimal_return(), actions))
    with open(RESULTS / "shower.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    draw(learned_q(runs[0]))


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
