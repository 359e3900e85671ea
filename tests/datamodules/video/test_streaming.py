"""Streams against full decodes and the definition of a sample: what is on display at (i + 1/2) period."""

import math

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video.decode import VideoReader
from datamodules.video.opening import DecodeError
from datamodules.video.resize import center_crop
from datamodules.video.streaming import FrameStream, stream_windows

STRETCHED = [number * number * 40 + 1500 * number for number in range(60)]  # the frame rate falls all the time
FILES = {
    "b_frames": {"options": {"bf": "3", "g": "20"}},
    "no_b_frames": {"options": {"bf": "0"}},
    "one_group": {"options": {"bf": "2", "g": "1000", "keyint_min": "1000"}},
    "variable": {"options": {"bf": "2"}, "pts": STRETCHED},
    "transport.ts": {"options": {"bf": "2"}},
    "old.avi": {"codec": "mpeg4"},
}
PERIODS = [1 / 30, 0.1, 0.0123, 0.25, 1 / math.pi]


@pytest.fixture(scope="module", params=FILES)
def video(request, make_video, tmp_path_factory):
    name = request.param if "." in request.param else f"{request.param}.mp4"
    return make_video(tmp_path_factory.mktemp("streams") / name, 60, **FILES[request.param])


def on_display(seconds: np.ndarray, end: float, period: float) -> list[int]:
    """Position of the last frame at or before each sample, by definition."""
    samples = [(i + 0.5) * period for i in range(math.ceil(end / period) + 1)]
    return [int(np.flatnonzero(seconds <= t + 1e-9)[-1]) for t in samples if t < end - 1e-9]


@pytest.mark.parametrize("period", PERIODS)
def test_a_sample_is_the_frame_on_display(video, read_number, period):
    with VideoReader(video) as reader:
        expected = on_display(reader.pts_seconds, reader.duration_seconds, period)
    with FrameStream(video) as stream:
        found = [read_number(frame) for frame in stream.samples(period, short_side=48)]
        assert stream.seconds == pytest.approx(stream.expected_seconds, abs=0.15)
    assert found == expected


@pytest.mark.parametrize(("num_frames", "step"), [(4, 1), (4, 2), (4, 4), (7, 3), (40, 40)])
def test_windows_overlap_cover_the_file_and_end_with_it(make_video, tmp_path, num_frames, step):
    path, period = make_video(tmp_path / "a.mp4", 33), 2 / 30
    with FrameStream(path) as stream:
        samples = torch.stack([center_crop(frame[None], 32)[0] for frame in stream.samples(period, short_side=40)])
        length = stream.seconds
    assert (len(samples), length) == (16, pytest.approx(1.1))
    starts = [*range(0, 16 - num_frames + 1, step)]
    if starts and starts[-1] < 16 - num_frames:
        starts.append(16 - num_frames)
    with FrameStream(path) as stream:
        options = {"num_frames": num_frames, "period": period, "step": step, "image_size": 32, "short_side": 40}
        windows = list(stream_windows(stream, **options))
    if not starts:  # shorter than a window: its frames at the middles of equal intervals
        assert [(w.start, w.end) for w in windows] == [(0.0, length)]
        places = np.minimum(((np.arange(num_frames) + 0.5) * 16 / num_frames).astype(int), 15)
        assert windows[0].video.equal(samples[places].transpose(0, 1))
        return
    assert len(windows) == len(starts)
    for first, window in zip(starts, windows, strict=True):
        assert window.start == pytest.approx(first * period)
        assert window.video.equal(samples[first : first + num_frames].transpose(0, 1))
    assert windows[-1].end == pytest.approx(length, abs=period)


def test_frames_that_no_sample_needs_are_left_out_of_decoding(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 120, options={"bf": "3", "x264-params": "b-adapt=0:b-pyramid=none"})

    def times(period):
        with FrameStream(path) as stream:
            return [seconds for seconds, _ in stream._source.timed(period)]

    every, few = times(1 / 30), times(1.0)
    assert every == pytest.approx([number / 30 for number in range(120)])
    assert len(few) < 60 and set(few) < set(every)


def test_damage_is_passed_over(make_video, read_number, tmp_path):
    path = make_video(tmp_path / "a.ts", 120, options={"g": "12"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    path.write_bytes(content)
    with FrameStream(path) as stream:
        found = [read_number(frame) for frame in stream.samples(0.1, short_side=48)]
    assert len(found) == pytest.approx(40, abs=1)
    right = [i for i, number in enumerate(found) if abs(number - (3 * i + 1)) <= 1]
    assert len(right) > 25 and {0, 1, 2, 37, 38} <= set(right)

    path.write_bytes(path.read_bytes()[: len(content) // 3])
    with FrameStream(path) as stream:
        assert 10 <= len(list(stream.samples(0.1, short_side=48))) <= 15


def test_a_time_stamp_far_beyond_the_end_is_not_believed(make_video, read_number, tmp_path):
    path, wrong = make_video(tmp_path / "a.mp4", 60, options={"bf": "0", "g": "10"}), tmp_path / "wrong.ts"
    with av.open(str(path)) as file, av.open(str(wrong), "w") as out:
        copy = out.add_stream_from_template(file.streams.video[0])
        for number, packet in enumerate(file.demux(video=0)):
            if packet.size:
                packet.stream = copy
                packet.pts += round(10 * 3600 / packet.time_base) if number == 30 else 0
                out.mux(packet)
    with FrameStream(wrong) as stream:
        assert [read_number(frame) for frame in stream.samples(0.1, short_side=48)] == [*range(1, 60, 3)]
        assert stream.seconds == pytest.approx(2.0, abs=0.05)


def test_pictures_and_folders_of_pictures(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(1, 26):
        Image.new("L", (48, 40), 10 * number).save(tmp_path / "frames" / f"img_{number:05}.jpg")
    with FrameStream(tmp_path / "frames") as stream:
        assert stream.expected_seconds == 1.0
        shades = [round(frame.float().mean().item() / 10) for frame in stream.samples(0.2, short_side=40)]
        assert shades == [3, 8, 13, 18, 23]
    with FrameStream(tmp_path / "frames" / "img_00007.jpg") as stream:
        assert [round(frame.float().mean().item()) for frame in stream.samples(10.0, short_side=40)] == [70]


def test_a_turned_video_is_turned(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 6, rotation=90)
    with VideoReader(path) as reader, FrameStream(path) as stream:
        expected = reader.read(range(6), short_side=24)
        assert torch.stack(list(stream.samples(1 / 30, short_side=24))).equal(expected)


def test_what_is_no_video_is_named(make_silence, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    make_silence(tmp_path / "sound.mp4")
    for name in ("gone.mp4", "text.mp4", "empty", "sound.mp4"):
        with pytest.raises(DecodeError, match=name):
            FrameStream(tmp_path / name)
