"""The optimal return of Pendulum-v1 by dynamic programming, from the starts that the runs met.

    python benchmarks/pendulum_optimum.py --seeds 11 20 --csv benchmarks/results/optimum.csv

That is of the 50 evaluation episodes, and of the training episodes 61 to 100 of these seeds' runs.

Backward induction over the 200 steps of an episode, on a grid of angles and velocities with
bilinear interpolation. The value is an estimate, which falls slightly as the grid gets finer.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.runner import write_csv
from ddpg_continuous import seed_episode


@dataclass(frozen=True)
class Args:
    """The command line."""

    seeds: tuple[int, int] | None = None  # first and last seed of runs, beside the evaluation
    csv: Path | None = None  # where to write a row for each, and one for all the runs together
    angles: int = 361  # grid points over the circle
    velocities: int = 321  # grid points from -8 to 8 rad/s
    torques: int = 41  # torques from -2 to 2 N m


def optimal_values(args: Args) -> np.ndarray:
    """Return the optimal return from each state of the grid, [angles, velocities]."""
    angle = np.linspace(-np.pi, np.pi, args.angles, endpoint=False)[:, None, None]
    velocity = np.linspace(-8, 8, args.velocities)[None, :, None]
    torque = np.linspace(-2, 2, args.torques)
    reward = -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    next_velocity = np.clip(velocity + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
    next_angle = angle + next_velocity * 0.05
    corners = interpolation(next_angle, next_velocity, args)
    value = np.zeros((args.angles, args.velocities))
    for _ in range(200):
        value = np.max(reward + sum(w * value.ravel()[i] for i, w in corners), axis=-1)
    return value


def interpolation(angle: np.ndarray, velocity: np.ndarray, args: Args) -> list[tuple]:
    """Return the four surrounding grid points and their weights, for any states."""
    x = (angle + np.pi) / (2 * np.pi) * args.angles
    y = (velocity + 8) / 16 * (args.velocities - 1)
    x0, y0 = np.floor(x).astype(int), np.minimum(y.astype(int), args.velocities - 2)
    u, v = x - x0, y - y0
    return [
        (
            ((x0 + i) % args.angles) * args.velocities + y0 + j,
            (u if i else 1 - u) * (v if j else 1 - v),
        )
        for i in (0, 1)
        for j in (0, 1)
    ]


def main() -> None:
    """Print the mean optimal return over the starts."""
    args = tyro.cli(Args, description=__doc__)
    env = gym.make("Pendulum-v1")
    groups = {"evaluation": range(10_000, 10_050)}
    if args.seeds is not None:  # as `train` in ddpg_continuous.py seeds its episodes
        groups |= {
            str(seed): [int(seed_episode(env, seed, i).integers(2**31)) for i in range(60, 100)]
            for seed in range(args.seeds[0], args.seeds[1] + 1)
        }
    value = optimal_values(args).ravel()
    optima = {}
    for name, starts in groups.items():
        states = []
        for start in starts:
            env.reset(seed=start)
            states.append(env.unwrapped.state)
        angles, velocities = np.array(states).T
        returns = sum(w * value[i] for i, w in interpolation(angles, velocities, args))
        optima[name] = returns.mean()
    if args.seeds is not None:
        optima["training"] = np.mean([optima[name] for name in groups if name != "evaluation"])
    rows = [{"starts": name, "optimum": round(optimum, 2)} for name, optimum in optima.items()]
    print(*(f"{row['starts']}: {row['optimum']}" for row in rows), sep="\n")
    if args.csv is not None:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
