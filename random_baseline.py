# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0",
#     "matplotlib==3.11.2",
#     "moviepy==2.2.1",
#     "numpy==2.4.6",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""The random agent: uniformly random actions, on any Gymnasium environment.

A score means something only beside the score of an agent that learned nothing. This file is also
the skeleton of the other scripts: each of them is this one plus an algorithm.

Algorithm
    for episode = 1, 2, … do
        receive the first observation s₁
        for t = 1, 2, … until the episode ends do
            choose a ~ Uniform(𝒜), execute it, observe r and the next observation

Symbol → name in the code
    s, a, r → observation, action, reward
    𝒜       → action_space (without bounds Gymnasium draws from a normal or an exponential)

Examples
    python random_baseline.py --env-id CartPole-v1 --eval-episodes 4000
    python random_baseline.py --env-id Pendulum-v1 --total-timesteps 20000 --capture-video
    python random_baseline.py --env-id your_module:YourEnv-v0
"""

import argparse
import contextlib
import csv
import difflib
import importlib.metadata
import io
import json
import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
import tyro
from tqdm import tqdm


class Episode(NamedTuple):
    """What `train` tells of an episode: its undiscounted return, its steps, means of what was
    learned in it (losses, values)."""

    return_: float
    length: int
    learned: dict[str, float]


@dataclass(frozen=True)
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "CartPole-v1"  # Gymnasium environment, also as module:Env-v0
    seed: int = 1  # of everything random; the same seed gives the same run
    total_timesteps: int = 10_000  # environment steps in all
    run_dir: Path | None = None  # where the run goes (default: runs/ENV__SCRIPT__SEED__TIME)
    resume: Path | None = None  # continue the run in this folder
    play: Path | None = None  # play greedy episodes of the run in this folder
    eval_episodes: int = 10  # greedy episodes at the end, or with --play
    checkpoint_every: int = 10_000  # environment steps between checkpoints
    capture_video: bool = False  # record a greedy episode before and after; with --play, all
    track: bool = False  # log to Weights & Biases
    wandb_project_name: str = "minimal-rl"  # W&B project
    wandb_entity: str | None = None  # W&B user or team

    def __post_init__(self) -> None:
        require_common(self)


class Agent:
    """What is remembered, which here is only how far the run has come.

    Attributes: episode, timestep (episodes finished and environment steps taken so far).
    """

    def __init__(self, env: gym.Env, args: Args) -> None:
        self.action_space = env.action_space
        self.episode = 0
        self.timestep = 0

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode, whose randomness comes from rng."""
        self.action_space.seed(int(rng.integers(2**31)))

    def act(self, observation: Any) -> Any:
        """Return an action for the environment: a ~ Uniform(𝒜)."""
        return self.action_space.sample()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors, numbers and strings."""
        return {"episode": self.episode, "timestep": self.timestep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.episode, self.timestep = state["episode"], state["timestep"]


def train(env: gym.Env, agent: Agent, args: Args) -> Iterator[Episode]:
    """Act until `args.total_timesteps`; yield each episode when it has ended."""
    while agent.timestep < args.total_timesteps:
        rng = np.random.default_rng([args.seed, agent.episode])  # all of the episode's randomness
        agent.reset(rng)
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        return_, length, ended = 0.0, 0, False
        while not ended and agent.timestep < args.total_timesteps:
            action = agent.act(observation)  # a ~ Uniform(𝒜)
            next_observation, reward, terminated, truncated, _ = env.step(action)
            agent.timestep += 1
            return_ += float(reward)
            length += 1
            observation, ended = next_observation, terminated or truncated
        if ended:
            agent.episode += 1
            yield Episode(return_, length, learned={})


# ------------------------------------------------------------------------------------------------
# The harness: the same bytes in every script. It consumes `train` and works between episodes.
# ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).stem
RECENT = 20  # episodes in the moving average of the progress bar and of the curve
EVALUATION_SEED = 10_000  # evaluation episode i is reset with seed EVALUATION_SEED + i
# What --resume and --play may be given anew; all else stays as the run began. Another
# --total-timesteps stretches what is scheduled over the run, from here on.
MAY_CHANGE = set(
    "total_timesteps device compile best run_dir resume play eval_episodes checkpoint_every "
    "capture_video track wandb_project_name wandb_entity".split()
)


class UsageError(Exception):
    """Wrong input: ends the script with one line and exit code 2, before anything is written."""


def require(condition: bool, what: str, given: Any, accepted: str) -> None:
    """Raise a UsageError such as `--gamma 2.0: must be in [0, 1]` unless the condition holds."""
    if not condition:
        raise UsageError(f"{what} {given}: must be {accepted}")


def require_common(args: Any) -> None:
    """Check the arguments that every script has."""
    require(0 <= args.seed < 2**32, "--seed", args.seed, "in [0, 2³²)")
    for name in ("total_timesteps", "eval_episodes", "checkpoint_every"):
        require(getattr(args, name) >= 1, flag(name), getattr(args, name), "1 or more")
    given = [flag(n) for n in ("run_dir", "resume", "play") if getattr(args, n) is not None]
    require(len(given) <= 1, " and ".join(given), "together", "given one at a time")


def require_finite(timestep: int, **values: Any) -> None:
    """Raise FloatingPointError if anything is NaN or infinite after that many steps."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(f"{name} became {value} at step {timestep}")


def flag(name: str) -> str:
    """Return how a field of Args is written on the command line."""
    return "--" + name.replace("_", "-")


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """Make an environment; UsageError, with near names, if there is none of that name."""
    options = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make(env_id, **options)
    except (gym.error.Error, ImportError) as error:
        near = difflib.get_close_matches(env_id, gym.registry)
        reason = " ".join(str(error).split()) + (f" Near: {', '.join(near)}." if near else "")
        raise UsageError(f"--env-id {env_id}: {reason}") from error


def evaluate(
    agent: Agent, env: gym.Env, episodes: int, traces: list[list[Any]] | None = None
) -> list[dict[str, float]]:
    """Play greedy episodes and return a row for each; add to traces, if given, what each observed.

    Episode i is reset with seed 10,000 + i in every script, whatever the seed of the run, so that
    agents, and other libraries, are compared on the same starts.
    """
    rows = []
    for episode in range(episodes):
        seed = EVALUATION_SEED + episode
        observation, _ = env.reset(seed=seed)
        agent.reset(np.random.default_rng([seed, 0]))
        return_, length, ended, trace = 0.0, 0, False, [observation]
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            return_ += float(reward)
            length += 1
            ended = terminated or truncated
            if traces is not None:
                trace.append(observation)
        if traces is not None:
            traces.append(trace)
        rows.append({"episode": episode, "seed": seed, "return": return_, "length": length})
    return rows


def record_videos(agent: Agent, env_id: str, folder: Path, prefix: str, episodes: int = 1) -> list:
    """Do as `evaluate`, and write each episode to folder/PREFIX-episode-I.mp4."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Overwriting existing videos.*")
        env = gym.wrappers.RecordVideo(
            make_env(env_id, "rgb_array"),
            str(folder),
            episode_trigger=lambda _: True,
            name_prefix=prefix,
            disable_logger=True,
        )
    with contextlib.closing(env):  # closing writes the last video
        return evaluate(agent, env, episodes)


def try_video(agent: Agent, env_id: str, folder: Path, prefix: str) -> None:
    """Record a video, or say why there is none: a missing screen must not cost a training run."""
    try:
        record_videos(agent, env_id, folder, prefix)
    except Exception as error:  # whatever the renderer raises
        print(f"no video {prefix}: {error}", file=sys.stderr)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file in one step: a reader, or a kill, meets the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_args(args: Args, run_dir: Path) -> None:
    """Write args.json: the script, the versions it ran with, and every argument."""
    versions = {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy", "torch")}
    content = {"script": SCRIPT, "versions": versions, "args": asdict(args)}
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(run_dir / "args.json", lambda file: file.write(text.encode()))


def read_args(run_dir: Path) -> Args:
    """Read the arguments of an earlier run; UsageError if they are not this script's."""
    path = run_dir / "args.json"
    try:
        content = json.loads(path.read_text())
        script, saved = content["script"], content["args"]
        saved = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{run_dir}: not a run ({path.name}: {error!r})") from error
    require(script == SCRIPT, str(run_dir), f"was made by {script}.py", f"a run of {SCRIPT}.py")
    same = saved.keys() == {field.name for field in fields(Args)}
    require(same, str(path), "has other arguments", f"of this version of {SCRIPT}.py")
    return Args(**saved | {"run_dir": None, "resume": None, "play": None})


def parse_args(argv: Sequence[str] | None) -> Args:
    """Read the command line, on top of the run's own arguments with --resume and --play."""
    folders = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    either = folders.add_mutually_exclusive_group()
    for name in ("--resume", "--play"):
        either.add_argument(name, type=Path, dest="run_dir")
    run_dir = folders.parse_known_args(argv)[0].run_dir
    saved = read_args(run_dir) if run_dir else Args()
    args = tyro.cli(Args, args=argv, description=__doc__, default=saved)
    if run_dir:
        for name in (field.name for field in fields(Args) if field.name not in MAY_CHANGE):
            old, new = getattr(saved, name), getattr(args, name)
            require(new == old, flag(name), new, f"{old}, as it is in {run_dir}, or left out")
    return args


def save_checkpoint(agent: Agent, args: Args, run_dir: Path) -> None:
    """Write checkpoint.pt: tensors, numbers and strings only, nothing that can execute."""
    checkpoint = {"script": SCRIPT, "env_id": args.env_id, "agent": agent.state_dict()}
    write_atomically(run_dir / "checkpoint.pt", lambda file: torch.save(checkpoint, file))


def load_checkpoint(agent: Agent, args: Args, run_dir: Path) -> None:
    """Load checkpoint.pt; UsageError, and the file left as it is, if it is not one of this run."""
    path = run_dir / "checkpoint.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        made_by = checkpoint["script"], checkpoint["env_id"]
        require(made_by == (SCRIPT, args.env_id), str(path), f"is of {made_by}", "of this run")
        agent.load_state_dict(checkpoint["agent"])
    except UsageError:
        raise
    except Exception as error:  # the loader raises many kinds for truncated and foreign files
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UsageError(
            f"{path}: truncated, or not a checkpoint of this run ({reason})"
        ) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, all with the same keys, as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def append_csv(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV file; no kill of this process loses it. The first brings the header."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def rewind_csv(path: Path, episode: int) -> list[dict[str, str]]:
    """Drop, and return the rest of, what a killed run wrote after its checkpoint at episode."""
    rows = []
    for row in read_csv(path):
        if None in row.values() or int(row["episode"]) > episode:  # None: cut off in mid-row
            break
        rows.append(row)
    write_csv(path, rows)
    return rows


def plot_learning_curve(run_dir: Path, title: str) -> None:
    """Draw the returns in episodes.csv, and their moving average, to learning_curve.png."""
    rows = read_csv(run_dir / "episodes.csv")
    if not rows:
        return
    from matplotlib.figure import Figure  # a second to import: only now

    timesteps = np.array([int(row["timestep"]) for row in rows])
    returns = np.array([float(row["return"]) for row in rows])
    window = min(RECENT, len(rows))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(timesteps, returns, color="tab:blue", alpha=0.3, label="episode")
    average = np.convolve(returns, np.ones(window) / window, "valid")
    axes.plot(timesteps[window - 1 :], average, color="tab:blue", label=f"mean of {window}")
    axes.set(title=title, xlabel="environment steps", ylabel="return (exploration included)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run_dir / "learning_curve.png", dpi=120)


def plot_traces(traces: list[list[Any]], env: gym.Env, path: Path) -> None:
    """Draw a one-dimensional observation against time, a line an episode, over the band of it that
    the environment names COMFORTABLE, if it does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for trace in traces:
        axes.plot(np.ravel(trace), color="tab:blue", alpha=0.5, linewidth=1)
    if hasattr(env.unwrapped, "COMFORTABLE"):
        axes.axhspan(*env.unwrapped.COMFORTABLE, color="tab:green", alpha=0.2, label="comfortable")
        axes.legend()
    axes.set(title=f"{len(traces)} greedy episodes", xlabel="step", ylabel="observation")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


class Tracker:
    """Weights & Biases with --track, nothing without; its failure never stops a run."""

    def __init__(self, args: Args, run_dir: Path) -> None:
        self.run: Any = None
        if args.track:
            with self.going_on():
                import wandb

                name = "-".join(run_dir.resolve().parts[-2:])  # of the run; its id, to resume it
                self.run = wandb.init(
                    project=args.wandb_project_name,
                    entity=args.wandb_entity,
                    name=name,
                    id=re.sub(r"[^\w.-]", "-", name),
                    resume="allow",
                    dir=run_dir.absolute(),
                    config=json.loads(json.dumps(asdict(args), default=str)),
                )

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Turn an error of W&B into a line on the terminal, and log no more."""
        try:
            yield
        except Exception as error:
            self.run = None
            print(f"--track: {error!r}; going on without Weights & Biases", file=sys.stderr)

    def log(self, values: dict[str, Any], timestep: int) -> None:
        """Log values at a timestep."""
        if self.run is not None:
            with self.going_on():
                self.run.log(values, step=timestep)

    def finish(self, run_dir: Path, rows: list[dict[str, float]]) -> None:
        """Log the evaluation and the videos, and close."""
        if self.run is not None:
            with self.going_on():
                import wandb

                for path in sorted(run_dir.glob("videos/*.mp4")):
                    self.run.log({path.stem: wandb.Video(str(path), format="mp4")})
                if rows:
                    self.run.summary["evaluation"] = np.mean([row["return"] for row in rows])
                self.run.finish()


class StopRequest:
    """While entered, Ctrl-C or SIGTERM sets `made`; a second one stops the script at once."""

    def __enter__(self) -> Self:
        self.made = False
        signals = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        print("\nstopping when this episode ends; once more stops now", file=sys.stderr)


def run_training(env: gym.Env, agent: Agent, args: Args, run_dir: Path, tracker: Tracker) -> bool:
    """Train, log each episode, write checkpoints; return False if the run was told to stop."""
    rows = rewind_csv(run_dir / "episodes.csv", agent.episode)
    started = time.perf_counter() - (float(rows[-1]["seconds"]) if rows else 0.0)
    recent = deque((float(row["return"]) for row in rows), maxlen=RECENT)
    saved_at = agent.timestep
    bar = tqdm(total=args.total_timesteps, initial=agent.timestep, unit="step", disable=None)
    with StopRequest() as stop, bar:
        for episode in train(env, agent, args):
            row = {
                "episode": agent.episode,
                "timestep": agent.timestep,
                "return": episode.return_,
                "length": episode.length,
                "seconds": round(time.perf_counter() - started, 3),
                **episode.learned,
            }
            append_csv(run_dir / "episodes.csv", row)
            tracker.log(row, agent.timestep)
            recent.append(episode.return_)
            bar.set_postfix_str(f"return {np.mean(recent):.1f}", refresh=False)
            bar.update(agent.timestep - bar.n)
            if stop.made or agent.timestep - saved_at >= args.checkpoint_every:
                save_checkpoint(agent, args, run_dir)
                saved_at = agent.timestep
                if stop.made:
                    break
        else:
            save_checkpoint(agent, args, run_dir)
            bar.update(agent.timestep - bar.n)
    plot_learning_curve(run_dir, f"{SCRIPT} on {args.env_id}, seed {args.seed}")
    return not stop.made


def play(agent: Agent, args: Args, run_dir: Path, drawable: bool) -> list[dict[str, float]]:
    """Play greedy episodes: to videos/ with --capture-video, or on the screen if there is one."""
    load_checkpoint(agent, args, run_dir)
    if args.capture_video:
        return record_videos(agent, args.env_id, run_dir / "videos", "play", args.eval_episodes)
    screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    mode = "human" if screen and drawable else None
    with contextlib.closing(make_env(args.env_id, mode)) as env:
        return evaluate(agent, env, args.eval_episodes)


def report(rows: list[dict[str, float]]) -> None:
    """Print the last line of a run."""
    returns = [row["return"] for row in rows]
    mean, deviation = np.mean(returns), np.std(returns)
    print(f"evaluation: mean return {mean:.1f} ± {deviation:.1f} over {len(rows)} episodes")


def new_run_dir(args: Args) -> Path:
    """Make the folder of a new run; UsageError if it is taken."""
    run_dir = args.run_dir
    try:
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            free = not any(run_dir.iterdir())
            require(free, "--run-dir", run_dir, "a new or empty folder (or use --resume)")
        while run_dir is None:
            now = time.strftime("%Y-%m-%d_%H-%M-%S")
            name = re.sub(r"[^\w.-]", "-", f"{args.env_id}__{SCRIPT}__{args.seed}__{now}")
            with contextlib.suppress(FileExistsError):  # another run began in this second
                Path("runs", name).mkdir(parents=True)
                run_dir = Path("runs", name)
    except OSError as error:
        raise UsageError(f"--run-dir {args.run_dir or 'runs/'}: {error.strerror}") from error
    return run_dir


def run(args: Args) -> int:
    """Do what the command line asks; return the exit code."""
    env = make_env(args.env_id)
    drawable = "rgb_array" in env.metadata.get("render_modes", ())
    require(drawable or not args.capture_video, "--capture-video", "of " + args.env_id, "left out")
    agent = Agent(env, args)
    if args.play is not None:
        report(play(agent, args, args.play, drawable))
        return 0
    run_dir = args.resume or new_run_dir(args)
    if (run_dir / "checkpoint.pt").exists():
        load_checkpoint(agent, args, run_dir)
    total, least = args.total_timesteps, f"at least {agent.timestep}, the steps so far"
    require(total >= agent.timestep, "--total-timesteps", total, least)
    write_args(args, run_dir)
    tracker = Tracker(args, run_dir)
    if args.capture_video and agent.timestep == 0:
        try_video(agent, args.env_id, run_dir / "videos", "before-training")
    if not run_training(env, agent, args, run_dir, tracker):
        tracker.finish(run_dir, [])
        print(f"stopped after {agent.timestep} steps; go on with --resume {run_dir}")
        return 130
    if args.capture_video:
        try_video(agent, args.env_id, run_dir / "videos", "after-training")
    with contextlib.closing(make_env(args.env_id)) as evaluation_env:
        traces = [] if evaluation_env.observation_space.shape == (1,) else None
        rows = evaluate(agent, evaluation_env, args.eval_episodes, traces)
        if traces:
            plot_traces(traces, evaluation_env, run_dir / "evaluation.png")
    write_csv(run_dir / "evaluation.csv", rows)
    tracker.finish(run_dir, rows)
    print(f"saved in {run_dir}")
    report(rows)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script as from the command line; return its exit code."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # small matrices: threads cost more than they bring
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    try:
        return run(parse_args(argv))
    except UsageError as error:
        print(f"{SCRIPT}.py: error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ChildProcessError) as error:
        print(f"{SCRIPT}.py: stopped: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
