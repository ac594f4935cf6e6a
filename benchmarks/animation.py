"""Make a GIF of two videos side by side, such as before and after training:

    python ddpg_continuous.py --env-id LunarLanderContinuous-v3 --total-timesteps 300000 \\
        --capture-video --run-dir runs/lander
    python benchmarks/animation.py runs/lander/videos/{before,after}*.mp4 lander.gif
"""

import sys
from itertools import zip_longest

import imageio.v3 as iio
import numpy as np
from PIL import Image

HEIGHT, SKIP, MOST = 150, 4, 75  # pixels, frames left out between two, frames kept


def frames(path: str) -> list[Image.Image]:
    """Return every few frames of a video, made smaller."""
    pictures = [Image.fromarray(frame) for frame in iio.imread(path)[::SKIP][:MOST]]
    width = pictures[0].width * HEIGHT // pictures[0].height
    return [picture.resize((width, HEIGHT)) for picture in pictures]


def main() -> None:
    """Put them beside each other; the shorter one stays at its last frame."""
    left, right, out = sys.argv[1:]
    pairs = zip_longest(left := frames(left), right := frames(right))
    both = [np.hstack((a or left[-1], b or right[-1])) for a, b in pairs]
    images = [Image.fromarray(pair).quantize(32) for pair in both]
    images[0].save(out, save_all=True, append_images=images[1:], duration=80, loop=0)


if __name__ == "__main__":
    main()
