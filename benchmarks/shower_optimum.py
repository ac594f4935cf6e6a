"""The shower by dynamic programming: the exact optimum, and what a learned policy is worth.

Written from the definition of the environment, not from its code: temperatures 0 to 100; an action
moves the temperature by −1, 0 or +1; +1 if it is then within 37 to 39, else −1; then it drifts by
−1, 0 or +1, each with probability 1/3. An episode has 60 steps and starts from 35, …, 41.

    python benchmarks/shower_optimum.py                                  # the optimum, and random
    python benchmarks/shower_optimum.py runs/RUN runs/OTHER              # and each of these runs
    python benchmarks/shower_optimum.py RUN --figure q_values.png        # its Q beside the optimum
"""

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.runner import write_csv

STEPS, STARTS, DEGREES = 60, range(35, 42), 101
MET = range(35, 42)  # what an optimal agent can meet: from 36 to 40 it never leaves 36 to 40


@dataclass(frozen=True)
class Args:
    """The command line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # folders of dqn_shower.py
    csv: Path | None = None  # where to write a row a run
    figure: Path | None = None  # where to draw the Q-values of the first run


def outcome(temperature: int, action: int) -> tuple[int, list[int]]:
    """Return the reward, and the next temperatures, each as likely as the others."""
    turned = min(max(temperature + action - 1, 0), DEGREES - 1)
    drifted = [min(max(turned + drift, 0), DEGREES - 1) for drift in (-1, 0, 1)]
    return (1 if 37 <= turned <= 39 else -1), drifted


def backward_induction(choose) -> list[Fraction]:
    """Return the exact expected return from each temperature over a whole episode.

    `choose(temperature, values)` gives the value of a step from those of its three actions.
    """
    values = [Fraction(0)] * DEGREES
    for _ in range(STEPS):
        after = values
        values = []
        for temperature in range(DEGREES):
            q = []
            for action in range(3):
                reward, drifted = outcome(temperature, action)
                q.append(reward + sum(after[t] for t in drifted) / 3)
            values.append(choose(temperature, q))
    return values


def expected_return(values: list[Fraction]) -> Fraction:
    """Return the mean over the starts."""
    return sum(values[start] for start in STARTS) / len(STARTS)


def optimal_return() -> Fraction:
    """Return what an optimal agent expects."""
    return expected_return(backward_induction(lambda _, q: max(q)))


def random_return() -> Fraction:
    """Return what uniformly random actions expect."""
    return expected_return(backward_induction(lambda _, q: sum(q) / 3))


def policy_return(policy: np.ndarray) -> Fraction:
    """Return what a deterministic policy, an action for each temperature, expects."""
    return expected_return(backward_induction(lambda t, q: q[policy[t]]))


def optimal_q(gamma: float) -> np.ndarray:
    """Return Q*(s,a) without a horizon, [101, 3], which is what DQN learns: it bootstraps at the
    time limit."""
    rewards = np.array([[outcome(t, a)[0] for a in range(3)] for t in range(DEGREES)])
    nexts = np.array([[outcome(t, a)[1] for a in range(3)] for t in range(DEGREES)])
    q = np.zeros((DEGREES, 3))
    while True:
        new = rewards + gamma * q.max(1)[nexts].mean(2)
        if np.abs(new - q).max() < 1e-9:
            return new
        q = new


def optimal_actions() -> list[set[int]]:
    """Return which actions are optimal at each temperature."""
    q = optimal_q(0.99)
    return [set(np.flatnonzero(row > row.max() - 1e-6)) for row in q]


def learned_q(run_dir: Path) -> np.ndarray:
    """Return the Q-values of a run's network, [101, 3]."""
    import dqn_shower as dqn

    args = dqn.parse_args(["--play", str(run_dir)])
    agent = dqn.Agent(dqn.make_env(args.env_id), args)
    dqn.load(agent, run_dir)
    temperatures = torch.arange(DEGREES)[:, None] - 38.0  # as `make_env` has them
    return agent.q_network(temperatures).detach().numpy()


def draw(q: np.ndarray, path: Path) -> None:
    """Draw Q against temperature, learned beside exact, each less its mean at 38 degrees."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    shown = np.arange(30, 47)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values, title in ((left, q, "learned"), (right, optimal_q(0.99), "exact")):
        for action, label in enumerate(("−1 degree", "0", "+1 degree")):
            axes.plot(shown, (values - values[38].mean())[shown, action], "o-", ms=3, label=label)
        axes.axvspan(37, 39, color="palegreen", alpha=0.5, label="comfortable")
        axes.set(title=title, xlabel="temperature, °C")
        axes.grid(alpha=0.3)
    left.set_ylabel("Q, less its mean at 38 °C")
    left.legend(fontsize="small")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Print the exact values, and judge each run."""
    args = tyro.cli(Args, description=__doc__)
    best = optimal_return()
    print(f"optimum {best} = {float(best):.4f}, random {float(random_return()):.4f}")
    if not args.runs and (args.csv or args.figure):
        sys.exit("--csv and --figure need a run")
    optimal, rows = optimal_actions(), []
    for run_dir in args.runs:
        policy = learned_q(run_dir).argmax(1)
        wrong = [t for t in MET if policy[t] not in optimal[t]]
        value = policy_return(policy)
        rows.append(
            {
                "run": run_dir.name,
                "expected_return": round(float(value), 6),
                "optimal": value == best,
                "wrong_at": " ".join(map(str, wrong)),
                "actions_at_35_to_41": "".join("-0+"[policy[t]] for t in MET),
            }
        )
        print(*rows[-1].values(), sep="\t")
    if args.csv is not None:
        write_csv(args.csv, rows)
    if args.figure is not None:
        draw(learned_q(args.runs[0]), args.figure)


if __name__ == "__main__":
    main()
