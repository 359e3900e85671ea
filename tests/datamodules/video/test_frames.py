import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torchvision.io import encode_jpeg

from datamodules.video.decode import VideoReader
from datamodules.video.frames import FrameFolder, open_video
from datamodules.video.opening import DecodeError
from datamodules.video.views import load_views

SIZE = (48, 80)


def jpeg(number):
    """A grey picture of brightness 10 * number."""
    return encode_jpeg(torch.full((3, *SIZE), 10 * number, dtype=torch.uint8)).numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    """Pictures 1 .. 12, and files that are none."""
    for number in range(1, 13):
        (tmp_path / f"img_{number:05d}.jpg").write_bytes(jpeg(number))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cover.jpg").write_bytes(jpeg(20))
    return tmp_path


def numbers(frames):
    return (frames.float().mean(dim=(1, 2, 3)) / 10).round().int().tolist()


def test_positions(folder):
    with open_video(folder) as reader:
        assert isinstance(reader, FrameFolder) and len(reader) == reader.num_frames == 12
        assert reader.pts_seconds[:3].tolist() == [0, 1 / 25, 2 / 25]
        frames = reader.read([11, 0, 5, 5])
        assert frames.shape == (4, 3, *SIZE) and frames.dtype == torch.uint8
        assert numbers(frames) == [12, 1, 6, 6]
        assert reader.read([3], short_side=24).shape == (1, 3, 24, 40)
        with pytest.raises(IndexError, match=r"has 12 frames: positions have to be in 0 .. 11, got 0 .. 12"):
            reader.read([0, 12])


def test_numbers_need_no_leading_zeros(tmp_path):
    for number in (3, 9, 10, 11):
        (tmp_path / f"frame{number}.jpg").write_bytes(jpeg(number))
    assert numbers(FrameFolder(tmp_path).read(np.arange(4))) == [3, 9, 10, 11]


def test_views(folder):
    views = load_views(folder, num_frames=4, image_size=32, short_side=32, sampling="ssv2", num_clips=2, num_crops=3)
    assert views.video.shape == (6, 3, 4, 32, 32)
    assert views.indices.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10]]
    assert numbers(views.video[0].transpose(0, 1)) == [1, 4, 7, 10]


def test_choice_of_the_reader(folder):
    with open_video(folder / "cover.jpg") as reader:
        assert isinstance(reader, VideoReader)
    filesystem = MemoryFileSystem()
    for name in ("img_00001.jpg", "img_00002.jpg"):
        filesystem.pipe_file(f"/frames/78687/{name}", (folder / name).read_bytes())
    with open_video("memory://frames/78687") as reader:
        assert isinstance(reader, FrameFolder) and numbers(reader.read([1, 0])) == [2, 1]
    filesystem.rm("/frames", recursive=True)


def test_errors(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", "memory://none/78687"):
        with pytest.raises(DecodeError, match=f"^{path} is not a video file, and no folder of numbered frames"):
            open_video(path)
    (folder / "img_00002.jpg").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"img_00002\.jpg cannot be opened"):
        FrameFolder(folder).read([1])
    (folder / "img_00002.jpg").write_bytes(encode_jpeg(torch.zeros(3, 40, 48, dtype=torch.uint8)).numpy().tobytes())
    with pytest.raises(DecodeError, match=r"frames of different sizes \(80 x 48 and 48 x 40\)"):
        FrameFolder(folder).read([0, 1, 2])
