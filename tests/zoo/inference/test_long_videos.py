"""Labels over time: on a stitched video with known boundaries, against the model called by hand, in real processes."""

import json
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

import zoo
from datamodules.synthetic import motion as synthetic
from datamodules.synthetic.writing import write_video
from datamodules.video import streaming
from datamodules.video.decode import VideoReader
from datamodules.video.views import load_views
from zoo.commands.main import main as zoo_main
from zoo.inference import long_videos
from zoo.inference.long_videos import STILLS, Timeline, default_window
from zoo.inference.plot import plot_timelines
from zoo.registry import class_labels

MODEL = "videomamba-nano-motion"
SCENES = [("move_left", 7.0), ("grow", 5.5), ("turn_clockwise", 8.0), ("move_up", 4.0), ("shrink", 6.5),
          ("move_right", 5.0), ("turn_counterclockwise", 6.0), ("move_down", 7.0)]  # fmt: skip
BOUNDARIES = np.cumsum([seconds for _, seconds in SCENES])[:-1]
FPS = 12


def write_scenes(path, scenes, fps=FPS, size=(64, 64), seed=0):
    """Scenes of the generated classes one after the other, each at the speed of the clips that the model knows."""
    rng, parts = np.random.default_rng(seed), []
    for motion, seconds in scenes:
        spec = synthetic.sample_spec(rng, motion, size=size, fps=fps)
        frames, axis = round(seconds * fps), synthetic.MOTIONS[motion].axis
        travels = [t * frames / spec.num_frames if i == axis else t for i, t in enumerate(spec.travels)]
        spec = replace(spec, num_frames=frames, travels=tuple(travels), turns=(0, 0, 0, 0))
        parts.append(synthetic.render(spec))
    write_video(path, np.concatenate(parts), fps)
    return path


def write_repeated(source, target, seconds):
    """The packets of a video over and over until it is so long: nothing is encoded."""
    with av.open(str(source)) as file, av.open(str(target), "w") as out:
        stream = file.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in file.demux(stream) if p.size]
        copy, start = out.add_stream_from_template(stream), 0
        length = max(pts + duration for _, pts, _, duration, _ in packets)
        while start * stream.time_base < seconds:
            for content, pts, dts, duration, is_key in packets:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, is_key
                packet.pts, packet.dts, packet.duration = start + pts, start + dts, duration
                out.mux(packet)
            start += length
    return target


@pytest.fixture(scope="module")
def stitched(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("stitched") / "scenes.mp4", SCENES)


@pytest.fixture(scope="module")
def model():
    return zoo.load(MODEL)


@pytest.fixture(scope="module")
def found(model, stitched):
    return zoo.timeline(model, stitched)


def label_at(segments, seconds):
    return next(s.label for s in segments if s.start <= seconds < s.end)


@pytest.mark.parametrize("step", [None, 0.5])
def test_it_finds_the_boundaries(model, stitched, found, step):
    """Half a window and more from a boundary, 95 % of the time has the right label; every boundary is found within the
    default step, one second."""
    segments = found.segments() if step is None else zoo.timeline(model, stitched, step=step).segments()
    assert (segments[0].start, segments[-1].end) == (0.0, pytest.approx(49.0))
    assert all(a.end == b.start and a.label != b.label for a, b in pairwise(segments))
    times = np.arange(0.05, 49, 0.1)
    far = times[np.abs(times[:, None] - BOUNDARIES).min(1) >= 1.0]
    right = [label_at(segments, t) == SCENES[np.searchsorted(BOUNDARIES, t, side="right")][0] for t in far]
    assert len(far) > 300 and np.mean(right) >= 0.95
    changes = np.array([s.end for s in segments[:-1]])
    assert np.abs(changes[:, None] - BOUNDARIES).min(0).max() <= 1.0


def test_a_window_is_what_the_model_says_of_its_frames(model, stitched, found):
    assert found.seconds[:3].tolist() == [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]
    assert found.probabilities.shape == (48, 8) and found.duration == pytest.approx(49.0)
    with VideoReader(stitched) as reader:
        for number in (0, 13, 47):
            positions = [int((number + (place + 0.5) / 4) * FPS) for place in range(8)]
            frames = reader.read(positions, short_side=48)
            with torch.inference_mode():
                expected = model(frames.transpose(0, 1)[None]).softmax(dim=1)[0]
            torch.testing.assert_close(found.probabilities[number], expected, atol=1e-5, rtol=1e-4)
    ranked = found.predictions(topk=3)[13]
    assert [p.probability for p in ranked] == found.probabilities[13].topk(3).values.tolist()
    assert ranked[0].label == model.class_names[found.probabilities[13].argmax()]


def test_pieces_are_means_over_the_windows_that_cover_them():
    rng = np.random.default_rng(0)
    seconds = np.array([[0.0, 3], [1, 4], [2, 5], [3, 6], [4.5, 7.5]])
    scores = torch.from_numpy(rng.dirichlet(np.ones(4), 5)).float()
    timeline = Timeline("a", 7.5, seconds, scores, list("abcd"), torch.zeros(1, 3, 2, 2), np.zeros(1))
    edges, means = timeline.pieces()
    assert edges.tolist() == [0, 1, 2, 3, 4, 4.5, 5, 6, 7.5]
    for start, end, mean in zip(edges[:-1], edges[1:], means, strict=True):
        over = [k for k, (a, b) in enumerate(seconds) if a <= start and end <= b]
        torch.testing.assert_close(mean, scores[over].mean(0))
    for segment in timeline.segments():
        inside = (edges[:-1] >= segment.start) & (edges[1:] <= segment.end)
        lengths = np.diff(edges)[inside]
        assert (means[inside].argmax(1) == segment.index).all() and lengths.sum() == segment.end - segment.start
        assert segment.probability == pytest.approx(float((means[inside, segment.index].numpy() * lengths).sum()
                                                          / lengths.sum()))  # fmt: skip


def test_window_and_step_have_good_defaults(model):
    def of(dataset, sampling="sparse", frames=16):
        names = list(class_labels(dataset))
        return zoo.create("videomamba-ti-k400", embed_dim=16, depth=1, num_classes=len(names), class_names=names,
                          sampling=sampling, num_frames=frames)  # fmt: skip

    assert default_window(model, 30.0) == 2.0  # 8 frames: the length of the clips it learned from
    assert default_window(of("k400"), 30.0) == 10.0
    assert default_window(of("ssv2", "ssv2"), 30.0) == 4.0
    assert default_window(of("breakfast"), 15.0) == 160.0
    assert default_window(of("k400", "dense", 8), 25.0) == 8 * 4 / 25


def test_an_image_model_and_a_still_image(stitched, tmp_path):
    torch.manual_seed(0)
    images = zoo.create("videomamba-ti-in1k", embed_dim=16, depth=1, image_size=32)
    found = zoo.timeline(images, stitched, window=7.0)
    assert found.seconds[:, 0].tolist() == pytest.approx([0, 7, 14, 21, 28, 35, 42])
    assert images.training
    with VideoReader(stitched) as reader:
        picture = reader.read([0])[0]
    frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
    frame.to_image().save(tmp_path / "a.png")
    assert len(zoo.timeline(MODEL, tmp_path / "a.png").seconds) == 1


def test_the_commands_json_and_picture(stitched, found, capsys, tmp_path):
    picture = tmp_path / "strip.png"
    zoo_main(["predict", MODEL, str(stitched), "--timeline", str(picture), "--json", "--topk", "2"])
    (record,) = json.loads(capsys.readouterr().out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert record["duration"] == 49.0 and len(record["windows"]) == 48
    for got, expected in zip(record["segments"], found.segments(), strict=True):
        assert got == pytest.approx(expected._asdict(), abs=1e-3)
    for got, best, span in zip(record["windows"], found.predictions(2), found.seconds, strict=True):
        assert [got["start"], got["end"]] == pytest.approx(span.tolist(), abs=1e-3)
        assert [p["label"] for p in got["predictions"]] == [p.label for p in best]
    zoo_main(["predict", MODEL, str(stitched), "--window", "2"])
    printed = capsys.readouterr().out
    assert "0:00.0   0:07.0   move_left" in printed and f"{found.segments()[0].probability:.1%}" in printed


def test_one_long_sequence(stitched, capsys):
    zoo_main(["predict", MODEL, str(stitched), "--frames", "64", "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["num_clips"], record["num_crops"], len(record["seconds"][0])) == (1, 1, 64)
    assert record["seconds"][0][-1] > 48 and np.diff(record["seconds"][0]).max() < 1.0
    model = zoo.load(MODEL, num_frames=64)
    assert model.net.temporal_pos_embedding.shape[1] == 16  # tubelets of 4 frames, interpolated from 2
    with torch.inference_mode():
        expected = model(load_views(stitched, **model.preprocessing).video).softmax(dim=1)[0]
    for prediction in record["predictions"]:
        assert prediction["probability"] == pytest.approx(expected[prediction["index"]].item(), abs=1e-5)


def test_mistakes_are_named(stitched, capsys, tmp_path):
    for arguments, sentence in [
        (["--window", "-1"], "--window is -1.0; it has to be from 0.01 to 1,000,000"),
        (["--window", "1e-9"], "--window is 1e-09; it has to be from 0.01"),
        (["--step", "nan"], "--step is nan; it has to be from 0.01"),
        (["--window", "2", "--step", "3"], "make the step at most the window"),
        (["--window", "2", "--crops", "3"], "leave out --plot, --clips and --crops"),
        (["--frames", "0"], "--frames is 0; it has to be from 1 to 4,096"),
        (["--frames", "100000"], "--frames is 100000; it has to be from 1 to 4,096"),
        (["--frames", "6"], "num_frames 6 is not a positive multiple of tubelet_size 4"),
    ]:
        with pytest.raises(SystemExit, match="1"):
            zoo_main(["predict", MODEL, str(stitched), "--timeline", str(tmp_path / "never.png"), *arguments])
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "never.png").exists()


def test_a_picture_of_many_classes_over_hours(found, tmp_path):
    labels, n = list(class_labels("k400")), 1500
    scores = torch.full((n, 400), 1e-4)
    scores[range(n), (torch.arange(n) // 20 * 7) % 400] = 0.9
    spans = np.stack([np.arange(n) * 5.0, np.arange(n) * 5.0 + 10], axis=1)
    long = replace(found, duration=7505.0, seconds=spans, probabilities=scores, labels=labels)
    picture = plot_timelines([("short", found), ("long", long)], tmp_path / "a.png")
    assert picture.stat().st_size > 20_000


MEASURE = """
import resource, sys, zoo
model = zoo.load("videomamba-nano-motion")
for path in sys.argv[1:]:
    found = zoo.timeline(model, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(len(found.seconds), len(found.stills), round(found.duration, 3), peak / 1024)
"""


def measure(*paths):
    """Windows, stills, seconds, and the peak of the process in MiB, after each of the files."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(map(float, line.split())) for line in done.stdout.splitlines()]


def test_what_is_held_does_not_grow_with_the_video(tmp_path, model, monkeypatch):
    """At no time are more decoded frames, scaled ones or windows alive than a batch of windows needs."""
    alive, most = Counter(), Counter()

    def watch(owner, name, pick):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            for item in original(*args, **kwargs):
                alive[name] += 1
                most[name] = max(most[name], alive[name])
                weakref.finalize(pick(item), alive.subtract, [name])
                yield item
                del item

        monkeypatch.setattr(owner, name, watched)

    watch(streaming._FileSource, "timed", lambda item: item[1])  # holds the decoded frame
    watch(streaming.FrameStream, "samples", lambda item: item)
    watch(long_videos, "stream_windows", lambda item: item.video)
    clip = write_scenes(tmp_path / "clip.mp4", [("grow", 8), ("move_up", 8)], fps=10, size=(128, 96))
    found = zoo.timeline(model, write_repeated(clip, tmp_path / "minutes.mp4", 400))
    assert (len(found.seconds), found.duration) == (399, 400.0)
    assert STILLS // 2 <= len(found.stills) <= STILLS
    assert most["timed"] <= 4 and most["samples"] <= 8 + 2 and most["stream_windows"] <= 2 * 8, most


@pytest.mark.slow
def test_an_hour_of_thirty_frames_a_second(tmp_path):
    clip = write_scenes(tmp_path / "clip.mp4", [("grow", 10), ("move_up", 10)], fps=30, size=(128, 96))
    minute = write_repeated(clip, tmp_path / "minute.mp4", 60)
    hour = write_repeated(clip, tmp_path / "hour.mp4", 3600)
    with av.open(str(hour)) as file:
        assert file.streams.video[0].frames == 108_000
        assert file.streams.video[0].average_rate == Fraction(30)
    short, long = measure(minute, hour)
    assert long[0] == 3599 and long[2] == 3600.0
    # 108,000 decoded frames would be 1,900 MiB; libav's table of their packets is in memory.
    assert long[3] - short[3] < 200
