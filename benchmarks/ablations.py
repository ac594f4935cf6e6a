"""What does it take? Each part taken away, or each deviation from the paper undone, by flags alone.

    python benchmarks/ablations.py                     all: hours
    python benchmarks/ablations.py --only DDPG Pendulum    groups whose titles have both words

DDPG: no target networks (τ = 1), no noise, and our deviations, one by one. DQN: no target network,
Huber's loss. A3C: the number of workers.

As with learning.py, what was interrupted is resumed. To results/: ablations.csv (a row a seed),
ablations_curves.csv, ablations_summary.csv and ablations.png.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import draw_variants
from benchmarks.runner import CORES, RESULTS, ROOT, Experiment, measure

SEEDS = range(11, 16)  # 1 to 10 are for tuning
DDPG = {
    "defaults": "",
    "no target networks": "--tau 1",
    "no noise": "--noise-sigma 0",
    "Gaussian noise": "--noise-theta 1",
    "τ 0.001": "--tau 0.001",
    "no noise at the end": "--noise-final 0",
    "noise of the paper": "--noise-sigma 0.2 --noise-final 1",
    "constant rates": "--learning-rate-final 1",
    "no warm-up": "--learning-starts 1",
}
DQN = {
    "defaults": "--compile",
    "no target network": "--compile --tau 1",
    "Huber's loss": "--compile --huber",
}
A3C = {f"{n} worker{'s' * (n > 1)}": f"--num-workers {n}" for n in (1, 2, 4)}


def group(
    script: str, env_id: str, timesteps: int, variants: dict[str, str], eval_episodes: int = 50
) -> list[Experiment]:
    """Return an experiment for each variant."""
    return [
        Experiment(script, env_id, timesteps, SEEDS, eval_episodes, flags, label)
        for label, flags in variants.items()
    ]


STABILITY = {name: DDPG[name] for name in ("defaults", "no target networks", "constant rates")}
GROUPS = {
    "DDPG, Pendulum": group("ddpg_continuous", "Pendulum-v1", 10_000, DDPG),
    "DDPG, MountainCar": group("ddpg_continuous", "MountainCarContinuous-v0", 20_000, DDPG),
    "DDPG, InvertedPendulum": group("ddpg_continuous", "InvertedPendulum-v5", 20_000, STABILITY),
    "DQN, Shower": group("dqn_shower", "dqn_shower:Shower-v0", 5_000, DQN, 100),
    "DQN, CartPole": group("dqn_shower", "CartPole-v1", 50_000, DQN, 100),
    "A3C, CartPole": group("a3c_cartpole", "CartPole-v1", 500_000, A3C, 100),
}


@dataclass(frozen=True)
class Args:
    """The command line."""

    only: tuple[str, ...] = ()  # groups whose titles have all these words
    jobs: int = CORES  # cores to use of this machine
    ray_address: str | None = None  # of a Ray cluster: an address, auto, or local


def main() -> None:
    """Run the variants, sum them up, draw them."""
    args = tyro.cli(Args, description=__doc__)
    chosen = [
        experiment
        for title, variants in GROUPS.items()
        if all(word.lower() in title.lower() for word in args.only)
        for experiment in variants
    ]
    if not chosen:
        sys.exit(f"--only {' '.join(args.only)}: no such group; there are: {'; '.join(GROUPS)}")
    runs = ROOT / "runs" / "ablations"
    code = measure(chosen, runs, RESULTS, "ablations", args.jobs, args.ray_address)
    draw_variants(RESULTS, "ablations", GROUPS)
    sys.exit(code)


if __name__ == "__main__":
    main()
