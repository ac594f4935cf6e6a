# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control,mujoco]==1.4.0", "matplotlib==3.11.2", "moviepy==2.2.1",
#     "numpy==2.4.6", "pydantic==2.14.4", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#     "wandb==0.31.0",
# ]
# ///
"""Random baseline: an agent that acts at random and learns nothing, on any environment.

A score means something only beside this agent's. The other scripts are this one and an algorithm.

    for episode = 1, 2, … do
        receive the first observation
        for t = 1, 2, … until the episode ends do
            choose a ~ Uniform(𝒜), execute it, observe the reward and the next observation

𝒜 is env.action_space; where it has no bounds, Gymnasium draws from a normal or an exponential.

Examples
    python random_baseline.py --env-id CartPole-v1 --eval-episodes 4000
    python random_baseline.py --env-id your_module:YourEnv-v0 --capture-video
"""

import contextlib
import copyreg
import csv
import functools
import inspect
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from pydantic import Field, TypeAdapter
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
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict)  # NAME VALUE …
    max_episode_steps: PositiveInt | None = None  # else the environment's own, or 1,000
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # seed of all random numbers in training
    total_timesteps: PositiveInt = 10_000  # environment steps to train for
    run_dir: Folder = None  # a new folder for the run; else runs/ENV__SCRIPT__SEED__TIME
    resume: Folder = None  # continue the run in this folder
    play: Folder = None  # play greedy episodes of the run in this folder
    evaluations: NonNegativeInt = 10  # greedy evaluations in the course of the run, at most
    eval_episodes: PositiveInt = 10  # greedy episodes of each, at the end, and with --play
    checkpoint_every: NonNegativeFloat = 20.0  # least seconds between checkpoints, after episodes
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


def make_env(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment."""
    return make(args, render_mode)


# ------------------------------------------------------------------------------------------------
# The harness, the same in every script: it runs `train`, and saves and shows the results.

SCRIPT = Path(globals().get("__file__", "notebook")).stem
Rows = list[dict[str, Any]]
copyreg.pickle(deque, lambda x: (deque, (list(x), x.maxlen)))  # as weights_only reads it
NUMPY = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, np._core.multiarray.scalar]
NUMPY += {type(np.dtype(code)) for code in np.typecodes["All"]}
torch.serialization.add_safe_globals([deque, *NUMPY])
CONTAINERS = {dict, OrderedDict, list, tuple, deque}  # exactly: a subclass could not be loaded
SAVED = {torch.Tensor, nn.Parameter, np.ndarray, Counter, bool, int, float, str, type(None)}
INTERNAL = vars(nn.Module()).keys() - {"training"}
GLOBAL_SEEDS = torch.manual_seed, np.random.seed, random.seed


def seed_episode(env: gym.Env, *seed: int) -> np.random.Generator:
    """Return an episode's generator; the global ones and the spaces' are seeded from it."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2**32))
    spaces = []
    while env is not None:  # the environment and its wrappers
        spaces += [getattr(env, name, None) for name in ("action_space", "observation_space")]
        env = env.env if isinstance(env, gym.Wrapper) else None
    for seed_one in (*GLOBAL_SEEDS, *(space.seed for space in spaces if space is not None)):
        seed_one(number)
    return rng


def make(args: Args, render_mode: str | None = None) -> gym.Env:
    """Make an environment with a time limit; observations that can be flattened are vectors of
    float32, each in an array of its own."""
    for seed_global in GLOBAL_SEEDS:  # an environment may draw numbers as it is made
        seed_global(args.seed % 2**32)
    options = args.env_kwargs | ({"render_mode": render_mode} if render_mode else {})
    env = gym.make(args.env_id, max_episode_steps=args.max_episode_steps, **options)
    env = env if env.spec.max_episode_steps else gym.wrappers.TimeLimit(env, 1000)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) and space.is_np_flattenable:
        env = gym.wrappers.FlattenObservation(env)
        space = env.observation_space
    if not isinstance(space, gym.spaces.Box):
        return env
    box = gym.spaces.Box(*(x.astype(np.float32).ravel() for x in (space.low, space.high)))

    def vector(observation: Any) -> np.ndarray:
        return np.array(observation, np.float32).reshape(box.shape)

    return gym.wrappers.TransformObservation(env, vector, box)


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
    agent and of its modules (of torch's own: their numbers), except functions, classes, devices and
    the arguments; TypeError if one cannot be restored, FloatingPointError if one has a NaN."""
    state = {"tensors": agent.state_dict()}
    state["gradients"] = {name: (p.requires_grad, p.grad) for name, p in agent.named_parameters()}
    for path, module in agent.named_modules():
        others = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        torchs = type(module).__module__.startswith("torch.")
        for name, x in (vars(module) | others).items():
            skip = name in INTERNAL or (torchs and not isinstance(x, int | float))
            if not (skip or inspect.isroutine(x) or isinstance(x, Args | type | torch.device)):
                if hasattr(x, "state_dict"):
                    name, x = f"{name}.state_dict", x.state_dict()
                state[f"{path}.{name}"] = x
    storages = [x.untyped_storage() for x in state["tensors"].values() if torch.is_tensor(x)]
    owned = [(m.data_ptr(), m.nbytes() if m.device.type == "cpu" else 1) for m in storages]
    for path, x in tree_leaves_with_path(state, is_leaf=lambda x: type(x) not in CONTAINERS):
        if not (type(x) in SAVED or isinstance(x, np.generic)):
            raise TypeError(f"agent{keystr(path)}: {type(x).__name__} is not saved; see Fork it")
        array = isinstance(x, torch.Tensor | np.ndarray)
        if array and path[0].key not in ("tensors", "gradients"):
            start = x.untyped_storage().data_ptr() if torch.is_tensor(x) else x.ctypes.data
            shared = any(0 <= start - first < size for first, size in owned)
            if shared or (torch.is_tensor(x) and x.requires_grad):
                raise TypeError(f"agent{keystr(path)} would come back as a copy: use nn.Parameter")
        if array and (x != x).any():
            raise FloatingPointError(f"agent{keystr(path)} is NaN; the last checkpoint is good")
    return state


def save(agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Write checkpoint.pt, whole or not at all, and args.json and episodes.csv, for people."""
    now = {"run_dir", "resume", "play", "capture_video", "track", "device"}  # give them anew
    args = TypeAdapter(Args).dump_json(agent.args, indent=2, exclude=now).decode()
    state = {"agent": state_of(agent), "timestep": agent.timestep}
    temporary = run_dir / f"checkpoint.{os.getpid()}.tmp"  # another process may resume the run, too
    try:
        torch.save(state | {"args": args, "rows": json.dumps(rows)}, temporary)
        torch.load(temporary, weights_only=True, mmap=True)  # or fail now
        os.replace(temporary, run_dir / "checkpoint.pt")
    except Exception as error:
        error.add_note(f"while writing {temporary}; is the disk full, or read-only?")
        raise
    finally:
        temporary.unlink(missing_ok=True)
    try:
        (run_dir / "args.json").write_text(args)
        write_csv(rows, run_dir / "episodes.csv")
    except OSError as error:  # another program may have locked them: next time
        print(f"not written: {error}", file=sys.stderr)


def load(agent: Agent, run_dir: Path) -> Rows:
    """Restore what `save` wrote; return the rows. With weights_only a checkpoint runs no code."""
    checkpoint = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    saved, fresh = checkpoint["agent"], state_of(agent)
    different = saved.keys() ^ fresh.keys()
    if different := {path for path in different if path in fresh or path.endswith(".state_dict")}:
        raise ValueError(f"of another {SCRIPT}.py, or made after Agent.__init__: {different}")
    agent.load_state_dict(saved.pop("tensors"))
    for name, (requires_grad, gradient) in saved.pop("gradients").items():
        parameter = agent.get_parameter(name).requires_grad_(requires_grad)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    for path, value in saved.items():
        *names, last = path.lstrip(".").split(".")
        owner = functools.reduce(getattr, names, agent)
        if last == "state_dict":
            owner.load_state_dict(value)
        else:
            setattr(owner, last, value)
    return json.loads(checkpoint["rows"])


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows, with every column that any of them has."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)


def plot_learning_curve(rows: Rows, path: Path) -> None:
    """Draw the returns of the training episodes, and those of the evaluations between them."""
    from matplotlib.figure import Figure  # only where it is needed

    axes = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    for name, style in (("return", {"alpha": 0.5}), ("evaluation", {"marker": "o"})):
        found = [(row["timestep"], row[name]) for row in rows if name in row]
        axes.plot(*np.reshape(found, (-1, 2)).T, **style)
    axes.set(xlabel="environment steps", ylabel="return: in training, and greedy (dots)")
    axes.figure.savefig(path, dpi=120)


def learn(env: gym.Env, agent: Agent, rows: Rows, run_dir: Path) -> None:
    """Train; log each episode, evaluate and write checkpoints between them."""
    args, last_save, interval = agent.args, time.perf_counter(), agent.args.checkpoint_every
    started = last_save - (rows[-1]["seconds"] if rows else 0.0)
    evaluations, steps = args.evaluations, args.total_timesteps
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds between lines of a log
    bar = tqdm(total=steps, initial=agent.timestep, mininterval=pause)
    with bar, contextlib.closing(make_env(args)) as evaluation_env:
        for result in train(env, agent):
            now = time.perf_counter()
            row = {"episode": agent.episode, "timestep": agent.timestep, "seconds": now - started}
            result = {k: v.item() if hasattr(v, "item") else v for k, v in result.items()}
            row = dict(**row, **result)  # a name that comes twice is an error
            before = rows[-1]["timestep"] if rows else 0
            if before * evaluations // steps < row["timestep"] * evaluations // steps:  # one is due
                played = evaluate(agent, evaluation_env, args.eval_episodes)
                row["evaluation"] = fmean(episode["return"] for episode in played)
            rows.append(row)
            if args.track:
                import wandb

                wandb.log(row, step=agent.timestep)
            bar.set_postfix_str(f"return {fmean(row['return'] for row in rows[-20:]):.1f}", False)
            bar.update(agent.timestep - bar.n)
            if (now := time.perf_counter()) - last_save >= interval:
                save(agent, rows, run_dir)
                last_save = time.perf_counter()
                interval = interval and max(args.checkpoint_every, 9 * (last_save - now))
    save(agent, rows, run_dir)
    plot_learning_curve(rows, run_dir / "learning_curve.png")


@contextlib.contextmanager
def usage(given: Any, kinds: Any = Exception) -> Iterator[None]:
    """Turn errors of some kinds into one line that names what was given, and exit code 2."""
    try:
        yield
    except kinds as error:
        what = " ".join(str(error).splitlines()[:2]) or repr(error)  # some go on for pages
        print(f"{SCRIPT}.py: error: {given}: {what}", file=sys.stderr)
        raise SystemExit(2) from None


def parse_args(argv: Sequence[str] | None) -> Args:
    """Read the command line; the defaults are those of the run to go on with, if there is one."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if run_dir := args.resume or args.play:
        with usage(f"{run_dir}: not a run of {SCRIPT}.py"):
            path = run_dir / "checkpoint.pt"
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            saved = json.loads(checkpoint["args"]) | {"resume": args.resume, "play": args.play}
            env_kwargs = saved.pop("env_kwargs")  # with defaults, tyro would know other flags
            defaults = TypeAdapter(Args).validate_python(saved)
            args = tyro.cli(Args, args=argv, default=defaults)
            args = replace(args, env_kwargs=env_kwargs | args.env_kwargs)
    return args


def open_env(args: Args, at_exit: contextlib.ExitStack) -> gym.Env:
    """Make the environment, filmed or in a window if that is asked for; it is closed at exit."""
    known = (gym.error.Error, ModuleNotFoundError, NotImplementedError)
    with usage(f"--env-id {args.env_id}", Exception if args.env_kwargs else known):
        env = at_exit.enter_context(contextlib.closing(make_env(args)))
        if env.has_wrapper_attr("obs_rms") or env.has_wrapper_attr("return_rms"):
            raise gym.error.Error("a wrapper normalises, by statistics that no checkpoint holds")
    if not (args.max_episode_steps or gym.spec(env.unwrapped.spec.id).max_episode_steps):
        print("no time limit: it is 1,000 steps; see --max-episode-steps", file=sys.stderr)
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
    if args.capture_video:
        os.environ.setdefault("MUJOCO_GL", "glfw" if screen else "egl")
        with usage("--capture-video"):
            env = at_exit.enter_context(contextlib.closing(make_env(args, "rgb_array")))
            env.reset(seed=0)
            if np.ndim(env.render()) != 3:  # find out now, not after training
                raise ValueError("the environment's render mode rgb_array gives no pictures")
    elif args.play and screen and {"human", "rgb_array"} & {*env.metadata.get("render_modes", ())}:
        with usage("--play"):
            env = at_exit.enter_context(contextlib.closing(make_env(args, "human")))
    elif args.play:
        print("nothing is shown: there is no screen, or no render mode", file=sys.stderr)
    return env


def start_tracking(args: Args, run_dir: Path) -> None:
    """Log in to Weights & Biases and name the run after its folder."""
    import wandb

    run_id = re.sub(r"[^\w.-]", "-", "-".join(run_dir.absolute().parts[-2:]))
    project = os.environ.get("WANDB_PROJECT", "minimal-rl")
    resume = "allow" if args.resume or args.play else "never"
    wandb.init(project=project, name=run_id, id=run_id, resume=resume, config=vars(args))


def main(argv: Sequence[str] | None = None) -> tuple[Agent, Path]:
    """Run the script as from the command line; return the agent and the folder of its run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may not know α
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # fastest here
    torch.set_flush_denormal(True)  # dead units' moments fade into denormals, 10 times slower
    with contextlib.suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # does what Ctrl-C does
    with contextlib.ExitStack() as at_exit:
        args = parse_args(argv)
        env = open_env(args, at_exit)
        with usage("memory (a smaller --buffer-size needs less)", MemoryError):
            agent = Agent(env, args)
        name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        old_run, rows = args.resume or args.play, []
        run_dir = old_run or args.run_dir or Path("runs", re.sub(r"[/:]", "-", name))
        with usage(run_dir if old_run else f"--run-dir {run_dir}"):
            if old_run:
                rows = load(agent, run_dir)
            elif run_dir.exists():
                raise FileExistsError("it is there already; --resume goes on with a run")
        if args.track:
            with usage("--track"):  # before the folder is made
                start_tracking(args, run_dir)
        with usage(f"--run-dir {run_dir}", OSError):
            run_dir.mkdir(parents=True, exist_ok=bool(old_run))
        try:
            if not args.play:
                print(f"the run is in {run_dir}", file=sys.stderr)
                save(agent, rows, run_dir)
                learn(env, agent, rows, run_dir)
            rows = evaluate(agent, env, args.eval_episodes)
            if not args.play:
                write_csv(rows, run_dir / "evaluation.csv")
            if args.capture_video:  # the same episodes once more
                film = gym.wrappers.RecordVideo(env, f"{run_dir}/videos", lambda episode: True)
                evaluate(agent, film, args.eval_episodes)
                film.close()  # writes the last
        except SystemExit as error:
            raise RuntimeError("the environment called sys.exit") from error
        except KeyboardInterrupt:
            path = run_dir / "checkpoint.pt"
            if path.exists() and not args.play:
                step = torch.load(path, weights_only=True, mmap=True)["timestep"]
                print(f"\nstopped; --resume {run_dir} goes on after step {step}", file=sys.stderr)
            raise SystemExit(130) from None
    returns = [row["return"] for row in rows]
    if args.track:
        import wandb

        videos = {path.stem: wandb.Video(str(path)) for path in run_dir.glob("videos/*.mp4")}
        wandb.log({"evaluation": fmean(returns), **videos})
        wandb.finish()
    score = f"{fmean(returns):.1f} ± {np.std(returns):.1f}"
    print(f"evaluation: mean return {score} over {len(rows)} episodes; the run is in {run_dir}")
    return agent, run_dir


if __name__ == "__main__":
    main()
