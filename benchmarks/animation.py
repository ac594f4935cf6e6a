"""Make a GIF of two videos side by side, such as of the random agent and of a trained one:

python random_baseline.py --env-id CartPole-v1 --capture-video --run-dir runs/random
python a3c_cartpole.py --capture-video --run-dir runs/a3c
python benchmarks/animation.py runs/{random,a3c}/videos/rl-video-episode-0.mp4 a3c.gif
"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import imageio.v3 as iio
import numpy as np
import tyro
from PIL import Image


@dataclass(frozen=True)
class Args:
    """The command line."""

    left: Annotated[Path, tyro.conf.Positional]  # video
    right: Annotated[Path, tyro.conf.Positional]  # video
    out: Annotated[Path, tyro.conf.Positional]  # GIF
    height: int = 150  # pixels
    skip: int = 4  # every which frame is kept
    most: int = 75  # frames kept
    colors: int = 32


def frames(path: Path, args: Args) -> list[Image.Image]:
    """Return every few frames of a video, made smaller."""
    pictures = [Image.fromarray(frame) for frame in iio.imread(path)[:: args.skip][: args.most]]
    width = pictures[0].width * args.height // pictures[0].height
    return [picture.resize((width, args.height)) for picture in pictures]


def main() -> None:
    """Put them beside each other; the shorter one stays at its last frame."""
    args = tyro.cli(Args, description=__doc__)
    left, right = frames(args.left, args), frames(args.right, args)
    both = [np.hstack((a or left[-1], b or right[-1])) for a, b in zip_longest(left, right)]
    images = [Image.fromarray(pair).quantize(args.colors) for pair in both]
    images[0].save(args.out, save_all=True, append_images=images[1:], duration=80, loop=0)


if __name__ == "__main__":
    main()
