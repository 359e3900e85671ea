"""Frames of kitchen videos, as EPIC-KITCHENS-100 ships them: a tar or a folder of pictures, or the video file.

The frame numbers of its annotations suppose 60 (or 50) frames per second, which the video files do not have.
"""

import io
import re
import tarfile
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.storage.files import RemoteFile, is_url
from datamodules.storage.members import open_tar
from datamodules.video.frames import NUMBERED, FrameFolder, NumberedFrames, open_video
from datamodules.video.opening import DecodeError, check_size, open_container
from datamodules.video.pixels import Painter
from datamodules.video.reader import Reader

__all__ = ["FrameTar", "frame_rate", "open_frames"]


def frame_rate(video_id: str) -> int:
    """Frames per second of the annotations and the extracted frames.

    It is 60, or 50 for the videos added later, whose number has three digits (P01_101).
    """
    return 50 if re.fullmatch(r"P\d+_\d{3}", video_id) else 60


class FrameTar(NumberedFrames):
    """Frames of one video as pictures in a tar, as EPIC-KITCHENS ships them.

    The list of the tar's members is kept for the next reader.

    Args:
        path: the tar, not compressed; local or a URL.
        fps: frames per second, which the pictures do not tell.

    Raises:
        DecodeError: the file is missing, is not such a tar, or has no numbered pictures.
    """

    def __init__(self, path: str, *, fps: float) -> None:
        self._places = _tar_index(path)
        super().__init__(path, len(self._places), fps)

    def _pictures(self, positions: list[int], short_side: int | None, interpolation: str) -> list[Tensor]:
        pictures = []
        with _open_binary(self.path) as file:
            for offset, size in self._places[positions].tolist():
                file.seek(offset)
                try:
                    with open_container(io.BytesIO(file.read(size))) as container:
                        frame = next(container.decode(video=0))
                    painter = Painter(frame.width, frame.height, short_side=short_side, interpolation=interpolation)
                    check_size(self.path, *painter.size[::-1])
                    pictures.append(painter.paint(frame).permute(2, 0, 1))
                except (av.FFmpegError, StopIteration, IndexError, OSError) as error:
                    raise DecodeError(f"{self.path} has a frame that cannot be decoded; download it again.") from error
        return pictures


def _open_binary(path: str) -> RemoteFile | BufferedReader:
    try:
        return RemoteFile(path) if is_url(path) else open(path, "rb")
    except OSError as error:
        raise DecodeError(f"{path} cannot be read ({error.strerror}); check the path.") from error


@lru_cache(maxsize=32)
def _tar_index(path: str) -> NDArray[np.int64]:
    """Return offset and size of the numbered pictures, int64 (n, 2), sorted by number."""
    found = []
    with _open_binary(path) as file:
        try:
            with open_tar(file) as archive:
                for member in archive:
                    match = NUMBERED.fullmatch(member.name.rpartition("/")[2])
                    if match and member.isreg() and not member.issparse():
                        found.append((int(match[1]), member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise DecodeError(f"{path} is not a tar of frames ({error}); download it again.") from error
    if not found:
        raise DecodeError(f"{path} has no numbered frames (frame_0000000001.jpg, ...); take another file.")
    return np.array(sorted(found), dtype=np.int64)[:, 1:]


def open_frames(path: str, *, decoder: str = "pyav") -> Reader:
    """The reader of a video's frames, with their times; `decoder` as for `datamodules.video.frames.open_video`."""
    video_id, suffix = Path(path).stem, Path(path).suffix
    reader: NumberedFrames
    if suffix.lower() == ".tar":
        reader = FrameTar(path, fps=frame_rate(video_id))
    elif suffix:
        return open_video(path, decoder=decoder)
    else:
        reader = FrameFolder(path, fps=frame_rate(Path(path).name))
    # The annotations' frame numbers are floor(t * fps), at least 1, and the first picture is number 1.
    reader.pts_seconds = reader.pts_seconds + 1 / reader.fps
    return reader
