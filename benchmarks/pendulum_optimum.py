"""The optimal return of Pendulum-v1, by dynamic programming, from the 50 evaluation starts.

    python benchmarks/pendulum_optimum.py                (writes results/optimum.csv)

Backward induction over the 200 steps of an episode, on a grid of angles and velocities with linear
interpolation; the value is an estimate, −132.2 on a grid twice as fine.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
from scipy.ndimage import map_coordinates

ANGLES, VELOCITIES, TORQUES = 361, 321, 41  # grid points over the circle, ±8 rad/s and ±2 N m


def interpolate(value: np.ndarray, angle: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Return the value of any states from that on the grid, where the first angle is the last."""
    turns = (angle / np.pi + 1) / 2 % 1
    return map_coordinates(value, [turns * ANGLES, (velocity + 8) / 16 * (VELOCITIES - 1)], order=1)


def main() -> None:
    """Write the mean over the starts."""
    angles = np.linspace(-np.pi, np.pi, ANGLES + 1)
    velocities, torques = np.linspace(-8, 8, VELOCITIES), np.linspace(-2, 2, TORQUES)
    angle, velocity, torque = np.meshgrid(angles, velocities, torques, indexing="ij")
    reward = -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = np.clip(velocity + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
    value = np.zeros((ANGLES + 1, VELOCITIES))
    for _ in range(200):
        value = (reward + interpolate(value, angle + velocity * 0.05, velocity)).max(axis=2)
    env, starts = gym.make("Pendulum-v1"), []
    for seed in range(10_000, 10_050):
        env.reset(seed=seed)
        starts.append(env.unwrapped.state)
    optimum = interpolate(value, *np.transpose(starts)).mean()
    (Path(__file__).parent / "results" / "optimum.csv").write_text(f"optimum\n{optimum:.2f}\n")


if __name__ == "__main__":
    main()
