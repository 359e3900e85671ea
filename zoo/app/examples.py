"""Clips to try the shipped model on, generated when the page is built; nothing is downloaded."""

from pathlib import Path

import numpy as np

from datamodules.synthetic.motion import CLASSES, clip_spec, render
from datamodules.synthetic.writing import write_video

__all__ = ["CLASSES", "write_examples"]

SIZE, FPS = (256, 192), 12
SHORT = ("move_left", "grow", "turn_clockwise")
LONG = ("move_up", "shrink", "move_right", "turn_counterclockwise")


def write_examples(folder: Path) -> list[Path]:
    """Write three clips of 2 s with one motion each, and one of 24 s with four; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, motion in enumerate(SHORT):
        files.append(folder / f"{motion}.mp4")
        write_video(files[-1], render(clip_spec(7, "test", number, motion, size=SIZE, fps=FPS)), FPS)
    scenes = [clip_spec(7, "test", 90 + i, motion, size=SIZE, fps=FPS, num_frames=24) for i, motion in enumerate(LONG)]
    files.append(folder / "four_motions.mp4")
    write_video(files[-1], np.concatenate([np.tile(render(scene), (3, 1, 1, 1)) for scene in scenes]), FPS)
    return files
