"""Pendulum and the shower by dynamic programming: what an optimal agent would reach.

    python benchmarks/optimum.py runs/benchmarks/dqn_shower_*Shower*/??

Pendulum-v1, from the 50 evaluation starts: backward induction over the 200 steps of an episode, on
a grid of angles and velocities with linear interpolation; the value is an estimate, which falls
slightly as the grid gets finer. It goes to results/optimum.csv.

The shower, exactly, from the definition of the environment, not from its code: an action moves the
temperature by −1, 0 or +1; +1 if it is then within 37 to 39, else −1; then it drifts by −1, 0 or
+1, equally likely. An episode has 60 steps and starts from 35, …, 41. What the policies of the runs
are worth goes to results/shower.csv; results/shower_q.png shows Q of the first beside the exact Q.
"""

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dqn_shower as dqn
from benchmarks.runner import RESULTS

ANGLES, VELOCITIES, TORQUES = 361, 321, 41  # grid points over the circle, ±8 rad/s and ±2 N m
STARTS = range(35, 42)  # all that an optimal agent meets: from 36 to 40 it never leaves 36 to 40
TURNED = (np.arange(101)[:, None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action]
NEXT = (TURNED[..., None] + [-1, 0, 1]).clip(0, 100)  # [temperature, action, drift]
REWARD = np.where((TURNED >= 37) & (TURNED <= 39), 1, -1)  # [temperature, action]


def interpolate(value: np.ndarray, angle: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Return the value of any states from that on the grid, where the first angle is the last."""
    turns = (angle / np.pi + 1) / 2 % 1
    return map_coordinates(value, [turns * ANGLES, (velocity + 8) / 16 * (VELOCITIES - 1)], order=1)


def pendulum_return() -> float:
    """Return the optimal return of Pendulum-v1, in the mean over the starts."""
    angles = np.linspace(-np.pi, np.pi, ANGLES + 1)
    velocities, torques = np.linspace(-8, 8, VELOCITIES), np.linspace(-2, 2, TORQUES)
    angle, velocity, torque = np.meshgrid(angles, velocities, torques, indexing="ij")
    reward = -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = np.clip(velocity + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
    value = np.zeros((ANGLES + 1, VELOCITIES))
    for _ in range(200):
        value = (reward + interpolate(value, angle + velocity * 0.05, velocity)).max(axis=2)
    env, states = gym.make("Pendulum-v1"), []
    for seed in range(10_000, 10_050):
        env.reset(seed=seed)
        states.append(env.unwrapped.state)
    return interpolate(value, *np.transpose(states)).mean()


def shower_return(choose: Callable[[np.ndarray], np.ndarray]) -> Fraction:
    """Return the exact expected return of an episode in the shower, in the mean over the starts.

    `choose` gives the values of a step [101] from those of its three actions [101, 3].
    """
    values = np.full(101, Fraction(0))
    for _ in range(60):
        values = choose(REWARD + values[NEXT].sum(axis=2) / 3)
    return values[STARTS].mean()


def learned_q(run_dir: str) -> np.ndarray:
    """Return the Q-values of a run's network, [101, 3]."""
    args = dqn.parse_args(["--play", run_dir])
    agent = dqn.Agent(dqn.make_env(args.env_id), args)
    dqn.load(agent, Path(run_dir))
    temperatures = torch.arange(101)[:, None] - 38.0  # as `make_env` has them
    return agent.q_network(temperatures).detach().numpy()


def draw(learned: np.ndarray) -> None:
    """Draw Q against temperature, learned beside exact, each less its mean at 38 degrees.

    The exact Q has no horizon, as DQN bootstraps at the time limit.
    """
    exact = np.zeros((101, 3))
    for _ in range(5000):
        exact = REWARD + 0.99 * exact.max(axis=1)[NEXT].mean(axis=2)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, q, title in zip(panels, (learned, exact), ("learned", "exact")):
        labels = ("−1 degree", "0", "+1 degree")
        axes.plot(range(30, 47), (q - q[38].mean())[30:47], "o-", markersize=3, label=labels)
        axes.axvspan(37, 39, color="palegreen", alpha=0.5, label="comfortable")
        axes.set(title=title, xlabel="temperature, °C", ylabel="Q, less its mean at 38 °C")
    panels[0].legend(fontsize="small")
    figure.savefig(RESULTS / "shower_q.png", dpi=80)


def main(runs: list[str]) -> None:
    """Write the optima, and what the policies are worth."""
    best = shower_return(lambda q: q.max(axis=1))
    random = shower_return(lambda q: q.sum(axis=1) / 3)
    print(f"shower: optimum {float(best):.4f}, random {float(random):.4f}")
    rows = []
    for run in runs:
        policy = learned_q(run).argmax(axis=1)
        value = shower_return(lambda q, policy=policy: q[range(101), policy])
        actions = "".join("-0+"[policy[start]] for start in STARTS)
        rows.append((Path(run).name, round(float(value), 6), value == best, actions))
    if rows:
        draw(learned_q(runs[0]))
        columns = ["run", "expected_return", "optimal", "actions_at_35_to_41"]
        pd.DataFrame(rows, columns=columns).to_csv(RESULTS / "shower.csv", index=False)
    table = pd.DataFrame({"optimum": [pendulum_return()]}).round(2)
    table.to_csv(RESULTS / "optimum.csv", index=False)
    print(f"Pendulum: optimum {table['optimum'][0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
