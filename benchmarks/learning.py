"""Does it learn? Run the scripts over environments and seeds, sum them up, draw their curves.

    python benchmarks/learning.py --quick                 a first look: minutes, to runs/quick/
    python benchmarks/learning.py                         every experiment of the README: many hours
    python benchmarks/learning.py --only DDPG Pendulum    those whose names have both, any case
    python benchmarks/learning.py --script my_fork --env-ids Pendulum-v1 Ant-v5 --seeds 1 5
        --total-timesteps 50000 -- --tau 0.01             a script of yours, to runs/learning/;
                                                          what follows -- are flags of its own

Stop it at any time, and call it again: what was interrupted is resumed, what is finished is kept.
Three CSV files come of it: learning.csv (a row a seed), learning_curves.csv, and
learning_summary.csv (interquartile mean over seeds of the greedy returns after the last step, and
its 95 % bootstrap interval; Agarwal et al. 2021). learning_curves.png has a panel an experiment.

On a Ray cluster, with the repository on a file system that all its machines share:
    python benchmarks/learning.py --ray-address auto      (local: on this machine alone)
A task whose worker is lost is tried again, from the run's checkpoint.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import draw_learning
from benchmarks.runner import CORES, RESULTS, ROOT, Experiment, measure

SHOWER = "dqn_shower:Shower-v0"  # found by any script
DDPG, DQN, A3C, RANDOM = "ddpg_continuous", "dqn_shower", "a3c_cartpole", "random_baseline"
TEN, FIVE, THREE = range(11, 21), range(11, 16), range(11, 14)  # 1 to 10 are for tuning
CHEETAH = {"TD3's DDPG": 8577, "CleanRL, v4": 10374}
CHEETAH_NOISE = "--noise-theta 1 --noise-sigma 0.1 --noise-final 1"
A3C_2 = "--num-workers 2"
A3C_ACROBOT = "--num-workers 2 --entropy-coef 0.5"
LANDER = {"RL Zoo, A2C, v2, 200k": 155.8}

LEARNERS = [
    Experiment(DDPG, "Pendulum-v1", 10_000, TEN, published={"optimum": -132.8}),
    Experiment(DDPG, "Pendulum-v1", 20_000, TEN, published={"RL Zoo": -152.1, "optimum": -132.8}),
    Experiment(DDPG, "MountainCarContinuous-v0", 20_000, TEN, published={"RL Zoo, 300k": 93.5}),
    Experiment(DDPG, "MountainCarContinuous-v0", 50_000, TEN, published={"RL Zoo, 300k": 93.5}),
    Experiment(DDPG, "LunarLanderContinuous-v3", 300_000, FIVE, published={"RL Zoo, v2": 230.2}),
    Experiment(DDPG, "InvertedPendulum-v5", 20_000, FIVE, published={"TD3's DDPG, 1M": 1000}),
    Experiment(DDPG, "InvertedPendulum-v5", 100_000, FIVE, published={"TD3's DDPG, 1M": 1000}),
    Experiment(DDPG, "HalfCheetah-v5", 1_000_000, THREE, flags=CHEETAH_NOISE, published=CHEETAH),
    Experiment(DQN, SHOWER, 5_000, TEN, 100, published={"optimum": 414 / 7}),
    Experiment(DQN, "CartPole-v1", 50_000, TEN, 100, "--compile", published={"RL Zoo": 500}),
    Experiment(DQN, "Acrobot-v1", 100_000, FIVE, 100, "--compile", published={"RL Zoo": -76.6}),
    Experiment(DQN, "LunarLander-v3", 200_000, THREE, 100, "--compile"),
    Experiment(A3C, "CartPole-v0", 200_000, TEN, 100, A3C_2),
    Experiment(A3C, "CartPole-v1", 500_000, TEN, 100, A3C_2, published={"RL Zoo, A2C": 500}),
    Experiment(
        A3C, "Acrobot-v1", 500_000, FIVE, 100, A3C_ACROBOT, published={"RL Zoo, A2C": -83.4}
    ),
    Experiment(A3C, "LunarLander-v3", 1_000_000, THREE, 100, A3C_2, published=LANDER),
]
TUTORIALS = [
    Experiment(DDPG, env_id, 20_000, THREE, flags=flags, label=label, published=published)
    for label, env_id, published, flags in (
        (
            "Keras example",
            "Pendulum-v1",
            {"training, 61 to 100": -142.2},
            "--hidden-sizes 256 256 --actor-learning-rate 1e-3 --critic-learning-rate 2e-3 "
            "--buffer-size 50000 --noise-theta 0.0015 --noise-sigma 0.01 --noise-final 1 "
            "--learning-rate-final 1 --learning-starts 64",
        ),
        (
            "MountainCar blog",
            "MountainCarContinuous-v0",
            {},
            "--hidden-sizes 40 20 --noise-theta 0.05 --noise-sigma 0.25 --noise-final 1 "
            "--learning-rate-final 1 --learning-starts 64",
        ),
    )
]
ENV_IDS = dict.fromkeys(experiment.env_id for experiment in LEARNERS)
EPISODES = {"CartPole-v1": 4_000, SHOWER: 4_000}  # random ones; of the others 100
RANDOMS = [Experiment(RANDOM, id, 10_000, [1], EPISODES.get(id, 100)) for id in ENV_IDS]
EXPERIMENTS = LEARNERS + TUTORIALS + RANDOMS

QUICK = [
    Experiment(DDPG, "Pendulum-v1", 5_000, [1, 2], 20),
    Experiment(DQN, SHOWER, 5_000, [1, 2, 3, 4], 20),
    Experiment(DQN, "CartPole-v1", 20_000, [1, 2], 20),
    Experiment(A3C, "CartPole-v1", 200_000, [1, 2], 20, A3C_2),
    *[Experiment(RANDOM, id, 2_000, [1], 20) for id in ("Pendulum-v1", SHOWER, "CartPole-v1")],
]


@dataclass(frozen=True)
class Args:
    """The command line."""

    only: tuple[str, ...] = ()  # experiments whose names have all these words
    quick: bool = False  # few short runs of each script
    script: str | None = None  # in place of the experiments here: a script in this repository
    env_ids: tuple[str, ...] = ("Pendulum-v1",)  # with --script: its environments
    total_timesteps: int = 20_000  # with --script: of each run
    seeds: tuple[int, int] = (11, 20)  # with --script: first and last seed
    eval_episodes: int = 50  # with --script: greedy episodes after each run
    jobs: int = CORES  # cores to use of this machine
    ray_address: str | None = None  # of a Ray cluster: an address, auto, or local
    list: bool = False  # list the experiments, and run nothing


def select(args: Args, flags: list[str]) -> tuple[list[Experiment], Path]:
    """Return the experiments that are asked for, and the folder of their results."""
    if args.script is not None:
        script = args.script.removesuffix(".py")
        if not (ROOT / f"{script}.py").exists():
            sys.exit(f"--script {args.script}: no such file in {ROOT}")
        if args.quick or args.only:
            sys.exit("--script stands alone, without --quick and --only")
        if "num_workers:" in (ROOT / f"{script}.py").read_text() and "--num-workers" not in flags:
            sys.exit(f"--script {script}: say how many, with -- --num-workers N")
        seeds = range(args.seeds[0], args.seeds[1] + 1)
        if not seeds:
            sys.exit(f"--seeds {args.seeds[0]} {args.seeds[1]}: first and last seed")
        rest = args.eval_episodes, " ".join(flags), " ".join(flags) or "defaults"
        environments = [(script, env_id, args.total_timesteps) for env_id in args.env_ids]
        chosen = [Experiment(*environment, seeds, *rest) for environment in environments]
        chosen += [Experiment(RANDOM, env_id, 2_000, [1], 50) for env_id in args.env_ids]
        return chosen, ROOT / "runs" / "learning"
    for name in ("env_ids", "total_timesteps", "seeds", "eval_episodes"):
        if getattr(args, name) != getattr(Args(), name):
            sys.exit(f"--{name.replace('_', '-')} needs --script")
    if flags:
        sys.exit(f"{' '.join(flags)}: flags after -- need --script")
    experiments, results = (
        (QUICK, ROOT / "runs" / "quick") if args.quick else (EXPERIMENTS, RESULTS)
    )
    chosen = [e for e in experiments if all(w.lower() in e.name.lower() for w in args.only)]
    if not chosen:
        names = "\n    ".join(experiment.name for experiment in experiments)
        sys.exit(f"--only {' '.join(args.only)}: no such experiment; there are\n    {names}")
    return chosen, results


def main() -> None:
    """Run the experiments, sum them up, draw them."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    args = tyro.cli(Args, args=own, description=__doc__)
    experiments, results = select(args, flags)
    if args.list:
        print(*(experiment.name for experiment in experiments), sep="\n")
        return
    runs = results if results != RESULTS else ROOT / "runs" / "benchmarks"
    code = measure(experiments, runs, results, "learning", args.jobs, args.ray_address)
    draw_learning(results, LEARNERS if results == RESULTS else experiments)
    sys.exit(code)


if __name__ == "__main__":
    main()
