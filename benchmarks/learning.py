"""Do they learn? Run the scripts over environments and seeds, sum them up, draw the results.

    python benchmarks/learning.py --quick                 a first look: minutes, to runs/quick/
    python benchmarks/learning.py                         every experiment of the README: many hours
    python benchmarks/learning.py --only DDPG Pendulum    those whose names have both, any case
    python benchmarks/learning.py --ablations             with parts taken away or exchanged
    python benchmarks/learning.py --script my_fork --env-ids Pendulum-v1 Ant-v5 --seeds 1 5
        --total-timesteps 50000 -- --tau 0.01             a script of yours, to runs/script/;
                                                          what follows -- are flags of its own

Stop at any time, and call the same again: what was interrupted is resumed, what is finished is
kept. What comes of it goes to results/, of --quick and --script beside the runs.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import draw_ablations, draw_learning
from benchmarks.runner import RESULTS, ROOT, Experiment, collect, read_experiments, run_all


@dataclass(frozen=True)
class Args:
    """The command line."""

    only: tuple[str, ...] = ()  # experiments whose names have all these words
    quick: bool = False  # few short runs of each script
    ablations: bool = False  # variants of the scripts
    script: str | None = None  # in place of the experiments here: a script in this repository
    env_ids: tuple[str, ...] = ("Pendulum-v1",)  # with --script: its environments
    total_timesteps: int = 20_000  # with --script: of each run
    seeds: tuple[int, int] = (11, 20)  # with --script: first and last seed
    eval_episodes: int = 50  # with --script: greedy episodes after each run
    jobs: int = os.cpu_count() or 1  # cores to use of this machine
    ray_address: str = "local"  # of a Ray cluster: an address, or auto
    runs: Path = ROOT / "runs"  # where the runs are kept


def main() -> None:
    """Run the experiments, sum them up, draw them."""
    own, flags = sys.argv[1:], ""
    if "--" in own:
        own, flags = own[: own.index("--")], " ".join(own[own.index("--") + 1 :])
    args = tyro.cli(Args, args=own, description=__doc__)
    if args.script:
        name, script = "script", args.script.removesuffix(".py")
        rest = args.total_timesteps, range(args.seeds[0], args.seeds[1] + 1), args.eval_episodes
        found = [Experiment(name, script, id, *rest, flags, flags) for id in args.env_ids]
        found += [Experiment(name, "random_baseline", id, 2000, [1], 50) for id in args.env_ids]
    else:
        name = "quick" if args.quick else "ablations" if args.ablations else "benchmarks"
        all_of_them = ("learning", "exact", "tutorials", "random")
        found = read_experiments(*(all_of_them if name == "benchmarks" else (name,)))
    chosen = [e for e in found if all(word.lower() in e.name.lower() for word in args.only)]
    if not chosen:
        sys.exit("\n".join(["--only: of these, none has all the words:", *(e.name for e in found)]))
    runs = args.runs / name
    results = runs if name in ("quick", "script") else RESULTS
    try:
        failures = run_all(chosen, runs, args.jobs, args.ray_address)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    collect(chosen, runs, results, "ablations" if args.ablations else "learning")
    if args.ablations:
        draw_ablations(results)
    else:
        draw_learning(results, [e for e in found if e.group in ("learning", "quick", "script")])
    sys.exit("\n".join(f"failed: {failure}" for failure in failures) or None)


if __name__ == "__main__":
    main()
