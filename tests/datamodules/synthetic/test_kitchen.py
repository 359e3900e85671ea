"""The generated kitchen is one of EPIC's: official files, real videos, and actions that follow each other."""

import csv
import itertools
import warnings
from pathlib import Path

import pytest

from datamodules import EpicKitchens100, VideoReader
from datamodules.synthetic.kitchen import NOUNS, VERBS, generate_kitchen, main
from datamodules.synthetic.motion import COLOURS, SHAPES
from datamodules.video.frame_tar import frame_rate


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    return generate_kitchen(tmp_path_factory.mktemp("kitchen") / "data", num_train=6, num_val=5, num_test=1, actions=3,
                            size=(32, 32), num_frames=12, num_workers=0, progress=False)  # fmt: skip


def test_the_generated_kitchen_is_one_of_epics(kitchen):
    module = EpicKitchens100(kitchen, num_frames=4, image_size=32, short_side=32, sampling="sparse", frame_stride=2,
                             interpolation="bilinear", num_workers=0)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.setup("fit")
    train, val = (module.datasets[split].samples for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 15)
    assert module.verb_names == list(VERBS) and module.noun_names == list(NOUNS)
    assert {segment.unseen for segment in val} == {True, False} and not any(segment.unseen for segment in train)
    assert all(len(segment.nouns) == 2 and segment.nouns[0] < 8 <= segment.nouns[1] for segment in train)
    for path in {segment.path for segment in train}:
        segments = [segment for segment in train if segment.path == path]
        assert len({segment.nouns[0] for segment in segments}) == 1
        with VideoReader(path) as reader:
            assert reader.duration_seconds == pytest.approx(6.0)
            assert segments[-1].span == (4.0, pytest.approx(4.92, abs=0.01))
        follow = [(b.verb - a.verb) % 8 == 1 for a, b in itertools.pairwise(segments)]
        assert sum(follow) >= len(follow) - 1
    with (kitchen / "annotations" / "EPIC_100_train.csv").open() as file:
        for row in csv.DictReader(file):
            rate = frame_rate(row["video_id"])
            start = sum(float(part) * 60**power for power, part in enumerate(row["start_timestamp"].split(":")[::-1]))
            assert int(row["start_frame"]) == max(1, int(start * rate + 1e-6))


def test_the_generated_kitchen_is_left_alone_when_it_is_there(kitchen, tmp_path):
    before = sorted((path, path.stat().st_mtime_ns) for path in kitchen.rglob("*"))
    generate_kitchen(kitchen, num_train=6, num_val=5, num_test=1, actions=3, size=(32, 32), num_frames=12)
    assert sorted((path, path.stat().st_mtime_ns) for path in kitchen.rglob("*")) == before
    with pytest.raises(FileExistsError, match="holds something else"):
        generate_kitchen(kitchen, num_train=7)
    with pytest.raises(ValueError, match="surprise 3"):
        generate_kitchen(tmp_path / "new", surprise=3)


def test_a_shape_mostly_has_its_own_colour():
    from datamodules.synthetic.kitchen import _videos

    look = {"size": (32, 32), "num_frames": 12, "fps": 12, "nuisance": 0.1}
    rules = {"actions": 6, "pause_seconds": 1.0, "surprise": 0.1, "typical": 0.9, "seed": 0}
    videos = _videos({"train": 40, "validation": 10, "test": 0}, look, rules)
    specs = [spec for video in videos for spec in video.actions]
    own = dict(zip(SHAPES, COLOURS, strict=False))
    share = sum(spec.colour == own[spec.shape] for spec in specs) / len(specs)
    assert 0.85 < share < 0.97
    assert all(spec.colour != spec.background_colour for spec in specs)
    assert len({video.name for video in videos}) == len(videos)


def test_the_command(tmp_path, capsys):
    assert main([str(tmp_path / "k"), "--train", "1", "--val", "1", "--test", "1", "--actions", "1"]) == 0
    assert "1 train, 1 validation, 1 test videos of 1 actions each" in capsys.readouterr().out
    assert len(list((tmp_path / "k").rglob("*.MP4"))) == 3
    assert main([str(tmp_path / "k"), "--actions", "2"]) == 1
    assert "holds something else" in capsys.readouterr().err
