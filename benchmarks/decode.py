"""Reading clips: how many per second a core decodes, beside decord, torchcodec and plain PyAV.

    python benchmarks/decode.py                      # everything; keep the generated files with --data FOLDER
    python benchmarks/decode.py --quick              # 340 x 256 only, short files
    python benchmarks/decode.py --profile            # where the time of our reader goes, per step
    python benchmarks/decode.py --videos a.mp4 ...   # real files beside the generated ones

A clip is 8 or 16 frames taken sparsely (one from each of as many equal parts of the video) or 16 frames every fourth
(dense), resized to a shorter side of 256 pixels, cropped to the middle 224 x 224 and laid out as models take it: uint8
(3, T, 224, 224). Crop and layout are the same function for all readers, and so are the frame numbers, drawn as in
training, so that they differ from clip to clip. Each clip opens its file anew, as a loader does that reads a data set
larger than its memory; only our reader may remember an index between two clips ("cached", what every epoch but the
first sees), which stands beside the first reading.

The files are generated: a camera moving over a textured picture, shapes moving before it, sensor noise, and a cut every
130 frames, coded with each library's defaults at bit rates that data sets have (Kinetics-400 at 340 x 256: 0.5 Mb/s).
H.264 by x264 (key frames up to 250 apart, B-frames) in MP4, MPEG-4 part 2 (a key frame every 12) in AVI, as UCF-101 and
HMDB-51 come, VP9 (up to 128 apart) in WebM. 3000 frames are the packets of 300 ten times.

Readers, one thread each:

    zoo          datamodules.video.decode.VideoReader
    zoo-cached   the same with the index of a former reading
    decord       its own resizing while it decodes; cropped afterwards
    torchcodec   the default, exact mode; resized by torchvision, without antialiasing as ours
    tc-resize    torchcodec resizing (with antialiasing) while it decodes
    pyav-all     PyAV decodes every frame up to the last one wanted, converts those wanted; resized by torchvision

Beside them stands the limit: the packets that our reader hands to libavcodec for a clip, decoded once more from memory.
Opening, indexing, reading the file, converting, resizing and cropping cost nothing there, so no reader on top of
libavcodec can be further ahead of a baseline than baseline's time / limit's time ("at most").

A baseline that is not installed is left out, and the result says so. Readers take turns within a row, in another order
each time; a row's number is the median over rounds. CPU seconds of the process (user and system) are compared, wall
time stands beside.
"""

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from common import RESULTS, machine, machine_slug, save
from torch import Tensor

from datamodules.video.decode import VideoReader, forget_indices
from datamodules.video.resize import center_crop, resize_short_side, to_clip
from datamodules.video.sampling import clip_indices

SHORT_SIDE, CROP = 256, 224
SIZES = {"340x256": (340, 256, 500_000), "1920x1080": (1920, 1080, 5_000_000)}  # width, height, bits per second
CODECS = {
    "h264": ("libx264", ".mp4", {}),
    "mpeg4": ("mpeg4", ".avi", {}),
    "vp9": ("libvpx-vp9", ".webm", {"deadline": "good", "cpu-used": "5", "row-mt": "0"}),
}
LENGTHS = (50, 300, 3000)
REPEATED = 300  # frames coded for longer files
CLIPS = {"sparse 8": (8, "sparse"), "sparse 16": (16, "sparse"), "dense 16x4": (16, "dense")}
CUT_FRAMES, FPS = 130, 30
BASELINES = ("decord", "torchcodec")
RATIOS = ("ratio", "ratio_kept_index", "at_most")
AIM = 1.5


class Row(NamedTuple):
    """A file and what is read from it."""

    file: str
    path: Path
    num_frames: int
    clip: str


def main() -> int:
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        files = make_files(options.data or Path(scratch), options)
        files |= {path.name: path for path in options.videos}
        if options.profile:
            profile(files, options)
            return 0
        readers, missing = available(options.readers)
        rows = measure(files, readers, options)
    result = {
        "machine": {**machine(), "versions": versions()},
        "missing": missing,
        "clip": {"short_side": SHORT_SIDE, "crop": CROP, "threads": 1},
        "rows": rows,
        "summary": summary(rows),
    }
    slug = machine_slug(result["machine"]["cpu"], result["machine"]["cores"])
    path = options.output or RESULTS / f"decode_{slug}.json"
    save(result, path)
    print_summary(result, path)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder that keeps the generated files for the next time (default: made anew)")
    add("--videos", type=Path, nargs="*", default=[], help="real files to measure too")
    add("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    add("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    add("--lengths", type=int, nargs="+", default=list(LENGTHS))
    add("--clips", nargs="+", default=list(CLIPS), choices=list(CLIPS))
    add("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    add("--rounds", type=int, default=15, help="turns of a row at most, two at least (default: 15)")
    add("--seconds", type=float, default=1.0, help="about how long a reader may take in a row (default: 1)")
    add("--quick", action="store_true", help="340 x 256 and 300 frames only")
    add("--profile", action="store_true", help="only where our reader spends its time")
    add("--output", type=Path, help="default: results/decode_<machine>.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.lengths = ["340x256"], [300]
    return options


# Files ----------------------------------------------------------------------------------------------------------------


def make_files(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Generates what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for size in options.sizes:
        for codec in options.codecs:
            for length in options.lengths:
                path = folder / f"{codec}_{size}_{length}{CODECS[codec][1]}"
                files[path.name] = path
                if path.exists():
                    continue
                print(f"generating {path.name}", file=sys.stderr)
                if length > REPEATED and length % REPEATED == 0:
                    source = folder / f"{codec}_{size}_{REPEATED}{CODECS[codec][1]}"
                    if not source.exists():
                        encode(source, REPEATED, size, codec)
                    repeat(source, path, length // REPEATED)
                else:
                    encode(path, length, size, codec)
    return files


def encode(path: Path, num_frames: int, size: str, codec: str) -> None:
    """Codes generated frames at the bit rate of the size."""
    width, height, bit_rate = SIZES[size]
    name, _, options = CODECS[codec]
    part = path.with_stem(f".{path.stem}")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(name, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", bit_rate
        for picture in scene(num_frames, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    part.rename(path)


def repeat(source: Path, path: Path, times: int) -> None:
    """Copies the packets several times, one after the other."""
    part = path.with_stem(f".{path.stem}")
    with av.open(str(source)) as reading, av.open(str(part), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        data = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in reading.demux(stream) if p.size]
        length = round(len(data) / FPS / stream.time_base)
        for turn in range(times):
            for content, pts, dts, is_key in data:
                packet = av.Packet(content)
                packet.pts = None if pts is None else pts + turn * length
                packet.dts = (pts if dts is None else dts) + turn * length
                packet.time_base, packet.is_keyframe, packet.stream = stream.time_base, is_key, copy
                writing.mux(packet)
    part.rename(path)


def scene(num_frames: int, width: int, height: int) -> Any:
    """Frames, uint8 (H, W, 3): a camera over a textured picture, discs in front, noise, a cut now and then."""
    rng = np.random.default_rng(0)
    scale = height / 256
    grains = rng.normal(0, 3, (4, height + 32, width + 32, 1)).astype(np.float32)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    for number in range(num_frames):
        place = number % CUT_FRAMES
        if place == 0:
            world = texture(rng, int(height * 1.5), int(width * 1.5))
            path = rng.uniform(0.2, 0.8, 4)
            discs = rng.uniform(0.1, 0.9, (5, 4))
            colours = rng.uniform(30, 225, (5, 3)).astype(np.float32)
        share = place / CUT_FRAMES
        top = int((path[0] + (path[1] - path[0]) * share) * height * 0.5)
        left = int((path[2] + (path[3] - path[2]) * share) * width * 0.5)
        picture = world[top : top + height, left : left + width].copy()
        for (x0, y0, x1, y1), colour in zip(discs, colours, strict=True):
            x, y = (x0 + (x1 - x0) * share) * width, (y0 + (y1 - y0) * share) * height
            picture[(xs - x) ** 2 + (ys - y) ** 2 < (20 * scale) ** 2] = colour
        dy, dx = rng.integers(0, 32, 2)
        picture += grains[number % 4, dy : dy + height, dx : dx + width]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with a spectrum like that of photographs, float32 (H, W, 3) of 0 .. 255."""
    picture = torch.zeros(3, height, width)
    for octave in range(2, 9):
        cells = torch.from_numpy(rng.normal(0, 1, (1, 3, 2**octave, 2**octave)).astype(np.float32))
        mode = "bicubic" if octave < 8 else "bilinear"
        picture += torch.nn.functional.interpolate(cells, (height, width), mode=mode)[0] / 1.7**octave
    return (picture / picture.std() * 45 + 120).permute(1, 2, 0).contiguous().numpy()


# Readers --------------------------------------------------------------------------------------------------------------


def cropped(frames: Tensor) -> Tensor:
    """uint8 (T, 3, H, W) -> (3, T, 224, 224)."""
    return to_clip(center_crop(frames, CROP))


def read_zoo(path: Path, indices: np.ndarray) -> Tensor:
    with VideoReader(path) as reader:
        frames = reader.read(indices, short_side=SHORT_SIDE)
    return cropped(frames)


def read_decord(path: Path, indices: np.ndarray) -> Tensor:
    import decord

    width, height = size_of(path)
    reader = decord.VideoReader(str(path), num_threads=1, width=width, height=height)
    return cropped(torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2))


def read_torchcodec(path: Path, indices: np.ndarray) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    frames = VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at(indices.tolist()).data
    return cropped(resize_short_side(frames, SHORT_SIDE))


def read_torchcodec_resize(path: Path, indices: np.ndarray) -> Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    width, height = size_of(path)
    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, transforms=[Resize((height, width))])
    return cropped(decoder.get_frames_at(indices.tolist()).data)


def read_pyav_all(path: Path, indices: np.ndarray) -> Tensor:
    wanted, found = set(indices.tolist()), {}
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                picture = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).permute(2, 0, 1)
                found[number] = resize_short_side(picture[None], SHORT_SIDE)[0]
            if len(found) == len(wanted):
                break
    return cropped(torch.stack([found[index] for index in indices.tolist()]))


class Recorder(VideoReader):
    """Keeps what it hands to the decoder: packets, and whether a frame may be left out where nothing refers to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.work: list[tuple[av.Packet | None, bool]] = []

    def _decode(self, packets: Iterable[tuple[av.Packet | None, bool]]) -> Iterator[av.VideoFrame]:
        def kept() -> Iterator[tuple[av.Packet | None, bool]]:
            for packet, needed in packets:
                self.work.append((packet, not needed))
                yield packet, needed

        return super()._decode(kept())


def limit_seconds(path: Path, indices: np.ndarray) -> float:
    """CPU seconds of libavcodec for a clip."""
    with Recorder(path) as reader:
        reader.read(indices)
        context = reader._stream.codec_context
        context.flush_buffers()
        start = time.process_time()
        for packet, skip in reader.work:
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            context.decode(packet)
            if packet is None:
                context.flush_buffers()
        return time.process_time() - start


READERS: dict[str, Callable[[Path, np.ndarray], Tensor]] = {
    "zoo": read_zoo,
    "zoo-cached": read_zoo,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
    "tc-resize": read_torchcodec_resize,
    "pyav-all": read_pyav_all,
}

LIBRARIES = {"decord": "decord", "torchcodec": "torchcodec.decoders", "tc-resize": "torchcodec.decoders"}
"""What the baselines need."""

_SIZES: dict[Path, tuple[int, int]] = {}


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) with a shorter side of `SHORT_SIDE`; known to who resizes while decoding, and not timed."""
    if path not in _SIZES:
        with av.open(str(path)) as container:
            width, height = container.streams.video[0].width, container.streams.video[0].height
        if width >= height:
            _SIZES[path] = int(SHORT_SIDE * width / height), SHORT_SIDE
        else:
            _SIZES[path] = SHORT_SIDE, int(SHORT_SIDE * height / width)
    return _SIZES[path]


def available(names: Sequence[str]) -> tuple[dict[str, Callable], list[str]]:
    """The readers whose library can be imported, and a sentence for each one that cannot."""
    readers, missing = {}, []
    for name in names:
        try:
            if name in LIBRARIES:
                import_module(LIBRARIES[name])
            readers[name] = READERS[name]
        except (ImportError, RuntimeError, OSError) as error:
            missing.append(f"{name}: {str(error).splitlines()[0]}")
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return readers, missing


def versions() -> dict[str, str]:
    found = {"ffmpeg of av": ".".join(map(str, av.library_versions["libavcodec"]))}
    for name in ("av", "torchvision", *BASELINES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(files: dict[str, Path], readers: dict[str, Callable], options: argparse.Namespace) -> list[dict]:
    """A dict per file and kind of clip, printed as it is found."""
    rows = []
    names = "".join(f"{name:>12}" for name in readers)
    print(f"{'clips / s of CPU time':34}{names}   x better baseline, kept index, at most")
    for file, path in files.items():
        with VideoReader(path) as reader:
            num_frames = reader.num_frames
        for clip in options.clips:
            row = Row(file, path, num_frames, clip)
            rows.append(measure_row(row, readers, options))
            rates = rows[-1]["clips_per_cpu_second"]
            cells = "".join(f"{rates[name]:12.2f}" if name in rates else f"{'-':>12}" for name in readers)
            ratios = (f"{rows[-1].get(name, math.nan):.2f}" for name in RATIOS)
            print(f"{file + ' ' + clip:34}{cells}   {', '.join(ratios)}", flush=True)
    return rows


def measure_row(row: Row, readers: dict[str, Callable], options: argparse.Namespace) -> dict:
    """Median seconds per clip of each reader, all on the same clips in turn."""
    frames, sampling = CLIPS[row.clip]
    cpu: dict[str, list[float]] = {name: [] for name in readers}
    wall: dict[str, list[float]] = {name: [] for name in readers}
    limit: list[float] = []
    differing: dict[str, str] = {}
    budget, spent = options.seconds * len(readers), 0.0
    for turn in range(options.rounds + 1):
        torch.manual_seed(turn)
        indices = clip_indices(row.num_frames, frames, sampling=sampling, mode="train", frame_stride=4)
        limit.append(limit_seconds(row.path, indices))
        expected = None
        # A reader finds its code and the file in the caches where one before it used the same library.
        for name in random.Random(turn).sample(list(readers), len(readers)):
            read = readers[name]
            if name in differing:
                continue
            forget_indices()
            if name == "zoo-cached":
                VideoReader(row.path).close()
            start_wall, start = time.perf_counter(), time.process_time()
            try:
                clip = read(row.path, indices)
            except Exception as error:
                differing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            cpu[name].append(time.process_time() - start)
            wall[name].append(time.perf_counter() - start_wall)
            spent += cpu[name][-1]
            if expected is None:
                expected = clip
            elif clip.shape != expected.shape:
                differing[name] = f"shape {tuple(clip.shape)} in place of {tuple(expected.shape)}"
        if turn == 0 and spent < budget:  # it warmed up
            for times in (limit, *cpu.values(), *wall.values()):
                times.clear()
        if turn and spent > budget:
            break
    result = {
        "file": row.file,
        "num_frames": row.num_frames,
        "clip": row.clip,
        "clips_per_cpu_second": {name: 1 / statistics.median(times) for name, times in cpu.items() if times},
        "clips_per_second": {name: 1 / statistics.median(times) for name, times in wall.items() if times},
        "limit_seconds": statistics.median(limit),
        "turns": len(limit),
    }
    if differing:
        result["failed"] = differing
    rates = result["clips_per_cpu_second"]
    baselines = [rate for name, rate in rates.items() if name in LIBRARIES]
    if baselines and "zoo" in rates:
        ours = (rates["zoo"], rates.get("zoo-cached", math.nan), 1 / result["limit_seconds"])
        result |= {name: rate / max(baselines) for name, rate in zip(RATIOS, ours, strict=True)}
    return result


def summary(rows: list[dict]) -> dict:
    long = [row for row in rows if row["num_frames"] >= 100 and "ratio" in row]
    short = [row for row in rows if row["num_frames"] < 100 and "ratio" in row]

    def reached(name: str) -> str:
        return f"{sum(row[name] >= AIM for row in long)} of {len(long)}"

    def lowest(rows: list[dict], name: str) -> float | None:
        return min((row[name] for row in rows), default=None)

    return {
        f"rows of 100 frames or more at {AIM} or better": reached("ratio"),
        "with the index of a former reading": reached("ratio_kept_index"),
        "whose limit allows it": reached("at_most"),
        "lowest ratio, 100 frames or more": lowest(long, "ratio"),
        "with the index of a former reading, 100 frames or more": lowest(long, "ratio_kept_index"),
        "lowest ratio, fewer frames": lowest(short, "ratio"),
        "with the index of a former reading, fewer frames": lowest(short, "ratio_kept_index"),
    }


def print_summary(result: dict, path: Path) -> None:
    for name, value in result["summary"].items():
        print(f"{name}: {value if isinstance(value, str) or value is None else round(value, 2)}")
    print(f"saved to {path}")


def profile(files: dict[str, Path], options: argparse.Namespace) -> None:
    """Time per step of one clip, summed by function."""
    import cProfile
    import pstats

    for file, path in files.items():
        with VideoReader(path) as reader:
            num_frames = reader.num_frames
        for clip in options.clips:
            frames, sampling = CLIPS[clip]
            indices = clip_indices(num_frames, frames, sampling=sampling, mode="test", frame_stride=4)
            read_zoo(path, indices)
            profiler = cProfile.Profile(time.process_time)
            profiler.runcall(read_zoo, path, indices)
            print(f"== {file}, {clip}")
            pstats.Stats(profiler).sort_stats("tottime").print_stats(9)


if __name__ == "__main__":
    sys.exit(main())
