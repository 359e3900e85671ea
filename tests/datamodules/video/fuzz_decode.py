"""Reads mutated video files and says what came of each; run by test_decode_fuzz.py, or by hand:

    python tests/datamodules/video/fuzz_decode.py FOLDER FIRST COUNT

A line per file: its number, then "read", "refused" (DecodeError) or, which must not happen, "wrong" and why. The
number is printed before the file is opened, so that a crash or a kill (SIGPROF after `SECONDS` of processor time for a
file, memory above `MEMORY_GIB`) shows its culprit. The last line has the growth of resident memory in MiB since the
hundredth file and the slowest file's seconds of processor time. File `number` is the same on every machine with the
same coders.
"""

import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import av
import numpy as np
import torch

from datamodules.video.decode import VideoReader, forget_indices
from datamodules.video.opening import DecodeError

SECONDS, MEMORY_GIB = 20, 3
FRAMES, WIDTH, HEIGHT = 18, 80, 48
SOUND = [
    ("plain.mp4", "libx264", {"bf": "2", "g": "6"}, {}),
    ("front.mp4", "libx264", {"bf": "0", "g": "9"}, {"movflags": "faststart"}),
    ("fragments.mp4", "libx264", {"bf": "2", "g": "6"}, {"movflags": "frag_keyframe+empty_moov"}),
    ("hevc.mp4", "libx265", {"x265-params": "keyint=6:log-level=-1"}, {"movflags": "faststart"}),
    ("h264.mkv", "libx264", {"bf": "2", "g": "6"}, {}),
    ("h264.ts", "libx264", {"bf": "2", "g": "6"}, {}),
    ("mpeg4.avi", "mpeg4", {"g": "6"}, {}),
    ("reordered.avi", "mpeg4", {"g": "6", "bf": "2"}, {}),
    ("mpeg4.mov", "mpeg4", {"g": "6", "bf": "2"}, {}),
    ("vp9.webm", "libvpx-vp9", {"g": "6", "cpu-used": "8", "deadline": "realtime"}, {}),
    ("vp8.webm", "libvpx", {"g": "6", "cpu-used": "8", "deadline": "realtime"}, {}),
    ("mjpeg.avi", "mjpeg", {}, {}),
    ("mpeg1.mpg", "mpeg1video", {"g": "6", "bf": "2"}, {}),
    ("flv.flv", "flv", {"g": "6"}, {}),
]


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    files = [(name, encode(folder / f"{first}-{name}", *how)) for name, *how in SOUND]
    # Threads and libraries have reserved address space that is not used; what is read comes on top.
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    before, slowest = None, 0.0
    for number in range(first, first + count):
        print(number, end=" ", flush=True)
        name, data = mutate(files, np.random.default_rng(number))
        path = folder / f"{number}-{name}"
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start = time.process_time()
        print(read(path, number), name, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
        path.unlink()
        if number == first + 99:
            before = resident_mib()
    forget_indices()
    print("grown", round(resident_mib() - (before or resident_mib()), 1), "slowest", round(slowest, 2))


def encode(path: Path, codec: str, options: dict[str, str], container_options: dict[str, str]) -> bytes:
    """A small video of moving stripes and noise."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(FRAMES):
            columns = (np.arange(WIDTH) * 5 + number * 9)[None, :, None]
            picture = ((columns + rng.integers(0, 40, (HEIGHT, WIDTH, 3))) % 256).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.unlink()
    return data


def mutate(files: list[tuple[str, bytes]], rng: np.random.Generator) -> tuple[str, bytes]:
    """One of the files, damaged in one to three ways."""
    name, sound = files[rng.integers(len(files))]
    data = bytearray(sound)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        # Where the structure of a file stands, at its start or its end, more often than in its pictures.
        start = int(rng.choice([0, max(len(data) - 1500, 0), rng.integers(len(data))]))
        reach = min(1500, len(data) - start)
        kind = rng.integers(7)
        if kind == 0:  # single bits
            for place in start + rng.integers(0, reach, 2 ** rng.integers(0, 7)):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:  # cut off
            del data[int(rng.integers(len(data))) :]
        elif kind == 2:  # a run of zeros
            end = start + int(rng.integers(1, reach + 1))
            data[start:end] = bytes(end - start)
        elif kind == 3:  # another file's header
            other = files[rng.integers(len(files))][1]
            length = int(rng.integers(1, 1500))
            data[:length] = other[:length]
        elif kind == 4:  # a number that is too large, or negative
            number = rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x00FFFFFF, 0x10000000]).item()
            place = start + int(rng.integers(reach))
            data[place : place + 4] = number.to_bytes(4, "big" if rng.random() < 0.6 else "little")
        elif kind == 5:  # a piece lost
            del data[start : start + int(rng.integers(1, reach + 1))]
        else:  # a piece twice
            piece = data[start : start + int(rng.integers(1, reach + 1))]
            data[start:start] = piece
    return name, bytes(data)


def read(path: Path, number: int) -> str:
    try:
        with VideoReader(path) as reader:
            indices = np.random.default_rng(number).integers(0, reader.num_frames, 4)
            frames = reader.read(indices, short_side=32)
            healthy = frames.shape[:2] == (4, 3) and min(frames.shape[2:]) == 32
            return "read" if healthy else f"wrong shape {tuple(frames.shape)}"
    except DecodeError as error:
        text = str(error)
        clear = str(path) in text and "\n" not in text and text.endswith(".")
        return "refused" if clear else f"wrong sentence {text!r}"
    except Exception as error:
        return f"wrong {type(error).__name__}: {' '.join(str(error).split())}"


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
