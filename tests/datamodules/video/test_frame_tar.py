"""Frames of kitchen videos in tars and folders, and their times."""

import tarfile

import numpy as np
import pytest
import torch
from torchvision.io import write_jpeg

from datamodules.video.frame_tar import FrameTar, frame_rate, open_frames
from datamodules.video.opening import DecodeError
from datamodules.video.sampling import range_in


def test_frame_numbers_of_the_annotations():
    """At 60 frames a second (50 of later videos), floor(t * rate) and at least 1, they are the pictures of the span."""
    assert [frame_rate(name) for name in ("P01_11", "P37_101", "P01_01", "P10_100")] == [60, 50, 60, 50]
    for rate, start, stop, first, last in ((60, 0.0, 1.89, 1, 113), (60, 1.56, 2.45, 93, 147), (50, 1.2, 2.8, 60, 140)):
        shown = (np.arange(400) + 1) / rate  # picture k at k / rate
        found = range_in(shown, (start, stop))
        assert (found[0] + 1, found[1] + 1) == (first, last)


def test_frames_of_a_tar_are_those_of_the_folder(tmp_path):
    folder, tar = tmp_path / "P02_101", tmp_path / "P02_101.tar"
    folder.mkdir()
    for number in range(1, 126):
        picture = torch.full((3, 48, 48), 2 * number, dtype=torch.uint8)
        write_jpeg(picture, str(folder / f"frame_{number:010d}.jpg"), quality=98)
    with tarfile.open(tar, "w") as archive:
        for picture in sorted(folder.iterdir(), reverse=True):  # in any order
            archive.add(picture, arcname=f"./{picture.name}")
    with FrameTar(str(tar), fps=50) as packed, open_frames(str(folder)) as loose:
        assert packed.num_frames == loose.num_frames == 125
        wanted = [7, 3, 3, 124]
        a, b = (reader.read(wanted, short_side=40) for reader in (packed, loose))
        assert a.shape == b.shape == (4, 3, 40, 40) and torch.equal(a[1], a[2])
        assert torch.equal(a, b)
        assert loose.pts_seconds[0] == pytest.approx(0.02)  # picture 1 at 1 / 50
        for reader, position in ((packed, 125), (loose, 125), (packed, -1)):
            with pytest.raises(IndexError, match=rf"has 125 frames: .* got {position} \.\. {position}"):
                reader.read([position])
    broken = tmp_path / "P03_01.tar"
    broken.write_bytes(b"x" * 2000)
    with pytest.raises(DecodeError, match=r"P03_01\.tar is not a tar of frames"):
        FrameTar(str(broken), fps=60)
