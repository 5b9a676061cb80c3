"""A film that --capture-video made, as a GIF for a page.

python benchmarks/gif.py runs/FOLDER/video/rl-video-episode-0.mp4 benchmarks/figures/pong.gif --start 5
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import common
import tyro
from moviepy import VideoFileClip
from PIL import Image


@dataclass
class Args:
    film: tyro.conf.Positional[Path]  # what --capture-video wrote
    out: tyro.conf.Positional[Path]  # the GIF
    start: float = 0.0  # seconds of the film to leave out at its beginning
    seconds: float = 10.0  # length of the GIF
    fps: int = 15  # pictures a second
    width: int = 0  # pixels; 0 for the film's own
    colours: int = 32  # in the palette
    most: int = 500  # the largest size, in kB


def main(args):
    """Write the GIF; end with an error if it is too large."""
    with VideoFileClip(str(args.film)) as film:
        clip = film.subclipped(args.start, min(film.duration, args.start + args.seconds))
        frames = [Image.fromarray(frame) for frame in clip.iter_frames(fps=args.fps)]
    if args.width:
        height = round(frames[0].height * args.width / frames[0].width)
        frames = [frame.resize((args.width, height)) for frame in frames]
    # One palette for all frames: then only what moves has to be stored.
    palette = frames[len(frames) // 2].quantize(args.colours)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(args.out, save_all=True, append_images=others, duration=1000 // args.fps, loop=0, optimize=True)
    size = args.out.stat().st_size / 1000
    print(f"{args.out}: {len(frames)} pictures, {size:.0f} kB")
    if size > args.most:
        common.fail(
            f"{args.out} has more than {args.most} kB: give fewer --seconds, --fps, --colours or a smaller --width"
        )


if __name__ == "__main__":
    main(common.parse_args(Args, __doc__, sys.argv[1:]))
