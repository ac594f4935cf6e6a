"""Small environments for the tests, by `--env-id tests.environments:NAME`."""

import functools
import gc
import itertools
import os
import random
import signal
import time
from multiprocessing import Process
from multiprocessing.queues import Queue
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Sequence


class Counter(gym.Env):
    """Counts its steps; terminates after `length` of them, the first time or always, or never."""

    def __init__(
        self, length=None, reward=None, observation=None, action=None, nan_at=None, once=False
    ):
        self.length, self.nan_at, self.once = length, nan_at, once
        self.reward = reward or (lambda step: 1.0)
        self.observation_space = observation or Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action or Box(-1, 1, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.actions = 0, []
        self.observation = np.array([0.0, self.np_random.uniform()])
        return self.observation, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.actions.append(action)
        terminated = self.steps == self.length
        if terminated and self.once:
            self.length = None
        first = np.nan if self.steps == self.nan_at else self.steps
        self.observation[:] = first, self.np_random.uniform()  # the same array at each step
        return self.observation, self.reward(self.steps), terminated, False, {}


class Draws(Counter):
    """Draws from its spaces, and from NumPy's and Python's generators as it is made."""

    def __init__(self):
        super().__init__(length=7)
        self.first = np.random.uniform() + random.random()

    def step(self, action):
        observation, _, *others = super().step(action)
        drawn = self.action_space.sample() + self.observation_space.sample()
        return observation, self.first + drawn.sum(), *others


class Noisy(gym.ObservationWrapper):
    """Draws observations from a space of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Box(-9, 9, (2,))

    def observation(self, observation):
        return self.observation_space.sample()


class Replies(gym.Env):
    """Gives the same observation at each step."""

    def __init__(self, space, observation, action):
        self.observation_space, self.action_space = space, action
        self.observation = observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action):
        return self.observation, 1.0, False, False, {}


class Helped(Counter):
    """Has a process from its making to its close; raises an error in the 100th step of all."""

    steps_of_all = 0

    def __init__(self, action=None, error=None):
        super().__init__(action=action)
        self.error, Helped.steps_of_all = error, 0
        self.process = Process(target=time.sleep, args=(600,))
        self.process.start()
        Path("helpers").mkdir(exist_ok=True)
        Path("helpers", str(self.process.pid)).touch()

    def step(self, action):
        Helped.steps_of_all += 1
        if self.error and Helped.steps_of_all == 100:
            raise self.error
        return super().step(action)

    def close(self):
        self.process.kill()
        self.process.join()


class Grey(Counter):
    """Renders pictures without colours, which cannot be filmed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.zeros((8, 8), np.uint8)


def box(low, high):
    return Box(np.array(low, np.float32), np.array(high, np.float32))


def nan_at_20(step):
    return np.nan if step == 20 else 1.0


rewards = itertools.count()


def raise_after_500(error, step):
    """Return a reward; after 500 of them, in this process, raise an error."""
    if next(rewards) > 500:
        raise error
    return 1.0


def register(name, max_episode_steps=30, **options):
    make = functools.partial(Counter, **options)
    gym.register(f"{name}-v0", make, max_episode_steps=max_episode_steps, order_enforce=0)


for suffix, action in (("", None), ("Discrete", Discrete(3))):
    register(f"Terminates{suffix}", length=7, action=action)
    register(f"Truncates{suffix}", max_episode_steps=7, action=action)
    register(f"NanReward{suffix}", reward=nan_at_20, action=action)
    register(f"NanObservation{suffix}", nan_at=20, action=action)
    register(f"SequenceObservations{suffix}", observation=Sequence(Box(0, 1)), action=action)
for error in (RuntimeError("the environment broke"), SystemExit(0)):
    reward = functools.partial(raise_after_500, error)
    register(f"{type(error).__name__}AfterAWhile", reward=reward, action=Discrete(2))
register("NeverEnds", max_episode_steps=None)
register("EndsOnce", max_episode_steps=None, length=7, once=True, action=Discrete(3))
register("Asymmetric", action=box([-3.0, 0.0, 2.0, -0.3], [1.0, 10.0, 2.5, 0.9]))
register("MatrixActions", action=Box(-1, 1, (2, 1)))
register("UnboundedActions", action=box([-np.inf], [1.0]))
register("DiscreteActions", action=Discrete(3))
register("FirstActionFive", action=Discrete(3, start=5))
register("ByteActions", action=Discrete(3, dtype=np.uint8))
register("Bytes", observation=Box(np.array([-128, 0, 5]), np.array([127, 1, 5]), dtype=np.int8))
register("Broken", no_such_option=None)


class Mortal(gym.Wrapper):
    """CartPole, whose process is killed at the 400th step unless the file MORTAL is there, and
    leaves queues locked, as if it had been writing to them."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 400 and not Path(os.environ["MORTAL"]).exists():
            Path(os.environ["MORTAL"]).touch()
            for x in gc.get_objects():
                if isinstance(x, Queue):
                    x._wlock.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("HelpedDiscrete-v0", lambda: Helped(Discrete(2)), max_episode_steps=20)
gym.register("Grey-v0", Grey, max_episode_steps=20)
gym.register("Draws-v0", lambda: Noisy(Draws()), max_episode_steps=20)
gym.register("Mortal-v0", lambda: Mortal(gym.make("CartPole-v1")))
