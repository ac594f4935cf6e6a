# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0",
#     "matplotlib==3.11.2",
#     "moviepy==2.2.1",
#     "numpy==2.4.6",
#     "pydantic==2.14.4",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Random baseline: an agent that acts at random and learns nothing, on any environment.

A score means something only beside the score of an agent that learned nothing. This file is also
the skeleton of the other scripts: each of them is this one plus an algorithm.

Algorithm
    for episode = 1, 2, … do
        receive the first observation s₁
        for t = 1, 2, … until the episode ends do
            choose a ~ Uniform(𝒜), execute it, observe r and the next observation

Symbol → name in the code
    s, a, r → observation, action, reward
    𝒜       → env.action_space (without bounds Gymnasium draws from a normal or an exponential)

Examples
    python random_baseline.py --env-id CartPole-v1 --eval-episodes 4000
    python random_baseline.py --env-id Pendulum-v1 --capture-video
    python random_baseline.py --env-id your_module:YourEnv-v0
"""

import argparse
import contextlib
import csv
import inspect
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.utils._pytree import tree_leaves
from tqdm import tqdm


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "CartPole-v1"  # Gymnasium environment, also as module:Env-v0
    seed: NonNegativeInt = 1  # seed of all random numbers
    total_timesteps: PositiveInt = 10_000  # environment steps to train for
    run_dir: Path | None = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Path | None = None  # continue the run in this folder
    play: Path | None = None  # play greedy episodes of the run in this folder
    eval_episodes: PositiveInt = 10  # greedy episodes at the end, or with --play
    checkpoint_every: NonNegativeFloat = 20.0  # seconds between checkpoints, at ends of episodes
    capture_video: bool = False  # film the greedy episodes
    track: bool = False  # log to Weights & Biases; WANDB_PROJECT names the project


class Agent:
    """A random agent. `episode` and `timestep` count finished episodes and environment steps."""

    def __init__(self, env: gym.Env, args: Args) -> None:
        self.args, self.episode, self.timestep = args, 0, 0
        self.sample = env.action_space.sample

    def act(self, observation: Any) -> Any:
        """Return an action, a ~ Uniform(𝒜)."""
        return self.sample()


def train(env: gym.Env, agent: Agent) -> Iterator[dict[str, float]]:
    """Act for `total_timesteps`; yield a row of the log after each episode."""
    args = agent.args
    while agent.timestep < args.total_timesteps:  # for episode = 1, 2, …
        rng = seed_episode(env, args.seed, agent.episode)  # all of the episode's randomness
        observation, _ = env.reset(seed=int(rng.integers(2**31)))  # receive s₁
        rewards, ended = [], False
        while not ended and agent.timestep < args.total_timesteps:  # for t = 1, 2, …
            action = agent.act(observation)  # choose a
            observation, reward, terminated, truncated, _ = env.step(action)
            agent.timestep += 1
            rewards.append(float(reward))
            ended = terminated or truncated
        if ended:
            agent.episode += 1
            yield {"return": sum(rewards), "length": len(rewards)}


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """Make an environment."""
    return gym.make(env_id, **({"render_mode": render_mode} if render_mode else {}))


# ------------------------------------------------------------------------------------------------
# The harness, the same in every script: it runs `train`, and saves and shows the results.

SCRIPT = Path(__file__).stem
Rows = list[dict[str, Any]]


@contextlib.contextmanager
def usage_errors(given: Any, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors into one message that names what was given, and exit code 2."""
    try:
        yield
    except errors as error:
        what = " ".join(str(error).splitlines()[:2]) or repr(error)  # some go on for pages
        print(f"{SCRIPT}.py: error: {given}: {what}", file=sys.stderr)
        raise SystemExit(2) from None


def seed_episode(env: gym.Env, *seed: int) -> np.random.Generator:
    """Return an episode's generator; the global ones and the action space's are seeded from it."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2**32))
    for seed_global in (torch.manual_seed, np.random.seed, random.seed, env.action_space.seed):
        seed_global(number)
    return rng


def evaluate(agent: Agent, env: gym.Env, episodes: int) -> Rows:
    """Play greedy episodes; return a row for each. Episode i starts from seed 10,000 + i in every
    script and run, so that all agents meet the same starts."""
    rows = []
    for seed in range(10_000, 10_000 + episodes):
        seed_episode(env, seed)
        observation, _ = env.reset(seed=seed)
        rewards, ended = [], False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            rewards.append(float(reward))
            ended = terminated or truncated
        rows.append({"seed": seed, "return": sum(rewards), "length": len(rewards)})
    return rows


def state_of(agent: Agent) -> dict[str, Any]:
    """Return what to save: the agent's attributes, except functions and its arguments; TypeError if
    one cannot be saved, or would come back as a copy, such as a learned tensor in a list."""
    state = {}
    for name, value in vars(agent).items():
        if inspect.isroutine(value) or isinstance(value, Args):
            continue
        if hasattr(value, "state_dict"):  # networks, buffer, optimisers
            value = value.state_dict()
        state[name] = value.item() if isinstance(value, np.generic) else value
        for leaf in tree_leaves(state[name]):
            learned = getattr(leaf, "requires_grad", False) and leaf is not value
            if learned or not isinstance(leaf, torch.Tensor | int | float | str | None):
                what = "a learned tensor in it" if learned else type(leaf).__name__
                use = "use a tensor, an nn.ModuleList or an nn.ParameterList"
                raise TypeError(f"agent.{name}: {what} is not saved; {use}")
    return state


def save(agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Write checkpoint.pt, whole or not at all, and args.json and episodes.csv, for people;
    FloatingPointError, and nothing written, if a tensor of the agent has a NaN."""
    state = state_of(agent)
    for name, value in state.items():
        tensors = filter(torch.is_tensor, tree_leaves(value))
        if any(tensor.is_floating_point() and tensor.isnan().any() for tensor in tensors):
            raise FloatingPointError(f"agent.{name} is NaN; {run_dir} has the last good checkpoint")
    not_saved = {"run_dir", "resume", "play", "device"}
    text = TypeAdapter(Args).dump_json(agent.args, indent=2, exclude=not_saved).decode()
    temporary = run_dir / "checkpoint.tmp"
    torch.save({"args": text, "agent": state, "rows": json.dumps(rows)}, temporary)
    torch.load(temporary, weights_only=True, mmap=True)  # what could not be loaded fails now
    os.replace(temporary, run_dir / "checkpoint.pt")
    (run_dir / "args.json").write_text(text)
    write_csv(rows, run_dir / "episodes.csv")


def load(agent: Agent, run_dir: Path) -> Rows:
    """Restore what `save` wrote; return the rows. With weights_only a checkpoint runs no code."""
    checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    saved, names = checkpoint["agent"], state_of(agent).keys()
    learned = {name for name in saved if isinstance(saved[name], dict)}  # networks, optimisers
    if different := (names - saved.keys()) | (learned - names):
        raise ValueError(f"of another {SCRIPT}.py, or made after Agent.__init__: {different}")
    for name, value in saved.items():
        attribute = getattr(agent, name, None)  # a number may be new since `__init__`
        if hasattr(attribute, "load_state_dict"):
            attribute.load_state_dict(value)
        elif isinstance(attribute, torch.Tensor):
            if (value.dtype, value.shape) != (attribute.dtype, attribute.shape):
                raise ValueError(f"agent.{name} was saved with another dtype or size")
            attribute.data.copy_(value)
        else:
            setattr(agent, name, value)
    return json.loads(checkpoint["rows"])


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows, with every column that any of them has."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)


def plot_learning_curve(rows: Rows, path: Path) -> None:
    """Draw the return of each training episode, and the mean of the last 20."""
    from matplotlib.figure import Figure  # a second to import: only now

    timesteps, returns = ([row[name] for row in rows] for name in ("timestep", "return"))
    means = [fmean(returns[max(0, i - 19) : i + 1]) for i in range(len(returns))]
    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    axes.plot(timesteps, returns, color="tab:blue", alpha=0.3)
    axes.plot(timesteps, means, color="tab:blue")
    axes.set(xlabel="environment steps", ylabel="return in training: episodes, and means of 20")
    axes.figure.savefig(path, dpi=120)


def learn(env: gym.Env, agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Train; log each episode, write checkpoints between them, draw the learning curve."""
    args = agent.args
    if args.track:
        import wandb
    started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    last_save = time.perf_counter()
    with tqdm(total=args.total_timesteps, initial=agent.timestep, disable=None) as bar:
        for result in train(env, agent):
            now = time.perf_counter()
            row = {"episode": agent.episode, "timestep": agent.timestep, "seconds": now - started}
            row |= {k: v.item() if hasattr(v, "item") else v for k, v in result.items()}
            rows.append(row)
            if args.track:
                wandb.log(row, step=row["timestep"])
            recent = fmean(row["return"] for row in rows[-20:])
            bar.set_postfix_str(f"return {recent:.1f}", refresh=False)
            bar.update(agent.timestep - bar.n)
            if now - last_save >= args.checkpoint_every:
                save(agent, rows, run_dir)
                last_save = time.perf_counter()
    save(agent, rows, run_dir)
    plot_learning_curve(rows, run_dir / "learning_curve.png")


def parse_args(argv: Sequence[str] | None = None) -> Args:
    """Read the command line; with --resume or --play, on top of the arguments of that run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    one_of = parser.add_mutually_exclusive_group()
    for flags in (["--run-dir", "--run_dir"], ["--resume"], ["--play"]):  # tyro takes both
        one_of.add_argument(*flags, type=Path)
    given, saved = parser.parse_known_args(argv)[0], Args()
    if folder := given.resume or given.play:
        with usage_errors(f"{folder}: not a run of {SCRIPT}.py", Exception):  # torch has many kinds
            checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True)
            saved = TypeAdapter(Args).validate_json(checkpoint["args"])
    if given.play:
        saved = replace(saved, capture_video=False, track=False)  # unless they are given anew
    return tyro.cli(Args, args=argv, description=__doc__, default=saved)


def main(argv: Sequence[str] | None = None) -> tuple[Agent, Path]:
    """Run the script as from the command line; return the agent and the folder of its run."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # one is fastest here
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    args = parse_args(argv)
    screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ
    mode = "rgb_array" if args.capture_video else "human" if args.play and screen else None
    with usage_errors(f"--env-id {args.env_id}", gym.error.Error, ModuleNotFoundError):
        env = make_env(args.env_id, mode)
    agent = Agent(env, args)
    name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    run_dir = args.resume or args.play or args.run_dir or Path("runs", re.sub(r"[/:]", "-", name))
    if args.resume or args.play:
        with usage_errors(run_dir / "checkpoint.pt", Exception):
            rows = load(agent, run_dir)
    else:
        with usage_errors(f"--run-dir {run_dir}", OSError):
            run_dir.mkdir(parents=True)
        rows = []
        save(agent, rows, run_dir)
    if args.track:
        import wandb

        run_id = "-".join(run_dir.absolute().parts[-2:])  # the same with --resume
        project = os.environ.get("WANDB_PROJECT", "minimal-rl")
        resume = "allow" if args.resume or args.play else "never"
        wandb.init(project=project, name=run_id, id=run_id, resume=resume, config=asdict(args))
    try:
        if not args.play:
            learn(env, agent, rows, run_dir)
        if args.capture_video:
            env = gym.wrappers.RecordVideo(env, f"{run_dir}/videos", episode_trigger=lambda _: True)
        rows = evaluate(agent, env, args.eval_episodes)
    except KeyboardInterrupt:
        print(f"\nstopped: --resume {run_dir} continues from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    env.close()  # writes the last video
    returns = [row["return"] for row in rows]
    if not args.play:
        write_csv(rows, run_dir / "evaluation.csv")
    if args.track:
        videos = {path.stem: wandb.Video(str(path)) for path in run_dir.glob("videos/*.mp4")}
        wandb.log({"evaluation": fmean(returns), **videos})
        wandb.finish()
    score = f"{fmean(returns):.1f} ± {pstdev(returns):.1f}"
    print(f"evaluation: mean return {score} over {len(rows)} episodes; the run is in {run_dir}")
    return agent, run_dir


if __name__ == "__main__":
    main()
