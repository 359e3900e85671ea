"""Small real video files whose frames carry their own number, so that it can be read back after lossy coding."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from datamodules.synthetic import motion as synthetic
from datamodules.synthetic import writing

BITS = 10


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3): ten bars, black or white, spell the number in binary over a moving grey gradient."""
    frame = np.empty((height, width, 3), dtype=np.uint8)
    frame[:] = (np.arange(width) * 2 + number * 3)[None, :, None] % 256
    bar = width // BITS
    for bit in range(BITS):
        frame[: height // 2, bit * bar : (bit + 1) * bar] = 255 * (number >> bit & 1)
    return frame


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a loader worker: small images take longer with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def read_number() -> Callable[[torch.Tensor], int]:
    """Number of a decoded frame, uint8 (3, H, W) of the size it was written in."""

    def read(frame: torch.Tensor) -> int:
        height, width = frame.shape[-2:]
        bar = width // BITS
        middles = [frame[:, height // 4, bit * bar + bar // 2].float().mean() > 127 for bit in range(BITS)]
        return sum(int(on) << bit for bit, on in enumerate(middles))

    return read


def write_video(
    path: Path,
    num_frames: int = 20,
    *,
    width: int = 80,
    height: int = 48,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 90000),
    fps: int = 30,
    rotation: int | None = None,
    container_options: dict[str, str] | None = None,
    frame_at: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Writes numbered frames; `pts` in units of `time_base` makes the frame rate variable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if pts is not None:
            stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            array = frame_at(number) if frame_at else numbered_frame(number, width, height)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_silence(path: Path) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def full_decode(path: Path) -> torch.Tensor:
    """All frames as PyAV gives them, one after the other, uint8 (N, 3, H, W)."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def make_silence() -> Callable[[Path], Path]:
    return write_silence


@pytest.fixture
def decode_fully() -> Callable[[Path], torch.Tensor]:
    return full_decode


@pytest.fixture(scope="session")
def class_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,val}/{left,right}/*.mp4, with 4 + 2 videos per class."""
    root = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 4), ("val", 2)):
        for name in ("left", "right"):
            for number in range(count):
                write_video(root / split / name / f"{number}.mp4", 6 + number, options={"bf": "1"})
    return root


@pytest.fixture(scope="session")
def captioned_clips(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, tuple[str, ...]]]:
    """Eight generated videos of 2 to 4 seconds at 4 frames a second, each with three captions."""
    folder, clips = tmp_path_factory.mktemp("captioned"), []
    for number, motion in enumerate(synthetic.CLASSES):
        spec = synthetic.sample_spec(np.random.default_rng(number), motion)
        path = folder / f"{number}.mp4"
        writing.write_video(path, synthetic.render(spec)[: 8 + number], 4)
        clips.append((path, spec.captions))
    return clips
