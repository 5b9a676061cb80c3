"""Train the scripts, film their final policies, and make GIFs of the films for the pages.

    python benchmarks/films.py --atari runs/FOLDER      # of a run of ppo_atari.py that was trained before

Each script has its defaults. figures/film_SCRIPT.gif is its film, figures/policies.gif has three in a column.
"""

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
from moviepy import VideoFileClip
from PIL import Image, ImageOps
from tqdm import tqdm

SCRIPTS = ("reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ppo_atari", "ddpg", "td3", "sac")
TOGETHER = ("ppo_atari", "ppo", "td3")
SECONDS, FPS, COLOURS, HEIGHT, MOST = 8, 15, 32, 210, 500  # of a film; most kB of a GIF
PLAY = "--eval-episodes 1 --capture-video --seed 4"  # by 4, Pendulum begins at the bottom


@dataclass
class Args:
    scripts: tuple[str, ...] = SCRIPTS  # make films of these
    atari: Path | None = None  # folder of a trained run of ppo_atari.py; none: no film of that
    out: Path = common.FIGURES  # folder of the GIFs


def run(folder, script, flags):
    """Run a script there -> the folder that it names in its last line."""
    command = [sys.executable, str(common.ROOT / f"{script}.py"), *shlex.split(flags)]
    if common.start(command, folder).wait():
        common.fail(f"{script}.py {flags}: {common.last_line(folder, 'stderr')}", status=1)
    return common.parse_last_line(common.last_line(folder, "stdout"))["folder"]


def frames_of(script, args):
    """Pictures of a film of the final policy, all of one height."""
    with tempfile.TemporaryDirectory() as folder:
        trained = args.atari.resolve() if script == "ppo_atari" else run(folder, script, "--eval-episodes 0")
        played = Path(folder, run(folder, script, f"--evaluate {trained} {PLAY}"))
        path = max(played.rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
        start = 3 if script == "ppo_atari" else 0  # before the first ball
        with VideoFileClip(str(path)) as film:
            clip = film.subclipped(start, min(film.duration, start + SECONDS))
            frames = [Image.fromarray(frame) for frame in clip.iter_frames(fps=FPS)]
    return [frame.resize((round(frame.width * HEIGHT / frame.height), HEIGHT)) for frame in frames]


def stacked(films):
    """One film of several, one above the other, as long as the shortest."""
    size = max(film[0].width for film in films), HEIGHT
    for frames in zip(*films, strict=False):
        yield Image.fromarray(np.vstack([ImageOps.pad(frame, size, color="white") for frame in frames]))


def write(frames, path):
    """Write a GIF; one palette for all frames, so that only what moves has to be stored."""
    palette = frames[len(frames) // 2].quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=1000 // FPS, loop=0, optimize=True)
    if path.stat().st_size > MOST * 1000:
        common.fail(f"{path} has more than {MOST} kB", status=1)


def main(args):
    chosen = [script for script in args.scripts if script != "ppo_atari" or args.atari]
    films = {script: frames_of(script, args) for script in tqdm(chosen, unit="film")}
    for script, frames in films.items():
        write(frames, args.out / f"film_{script}.gif")
    if films.keys() >= set(TOGETHER):
        write([*stacked([films[script] for script in TOGETHER])], args.out / "policies.gif")


if __name__ == "__main__":
    main(common.parse_args(Args, __doc__, sys.argv[1:]))
