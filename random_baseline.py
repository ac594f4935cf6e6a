# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0", "matplotlib==3.11.2", "moviepy==2.2.1",
#     "numpy==2.4.6", "pydantic==2.14.4", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Random baseline: an agent that acts at random and learns nothing, on any environment.

A score means something only beside its score; and the other scripts are this one plus an algorithm.

    for episode = 1, 2, … do
        receive the first observation
        for t = 1, 2, … until the episode ends do
            choose a ~ Uniform(𝒜), execute it, observe the reward and the next observation

𝒜 is env.action_space; where it has no bounds, Gymnasium draws from a normal or an exponential.

Examples
    python random_baseline.py --env-id CartPole-v1 --eval-episodes 4000
    python random_baseline.py --env-id your_module:YourEnv-v0 --capture-video
"""

import copyreg
import csv
import inspect
import json
import os
import random
import re
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn
from torch.utils._pytree import keystr, tree_leaves_with_path
from tqdm import tqdm

Folder = Annotated[Path | None, tyro.conf.create_mutex_group(required=False)]  # at most one


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class Args:
    """The command line: `env_id` is `--env-id`, and so on."""

    env_id: str = "CartPole-v1"  # Gymnasium environment, also as module:Env-v0
    seed: NonNegativeInt = 1  # seed of all random numbers
    total_timesteps: PositiveInt = 10_000  # environment steps to train for
    run_dir: Folder = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Folder = None  # continue the run in this folder
    play: Folder = None  # play greedy episodes of the run in this folder
    eval_episodes: PositiveInt = 10  # greedy episodes at the end, or with --play
    checkpoint_every: NonNegativeFloat = 20.0  # seconds between checkpoints, at ends of episodes
    capture_video: bool = False  # film the greedy episodes
    track: bool = False  # log to Weights & Biases; WANDB_PROJECT names the project


class Agent(nn.Module):
    """A random agent. `episode` and `timestep` count finished episodes and environment steps."""

    def __init__(self, env: gym.Env, args: Args) -> None:
        super().__init__()
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
copyreg.pickle(deque, lambda x: (deque, (list(x), x.maxlen)))  # as weights_only reads it
NUMPY = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar]
NUMPY += {type(np.dtype(code)) for code in np.typecodes["All"]}
torch.serialization.add_safe_globals([deque, *NUMPY])


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
    """Return what to save: the agent's `state_dict`, and by their paths the other attributes of the
    agent and of its modules, except functions, classes and its arguments; TypeError if one cannot
    be saved, FloatingPointError if one has a NaN."""
    state = {"tensors": agent.state_dict()}
    for path, module in agent.named_modules():
        own = {} if type(module).__module__.startswith("torch.") else vars(module)
        for name in own.keys() - vars(nn.Module()).keys():
            value = own[name]
            if not (inspect.isroutine(value) or isinstance(value, Args | type | torch.device)):
                part = value.state_dict() if hasattr(value, "state_dict") else value
                state[f"{path}.{name}"] = part
    containers = {dict, OrderedDict, list, tuple, deque}  # exactly: a subclass could not be loaded
    for path, x in tree_leaves_with_path(state, is_leaf=lambda x: type(x) not in containers):
        plain = isinstance(x, torch.Tensor | np.ndarray | np.generic | int | float | str | None)
        if not plain or getattr(x, "requires_grad", False):
            use = "use tensors, arrays, numbers; nn.Parameter for what is learned"
            raise TypeError(f"agent{keystr(path)}: {type(x).__name__} is not saved; {use}")
        if isinstance(x, torch.Tensor | np.ndarray) and (x != x).any():
            raise FloatingPointError(f"agent{keystr(path)} is NaN; the last checkpoint is good")
    return state


def save(agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Write checkpoint.pt, whole or not at all, and args.json and episodes.csv, for people."""
    now = {"run_dir", "resume", "play", "capture_video", "track", "device"}  # give them anew
    args = TypeAdapter(Args).dump_json(agent.args, indent=2, exclude=now).decode()
    state = {"agent": state_of(agent), "args": args, "rows": json.dumps(rows)}
    torch.save(state, run_dir / "checkpoint.tmp")
    torch.load(run_dir / "checkpoint.tmp", weights_only=True, mmap=True)  # or fail now
    os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")
    (run_dir / "args.json").write_text(args)
    write_csv(rows, run_dir / "episodes.csv")


def load(agent: Agent, run_dir: Path) -> Rows:
    """Restore what `save` wrote; return the rows. With weights_only a checkpoint runs no code."""
    checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    saved, fresh = checkpoint["agent"], state_of(agent)
    late = {path for path in saved.keys() - fresh.keys() if isinstance(saved[path], dict)}
    if different := late | (fresh.keys() - saved.keys()):
        raise ValueError(f"of another {SCRIPT}.py, or made after Agent.__init__: {different}")
    agent.load_state_dict(saved.pop("tensors"))
    for path, value in saved.items():
        module, _, name = path.rpartition(".")
        owner = agent.get_submodule(module)
        if hasattr(old := getattr(owner, name, None), "load_state_dict"):
            old.load_state_dict(value)
        else:
            setattr(owner, name, value)
    return json.loads(checkpoint["rows"])


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows, with every column that any of them has."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)


def plot_learning_curve(rows: Rows, path: Path) -> None:
    """Draw the return of each training episode, and the mean of the last 20."""
    from matplotlib.figure import Figure  # only where it is needed

    timesteps, returns = ([row[name] for row in rows] for name in ("timestep", "return"))
    means = [fmean(returns[max(0, i - 19) : i + 1]) for i in range(len(returns))]
    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    axes.plot(timesteps, returns, color="tab:blue", alpha=0.3)
    axes.plot(timesteps, means, color="tab:blue")
    axes.set(xlabel="environment steps", ylabel="return in training: episodes, and means of 20")
    axes.figure.savefig(path, dpi=120)


def learn(env: gym.Env, agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Train; log each episode, write checkpoints between them, draw the learning curve."""
    args, last_save = agent.args, time.perf_counter()
    started = last_save - (rows[-1]["seconds"] if rows else 0.0)
    with tqdm(total=args.total_timesteps, initial=agent.timestep, disable=None) as bar:
        for result in train(env, agent):
            now = time.perf_counter()
            row = {"episode": agent.episode, "timestep": agent.timestep, "seconds": now - started}
            row |= {k: v.item() if hasattr(v, "item") else v for k, v in result.items()}
            rows.append(row)
            if args.track:
                import wandb

                wandb.log(row, step=agent.timestep)
            bar.set_postfix_str(f"return {fmean(row['return'] for row in rows[-20:]):.1f}", False)
            bar.update(agent.timestep - bar.n)
            if now - last_save >= args.checkpoint_every:
                save(agent, rows, run_dir)
                last_save = time.perf_counter()
    save(agent, rows, run_dir)
    plot_learning_curve(rows, run_dir / "learning_curve.png")


def main(argv: Sequence[str] | None = None) -> tuple[Agent, Path]:
    """Run the script as from the command line; return the agent and the folder of its run."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # one is fastest here
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    args, rows = tyro.cli(Args, args=argv, description=__doc__), []
    old_run = args.resume or args.play
    given, expected = f"{old_run}: not a run of {SCRIPT}.py", (Exception,)  # torch has many
    try:
        if old_run:  # its arguments are the defaults
            checkpoint = torch.load(old_run / "checkpoint.pt", weights_only=True, mmap=True)
            defaults = TypeAdapter(Args).validate_json(checkpoint["args"])
            args = tyro.cli(Args, args=argv, default=defaults)
        given, expected = f"--env-id {args.env_id}", (gym.error.Error, ModuleNotFoundError)
        screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ
        mode = "rgb_array" if args.capture_video else "human" if args.play and screen else None
        env = make_env(args.env_id, mode)
        if env.has_wrapper_attr("obs_rms") or env.has_wrapper_attr("return_rms"):
            raise gym.error.Error("a wrapper normalises, by statistics that no checkpoint holds")
        agent = Agent(env, args)
        name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        run_dir = old_run or args.run_dir or Path("runs", re.sub(r"[/:]", "-", name))
        if old_run:
            given, expected = run_dir, (Exception,)
            rows = load(agent, run_dir)
        else:
            given, expected = f"--run-dir {run_dir}", (OSError,)
            run_dir.mkdir(parents=True)
    except expected as error:
        what = " ".join(str(error).splitlines()[:2]) or repr(error)  # some go on for pages
        print(f"{SCRIPT}.py: error: {given}: {what}", file=sys.stderr)
        raise SystemExit(2) from None
    if args.track:
        import wandb

        run_id = "-".join(run_dir.absolute().parts[-2:])  # the same with --resume
        project = os.environ.get("WANDB_PROJECT", "minimal-rl")
        resume = "allow" if old_run else "never"
        wandb.init(project=project, name=run_id, id=run_id, resume=resume, config=vars(args))
    try:
        if not args.play:
            save(agent, rows, run_dir)
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
