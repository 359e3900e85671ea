"""Opening files of video: on disks, behind URLs and in shards, without what a hostile file could do at opening."""

import io
import logging
import os
from typing import TypeAlias

import av
from typing_extensions import override

from datamodules.storage.files import File, RemoteFile, is_url
from datamodules.storage.members import as_member, open_member

__all__ = [
    "CONTAINERS",
    "MAX_PIXELS",
    "DecodeError",
    "Identity",
    "check_size",
    "identity",
    "length_of",
    "open_container",
    "open_file",
]

CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "mjpeg", "ivf", "ogg",
              "asf", "flv", "gif", "jpeg_pipe", "png_pipe", "apng", "webp_pipe", "bmp_pipe")  # fmt: skip
"""libav's names of the formats that are read, which hold their pictures themselves. Others are texts (SDP, HLS, DASH,
concat) that make libav listen to the network, or read any file or address they name."""

# What matters in libav's log is raised as well; Python prints it where nobody handles it.
logging.getLogger("libav").addHandler(logging.NullHandler())

MAX_PIXELS = 2**26
"""Largest frame accepted, in pixels (8192 x 8192): a damaged header must not ask for terabytes."""


Identity: TypeAlias = tuple[str | int, ...]
"""What distinguishes a file from one that replaced it: its path, its length, and where it is known its time."""


class DecodeError(RuntimeError):
    """A file cannot be read as video; the message is one sentence with the file's name and the remedy."""


class _Nameless:
    """A file without its name, since libav guesses formats, image sequences and protocols from names."""

    def __init__(self, file: File) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def seekable(self) -> bool:
        return True


def check_size(path: str, width: int, height: int) -> None:
    """Raise `DecodeError` for frames, as they are or resized, of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"{path} asks for frames of {width} x {height} pixels, above the limit of {MAX_PIXELS} pixels; its header "
            "is damaged or it has to be scaled down first."
        )


def open_container(
    file: File, *, format: str | None = None, options: dict[str, str] | None = None
) -> av.container.InputContainer:
    """libav's reader of an open file, which sees that file only: no other file and no network.

    Args:
        format: one of `CONTAINERS`; None finds it out.
        options: more options of libav.

    Raises:
        av.FFmpegError: it is damaged, or not of one of `CONTAINERS`.
    """
    # `max_pixels` also guards what libav decodes while it probes. Files that name others find no protocol to open them.
    limits = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
    options = {**limits, **(options or {})}
    return av.open(_Nameless(file), mode="r", format=format, metadata_errors="replace", options=options)


def open_file(path: str) -> File:
    """A local file, one behind a URL, or one in a shard, for reading.

    Raises:
        DecodeError: it is missing, empty, a folder, or cannot be read.
    """
    member = as_member(path)
    if member is not None and member.size == 0:
        raise DecodeError(f"{path} is empty (0 bytes); write the shard again.")
    file: File
    try:
        if member is not None:
            remedy = "copy the shard again"
            file = open_member(member)
        elif is_url(path):
            remedy = "check your access and the connection"
            file = _Url(path)
        else:
            remedy = "check its permissions"
            file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (closed by the reader)
        is_plain = member is None and not is_url(path)
        num_bytes = os.fstat(file.fileno()).st_size if is_plain else length_of(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = "" if member is None else ", as there is no such shard"
        raise DecodeError(f"{path} does not exist{reason}; check the path.") from error
    except IsADirectoryError as error:
        raise DecodeError(f"{path} is a folder, not a video file; give the path of one file.") from error
    except OSError as error:
        raise DecodeError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error
    if num_bytes == 0:
        file.close()
        raise DecodeError(f"{path} is empty (0 bytes); copy or download it again.")
    return file


def _without_waiting(path: str, flags: int) -> int:
    """A named pipe among the videos must not wait for somebody to write into it: it counts as empty."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Url(RemoteFile):
    """A lost connection must not look like the end of the file, which libav would be content with."""

    @override
    def read(self, size: int = -1, /) -> bytes:
        try:
            return super().read(size)
        except OSError as error:
            raise DecodeError(f"{self.url} cannot be read ({error.strerror}); check the connection.") from error


def identity(path: str, file: File) -> Identity:
    """Return what distinguishes a file from one that replaced it."""
    if isinstance(file, RemoteFile | io.BytesIO):  # behind a URL, or in a shard there
        return path, length_of(file)
    status = os.fstat(file.fileno())
    return path, status.st_size, status.st_mtime_ns


def length_of(file: File) -> int:
    """Bytes of an open file, whose position stays."""
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(position)
    return end
