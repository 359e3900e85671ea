"""Files of segments, read back by readers that know nothing of the writer."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.synthetic.writing import generate
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.inference.long_videos import Timeline
from zoo.inference.segment_files import write_segments

MODEL = "videomamba-nano-motion"


def timeline_of(path, spans, labels):
    """Windows without overlap; each has a class of its own with probability 0.75."""
    scores = torch.full((len(spans), len(labels)), 0.25 / (len(labels) - 1))
    scores[range(len(spans)), range(len(spans))] = 0.75
    return Timeline(str(path), spans[-1][1], np.array(spans), scores, labels, torch.zeros(1, 3, 2, 2), np.zeros(1))


@pytest.fixture
def timelines():
    first = timeline_of(
        "day/a.mp4", [(0.0, 1.5), (1.5, 4000.0624), (4000.0624, 4001.0)], ["run", 'a, "b"\n<i>c', "sit"]
    )
    return [first, timeline_of("day/b.mp4", [(0.0, 2.0), (2.0, 2.25)], ["gehen", "größer → kleiner"])]


def test_csv(timelines, tmp_path):
    out = write_segments(timelines, tmp_path / "new/out.CSV")
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [(t.path, s) for t in timelines for s in t.segments()]
    assert len(rows) == len(expected) == 5
    for row, (path, segment) in zip(rows, expected, strict=True):
        assert (row["video"], row["label"], int(row["index"])) == (path, segment.label, segment.index)
        numbers = [float(row[name]) for name in ("start", "end", "probability")]
        assert numbers == pytest.approx([segment.start, segment.end, segment.probability], abs=5e-4)


def test_json_is_what_activitynets_evaluation_reads(timelines, tmp_path):
    """It wants these three keys, and label, score and segment of each detection."""
    content = json.loads(write_segments(timelines, tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(content) == {"version", "results", "external_data"}
    assert {name: len(found) for name, found in content["results"].items()} == {"a": 3, "b": 2}
    for timeline, found in zip(timelines, content["results"].values(), strict=True):
        for got, segment in zip(found, timeline.segments(), strict=True):
            assert (got["label"], got["score"]) == (segment.label, pytest.approx(segment.probability, abs=1e-6))
            assert got["segment"] == pytest.approx([segment.start, segment.end], abs=5e-4)


def test_two_files_of_one_name_are_told_apart_by_their_paths(timelines, tmp_path):
    other = timeline_of("night/a.mkv", [(0.0, 1.0), (1.0, 2.0)], ["x", "y"])
    content = json.loads(write_segments([*timelines, other], tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {name: len(found) for name, found in content["results"].items()} == {
        "day/a.mp4": 3, "b": 2, "night/a.mkv": 2
    }  # fmt: skip


def read_srt(path: Path):
    """(start, end, text) of each cue, in seconds, by the rules of the format: cues are numbered and end at an empty
    line."""
    cues = []
    for number, block in enumerate(path.read_text(encoding="utf-8").strip().split("\n\n"), start=1):
        first, times, *text = block.split("\n")
        assert first == str(number)
        found = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})", times)
        hours, minutes, seconds, thousandths = np.array(found.groups(), dtype=float).reshape(2, 4).T
        cues.append((*(3600 * hours + 60 * minutes + seconds + thousandths / 1000), "\n".join(text)))
    return cues


def test_srt(timelines, tmp_path):
    cues = read_srt(write_segments(timelines[:1], tmp_path / "out.srt"))
    times = [time for start, end, _ in cues for time in (start, end)]
    assert times == pytest.approx([0, 1.5, 1.5, 4000.062, 4000.062, 4001], abs=1e-6)
    assert [text for *_, text in cues] == ["run (75%)", 'a, "b"\\n<i>c (75%)', "sit (75%)"]


def test_names_that_are_not_utf8(tmp_path):
    timeline = timeline_of(os.fsdecode(b"a\xff.mp4"), [(0.0, 1.0), (1.0, 2.0)], ["x", "y"])
    assert b"a\xff.mp4,0.000,1.000,x" in write_segments([timeline], tmp_path / "out.csv").read_bytes()
    (name,) = json.loads(write_segments([timeline], tmp_path / "out.json").read_bytes())["results"]
    assert os.fsencode(name) == b"a\xff"


def test_mistakes(timelines, tmp_path):
    with pytest.raises(ZooError, match=r"out\.srt would hold subtitles of 2 videos.* name a \.csv or \.json file"):
        write_segments(timelines, tmp_path / "out.srt")
    with pytest.raises(ZooError, match=r"none of the endings \.csv, \.json, \.srt"):
        write_segments(timelines, tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    """One video is enough for all formats; for two, subtitles are refused before the model is looked for."""
    generate(tmp_path / "clips", num_train=0, num_val=0, num_test=2, num_workers=0, progress=False)
    a, b = map(str, sorted(tmp_path.rglob("*.mp4"))[:2])
    main(["predict", MODEL, a, "--segments", str(tmp_path / "a.srt"), "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    cues = read_srt(tmp_path / "a.srt")
    assert [text.split()[0] for *_, text in cues] == [segment["label"] for segment in record["segments"]]
    assert cues[-1][1] == pytest.approx(record["duration"], abs=1e-3)
    main(["predict", MODEL, a, b, "--segments", str(tmp_path / "both.csv")])
    assert f"Segments: {tmp_path / 'both.csv'}" in capsys.readouterr().out
    with (tmp_path / "both.csv").open(newline="", encoding="utf-8") as file:
        assert {row["video"] for row in csv.DictReader(file)} == {a, b}
    with pytest.raises(SystemExit):
        main(["predict", "no-such-model", a, b, "--segments", str(tmp_path / "both.srt")])
    error = capsys.readouterr().err
    assert "would hold subtitles of 2 videos" in error and "no-such" not in error
