"""Re-encode videos at a smaller size, as large collections are stored."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from datamodules.storage.processes import cpu_info
from datamodules.video.decode import VideoReader
from datamodules.video.frames import open_video
from datamodules.video.opening import DecodeError
from datamodules.video.reader import Reader

__all__ = ["reencode"]

_COLOUR_TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")
_KEY_FRAME_SECONDS = 2  # a reader of single frames decodes from the key frame before each


def reencode(path: str | os.PathLike[str], short_side: int, *, crf: int = 23) -> bytes | None:
    """The video as H.264 in MP4, without sound, with its own time stamps.

    It is stored as it is shown (a rotation is carried out). A folder of frames becomes a video too.

    Args:
        path: a file, URL, member of a shard, or folder of frames.
        short_side: length in pixels of the shorter side, made even.
        crf: x264's constant rate factor, 0 (lossless) .. 51; 23 is its own choice.

    Returns:
        The file; None if the video is a file that is no larger than that already.

    Raises:
        DecodeError: the video cannot be read, or fewer than half of its frames.
    """
    path, out, written = os.fspath(path), io.BytesIO(), 0
    with open_video(path) as reader:
        fps, expected, clockwise = reader.fps, reader.num_frames, 0
        if isinstance(reader, VideoReader):
            if min(reader.width, reader.height) <= short_side:
                return None
            clockwise, frames = reader.rotation, _decoded(reader)
        else:
            frames = _pictures(reader)
        try:
            with av.open(out, "w", format="mp4") as target:
                stream = None
                for frame in frames:
                    if clockwise:
                        frame = _turned(frame, clockwise)
                    stream = stream or _stream(target, frame, short_side, fps, crf)
                    small = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
                    small.pict_type = 0  # the encoder chooses key frames of its own
                    target.mux(stream.encode(small))
                    written += 1
                if stream is not None:
                    target.mux(stream.encode())
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DecodeError(f"{path} cannot be re-encoded ({reason}); leave out the short side.") from error
    if 2 * written < expected:
        raise DecodeError(f"{path} is damaged: {written} of its {expected} frames can be decoded; copy or download it "
                          "again.")  # fmt: skip
    return out.getvalue()


def _stream(
    target: av.container.OutputContainer, frame: av.VideoFrame, short_side: int, fps: float, crf: int
) -> av.VideoStream:
    scale = min(short_side / min(frame.width, frame.height), 1)
    options = {"crf": str(crf), "preset": "medium", "g": str(max(round(_KEY_FRAME_SECONDS * fps), 1)), **_repeatable()}
    stream = target.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.width, stream.height = (max(round(side * scale / 2) * 2, 2) for side in (frame.width, frame.height))
    stream.pix_fmt = "yuv420p"
    assert frame.time_base is not None  # set with the time stamp
    stream.codec_context.time_base = frame.time_base
    for tag in _COLOUR_TAGS:  # the planes are scaled as they are; what they mean has to come along
        setattr(stream.codec_context, tag, getattr(frame, tag))
    stream.codec_context.thread_count = 1  # several files at once make better use of the cores
    return stream


def _repeatable() -> dict[str, str]:
    """Options with which x264 makes the same bytes of the same frames, as interrupted shards need it.

    Its code for AVX-512 does not. Without it, it takes as long.
    """
    return {"x264-params": "asm=avx2"} if "avx512" in cpu_info() else {}


def _decoded(reader: VideoReader) -> Iterator[av.VideoFrame]:
    """The frames that can be decoded, each with a time stamp behind that of the one before."""
    last, step = None, max(round(1 / (reader.fps * reader.time_base)), 1)
    for frame in reader.decode_all():
        if frame.pts is None:
            frame.pts = 0 if last is None else last + step
        if last is None or frame.pts > last:
            last, frame.time_base = frame.pts, reader.time_base
            yield frame


def _pictures(reader: Reader) -> Iterator[av.VideoFrame]:
    for number in range(reader.num_frames):
        frame = _from_rgb(reader.read([number])[0].permute(1, 2, 0).numpy())
        frame.pts, frame.time_base = number, Fraction(1 / reader.fps).limit_denominator(100_000)
        yield frame


def _turned(frame: av.VideoFrame, clockwise: int) -> av.VideoFrame:
    turned = _from_rgb(np.rot90(frame.to_ndarray(format="rgb24"), -clockwise // 90))
    turned.pts, turned.time_base = frame.pts, frame.time_base
    return turned


def _from_rgb(picture: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
