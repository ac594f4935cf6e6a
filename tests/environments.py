"""Small environments for the tests, by `--env-id tests.environments:NAME`."""

import functools
import itertools
import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Counter(gym.Env):
    """Counts its steps; terminates after `length` of them, the first time or always, or never.
    Rewards are `reward`."""

    def __init__(
        self,
        length=None,
        reward=1.0,
        low=(-1.0,),
        high=(1.0,),
        observation=None,
        action=None,
        nan_at=None,
        once=False,
    ):
        self.length, self.reward, self.nan_at, self.once = length, reward, nan_at, once
        self.observation_space = observation or Box(-np.inf, np.inf, (2,), np.float64)
        bounds = np.array(low, np.float32), np.array(high, np.float32)
        self.action_space = action or Box(*bounds, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.actions = 0, []
        self.observation = np.array([0.0, self.np_random.uniform()])
        return self.observation, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.actions.append(action)
        reward = self.reward(self.steps) if callable(self.reward) else self.reward
        terminated = self.steps == self.length
        if terminated and self.once:
            self.length = None
        first = np.nan if self.steps == self.nan_at else self.steps
        self.observation[:] = first, self.np_random.uniform()  # the same array at each step
        return self.observation, reward, terminated, False, {}


_rewards = itertools.count()


def raise_after(rewards, error, step):
    """Return a reward; after that many of them, in this process, raise an error."""
    if next(_rewards) > rewards:
        raise error
    return 1.0


def _register(name, max_episode_steps, **kwargs):
    gym.register(
        f"{name}-v0",
        lambda: Counter(**kwargs),
        max_episode_steps=max_episode_steps,
        order_enforce=0,
    )


_register("Terminates", 100, length=7)
_register("Truncates", 7)
_register("NeverEnds", None)
_register("Asymmetric", 20, low=[-3.0, 0.0, 2.0, -0.3], high=[1.0, 10.0, 2.5, 0.9])
_register("MatrixActions", 10, low=[[-1.0], [-1.0]], high=[[1.0], [1.0]])
for error in (RuntimeError("the environment broke"), SystemExit(0)):
    _register(
        f"{type(error).__name__}AfterAWhile",
        50,
        reward=functools.partial(raise_after, 500, error),
        action=Discrete(2),
    )
gym.register("Broken-v0", "tests.environments:Counter", kwargs={"low": None})
_register("NanReward", 30, reward=lambda step: np.nan if step == 20 else 1.0)
_register("NanObservation", 30, nan_at=20)
_register("NanObservationDiscrete", 30, nan_at=20, action=Discrete(2))
_register("DiscreteActions", 10, action=Discrete(3))
_register("UnboundedActions", 10, low=[-np.inf], high=[1.0])
_register("DictObservations", 10, observation=Dict(x=Box(0, 1)))
_register("ImageObservations", 10, observation=Box(0, 255, (8, 8, 3), np.uint8))
_register("FirstActionFive", 100, length=7, action=Discrete(3, start=5))
_register("TerminatesDiscrete", 100, length=7, action=Discrete(3))
_register("EndsOnce", None, length=7, once=True, action=Discrete(3))
_register("TruncatesDiscrete", 7, action=Discrete(3))
_register(
    "NanRewardDiscrete", 30, reward=lambda step: np.nan if step == 20 else 1.0, action=Discrete(2)
)
_register(
    "Bytes", 10, observation=Box(np.array([-128, 0, 5]), np.array([127, 1, 5]), dtype=np.int8)
)


class Mortal(gym.Wrapper):
    """CartPole, whose process is killed at the 400th step unless the file MORTAL is there."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 400 and not Path(os.environ["MORTAL"]).exists():
            Path(os.environ["MORTAL"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("Mortal-v0", lambda: Mortal(gym.make("CartPole-v1")))
