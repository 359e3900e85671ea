"""The extra decoder; most of this runs only where torchcodec and FFmpeg are installed."""

import sys

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from datamodules import DecodeError, VideoFolder, VideoReader
from datamodules.errors import DataError
from datamodules.video.frames import open_video
from datamodules.video.torchcodec_reader import TorchCodecReader
from datamodules.video.views import load_views

FORMAT = {"num_frames": 4, "image_size": 32, "short_side": 40, "sampling": "sparse", "frame_stride": 2,
          "interpolation": "bilinear"}  # fmt: skip


@pytest.fixture
def torchcodec():
    try:
        import torchcodec.decoders
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec cannot be loaded: {str(error).splitlines()[0]}")
    return torchcodec


@pytest.mark.parametrize(("suffix", "options"), [
    (".mp4", {"options": {"bf": "3", "g": "12"}}),
    (".webm", {"codec": "libvpx-vp9", "options": {"g": "10"}}),
    (".avi", {"codec": "mpeg4", "options": {"g": "10"}}),
])  # fmt: skip
def test_reads_the_same_frames(torchcodec, tmp_path, make_video, suffix, options):
    path = make_video(tmp_path / f"v{suffix}", 40, width=96, height=64, **options)
    with VideoReader(path) as ours, open_video(path, decoder="torchcodec") as reader:
        assert isinstance(reader, TorchCodecReader)
        assert (len(reader), reader.width, reader.height) == (40, 96, 64)
        assert reader.fps == pytest.approx(30, rel=1e-3)  # Matroska has milliseconds
        np.testing.assert_allclose(reader.pts_seconds, ours.pts_seconds)
        for indices in ([39, 3, 3, 20], range(40)):
            # The libraries turn YUV into RGB each in their own way, a level apart.
            assert (reader.read(indices).int() - ours.read(indices).int()).abs().max() <= 2
        assert reader.read([0], short_side=40).shape == (1, 3, 40, 60)
        with pytest.raises(IndexError, match="has 40 frames"):
            reader.read([40])


def test_views_and_batches(torchcodec, class_root, tmp_path):
    path = class_root / "train" / "left" / "0.mp4"
    views = load_views(path, **FORMAT, num_clips=2, num_crops=3, decoder="torchcodec")
    expected = load_views(path, **FORMAT, num_clips=2, num_crops=3)
    assert (views.video.int() - expected.video.int()).abs().max() <= 2 and (views.seconds == expected.seconds).all()
    batches = []
    for decoder in ("pyav", "torchcodec"):
        data = VideoFolder(class_root, **FORMAT, batch_size=8, num_workers=0, decoder=decoder)
        data.setup("fit")
        batches.append(next(iter(data.val_dataloader()))["video"])
    assert (batches[0].int() - batches[1].int()).abs().max() <= 2


def test_urls_and_still_images(torchcodec, tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 12)
    MemoryFileSystem().pipe_file("/torchcodec/v.mp4", path.read_bytes())
    with TorchCodecReader("memory://torchcodec/v.mp4") as remote, TorchCodecReader(path) as local:
        assert torch.equal(remote.read([11, 2]), local.read([11, 2]))
    Image.new("RGB", (60, 40)).save(tmp_path / "still.png")
    assert isinstance(open_video(tmp_path / "still.png", decoder="torchcodec"), VideoReader)


def test_files_at_fault(torchcodec, tmp_path, make_video):
    text = tmp_path / "text.mp4"
    text.write_text("no video here " * 200)
    cut = make_video(tmp_path / "cut.mp4", 40)
    cut.write_bytes(cut.read_bytes()[:1000])
    for path in (text, cut, tmp_path / "none.mp4"):
        with pytest.raises(DecodeError) as caught, TorchCodecReader(path) as reader:
            reader.read(range(len(reader)))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_is_asked_for_in_vain(torchcodec):
    with pytest.raises(DataError, match=r"needs an NVIDIA GPU, and there is none; set decoder: torchcodec\.$"):
        load_views("a.mp4", **FORMAT, decoder="torchcodec-cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_reads_the_same_frames(torchcodec, tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 40, width=320, height=256)
    with VideoReader(path) as ours, open_video(path, decoder="torchcodec-cuda") as reader:
        frames = reader.read([30, 2], short_side=128)
        assert frames.device.type == "cpu"
        assert (frames.float() - ours.read([30, 2], short_side=128)).abs().mean() < 2


def test_without_torchcodec(monkeypatch, class_root):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # what import sees of a package that is not there
    monkeypatch.delitem(sys.modules, "torchcodec.decoders", raising=False)
    sentence = (
        r"The decoder torchcodec cannot be loaded .*; install video-mamba-zoo\[torchcodec\] and FFmpeg, or set deco"
    )
    with pytest.raises(DataError, match=sentence):
        load_views(class_root / "train" / "left" / "0.mp4", **FORMAT, decoder="torchcodec")
    data = VideoFolder(class_root, **FORMAT, decoder="torchcodec")
    with pytest.raises(DataError, match=sentence):  # before any worker starts
        data.setup("fit")
    with pytest.raises(DataError, match="decoder is 'x264'; it has to be one of pyav, torchcodec, torchcodec-cuda"):
        VideoFolder(class_root, **FORMAT, decoder="x264").setup("fit")


def test_a_file_is_neither_address_nor_description(torchcodec, tmp_path, make_video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "secret.mp4", 7)
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DecodeError, match=r"x\.mp4 cannot be read by torchcodec"):
        open_video("x.mp4", decoder="torchcodec")
    make_video(tmp_path / "own.mp4", 3)
    (tmp_path / "own.mp4").rename(tmp_path / "concat:secret.mp4")
    with open_video("concat:secret.mp4", decoder="torchcodec") as reader:
        assert len(reader) == 3
