"""`zoo shard`: what a user types, and what is then in the folder."""

import json
import os
import shutil
import tarfile

import pytest
import webdataset
import yaml

from datamodules import Kinetics, PairCorpora, VideoFolder, VideoReader
from datamodules.synthetic.writing import generate
from zoo.commands.main import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("shard") / "data", num_train=8, num_val=4, num_test=4, size=(96, 80),
                    classes=("grow", "move_left"), num_frames=6, num_workers=0, progress=False)  # fmt: skip


def shard(capsys, *arguments):
    """The report of a successful command."""
    main(["shard", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys, *arguments, status=1):
    with pytest.raises(SystemExit) as stopped:
        main(["shard", *map(str, arguments)])
    assert stopped.value.code == status
    error = capsys.readouterr().err
    assert error.startswith("zoo: ") and error.count("\n") == 1
    return error


def labels(folder, split):
    return [sample.label for sample in VideoFolder(folder, num_workers=0).listing(split)]


def test_a_folder(root, tmp_path, capsys):
    out = tmp_path / "out"
    report = shard(capsys, root, "-o", out, "--max-size", "20kB")
    assert report["shards"] == str(out) and set(report) == {"shards", "train", "val", "test"}
    assert [report[split]["samples"] for split in ("train", "val", "test")] == [8, 4, 4]
    assert report["train"]["shards"] == len(list(out.glob("train-*.tar"))) > 1
    plain = {split: labels(root, split) for split in ("train", "val")}
    assert labels(out, "val") == plain["val"] == sorted(plain["val"])
    assert labels(out, "train") != plain["train"] and sorted(labels(out, "train")) == plain["train"]  # mixed
    assert VideoFolder(out, num_workers=0).class_names == ["grow", "move_left"]
    assert not list(out.glob(".*"))
    ordered = shard(capsys, root, "-o", tmp_path / "ordered", "--in-order", "--split", "train")
    assert set(ordered) == {"shards", "train"} and labels(tmp_path / "ordered", "train") == plain["train"]
    # Again: nothing is to be done. Otherwise: refused.
    assert shard(capsys, root, "-o", out, "--max-size", "20kB")["train"]["kept"] == report["train"]["shards"]
    assert "other shuffle_seed" in fails(capsys, root, "-o", out, "--max-size", "20kB", "--shuffle-seed", 1)
    main(["shard", str(out), "--check"])
    assert "as they were written" in capsys.readouterr().out
    (out / "val-000000.tar").write_bytes(b"")
    assert "val-000000.tar); copy them again" in fails(capsys, out, "--check")


def test_lists_recipes_and_names(root, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("grow\nmove_left\nrest\n")
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.glob("val/*/*.mp4"))]
    (tmp_path / "val.csv").write_text("\n".join(rows))
    shard(capsys, tmp_path / "val.csv", "--split", "val", "--root", root, "--set", f"classes={tmp_path}/classes.txt",
          "-o", tmp_path / "list")  # fmt: skip
    data = VideoFolder(tmp_path / "list", num_workers=0)
    assert data.class_names == ["grow", "move_left", "rest"] and [s.label for s in data.listing("val")] == [0, 0, 1, 1]

    copy = tmp_path / "copy"  # without lists
    for split in ("train", "val"):
        shutil.copytree(root / split, copy / split)
    arguments = {"root": str(copy), "num_classes": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": {"class_path": "datamodules.Kinetics",
                                                                  "init_args": arguments}}))  # fmt: skip
    shard(capsys, tmp_path / "mine.yaml", "-o", tmp_path / "config")
    shard(capsys, "datamodules.Kinetics", "--root", copy, "--set", "num_classes=2", "--split", "val", "-o",
          tmp_path / "name", "--split", "train")  # fmt: skip
    for name in ("config", "name"):
        listing = Kinetics(tmp_path / name, num_classes=2, num_workers=0).listing("train")
        assert [sample.label for sample in listing] == labels(tmp_path / "config", "train") and len(listing) == 8


def test_pairs(root, tmp_path, capsys):
    videos = sorted(str(path.relative_to(root)) for path in root.glob("train/*/*.mp4"))
    lines = [{"video": video, "caption": [f"{i} a", f"{i} b"]} for i, video in enumerate(videos)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = shard(capsys, tmp_path / "pairs.jsonl", "--root", root, "-o", tmp_path / "out", "--max-size", "20kB")
    assert report["train"]["samples"] == 8
    data = PairCorpora(tmp_path, corpora=[{"shards": "out"}], num_workers=0)
    assert sorted(data.captions) == sorted(text for line in lines for text in line["caption"])
    (sample, *_) = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)
    number = int(sample["txt"].split()[0])
    assert sample["txt"].decode() == f"{number} a\n{number} b" and sample["mp4"] == (root / videos[number]).read_bytes()


def test_coded_anew(root, tmp_path, capsys):
    report = shard(capsys, root, "--split", "val", "--short-side", "40", "--workers", "2", "-o", tmp_path / "out")
    assert report["val"]["samples"] == 4 and report["val"]["left_out"] == 0
    samples = VideoFolder(tmp_path / "out", num_workers=0).listing("val")
    for sample, plain in zip(samples, VideoFolder(root, num_workers=0).listing("val"), strict=True):
        with VideoReader(sample.path) as reader, VideoReader(plain.path) as before:
            assert (reader.width, reader.height) == (48, 40) and reader.num_frames == before.num_frames == 6
            assert sample.label == plain.label


def test_where_the_system_does_not_tell_its_cores(root, tmp_path, monkeypatch, capsys):
    """macOS, for one; the number of processes that code is then that of the machine's cores."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    report = shard(capsys, root, "-o", tmp_path / "out", "--split", "val", "--short-side", 64)
    assert report["val"]["samples"] == 4


def test_an_index_of_other_shards(root, tmp_path, capsys):
    shard(capsys, root, "--split", "train", "-o", tmp_path, "--max-size", "20kB", "--in-order")
    (tmp_path / "train.index.jsonl").unlink()
    for number, path in enumerate(sorted(tmp_path.glob("*.tar"))):
        path.rename(tmp_path / f"{number:05d}.tar")
    (tmp_path / "names.txt").write_text("grow\nmove_left")
    last = len(list(tmp_path.glob("*.tar"))) - 1
    pattern = f"{tmp_path}/{{00000..{last:05d}}}.tar"
    report = shard(capsys, pattern, "--classes", tmp_path / "names.txt")
    assert report["train"]["samples"] == 8 and labels(tmp_path, "train") == labels(root, "train")
    assert VideoFolder(tmp_path, num_workers=0).class_names == ["grow", "move_left"]
    assert "exists; remove it first" in fails(capsys, pattern)
    assert "00099.tar does not exist" in fails(capsys, f"{tmp_path}/{{00000,00099}}.tar", "--split", "val")
    assert "stands for more than 100000 names" in fails(capsys, f"{tmp_path}/{{0..99999999}}.tar")


def test_other_data_sets_keep_their_listing(root, tmp_path, capsys):
    """A split with a file missing and one with a file that is no video: the first is left out, the second written."""
    copy = shutil.copytree(root, tmp_path / "copy")
    rows = [f"{path.relative_to(copy)},0" for path in sorted(copy.glob("train/grow/*.mp4"))]
    (copy / "train.csv").write_text("\n".join([*rows, "train/grow/none.mp4,0"]))
    (copy / "train" / "grow" / rows[0].rpartition("/")[2].partition(",")[0]).write_bytes(b"no video")
    main(["shard", str(copy / "train.csv"), "-o", str(tmp_path / "out")])
    output = capsys.readouterr()
    assert "train: 4 samples, 1 left out in 1 shard" in output.out
    assert "none.mp4 does not exist" in output.err and "(left out)" in output.err
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert sum(info.name.endswith(".mp4") for info in tar) == 4


@pytest.mark.parametrize(("arguments", "message"), [
    (["Kinetisc", "-o", "x"], "There is no data 'Kinetisc': did you mean 'Kinetics'?"),
    (["Kinetics", "-o", "x"], "Say it with --root"),
    (["videomamba-m-k400", "-o", "x"], "Say it with --root"),
    (["Kinetics", "--root", ".", "--set", "classes=4", "-o", "x"], "unexpected keyword argument 'classes'"),
    (["Kinetics", "--root", ".", "--set", "classes", "-o", "x"], "is not KEY=VALUE"),
    (["EpicKitchens100", "--root", ".", "-o", "x"], "cannot be written as shards"),
    (["somewhere.Else", "--root", ".", "-o", "x"], "There is no DataModule somewhere.Else"),
    (["ROOT"], "Name a folder: zoo shard"),
    (["ROOT", "-o", "s3://bucket/x"], "is a URL"),
    (["ROOT", "-o", "x", "--max-size", "large"], "'large' is no size"),
    (["ROOT", "-o", "x", "--crf", "99"], "--crf is 99; it has to be from 0 to 51"),
    (["a.tar", "-o", "x"], "leave --out out"),
    (["none.tar"], "none.tar does not exist"),
    (["ROOT", "--check"], "no index of shards"),
])  # fmt: skip
def test_mistakes_are_named(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *(root if word == "ROOT" else word for word in arguments))
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["shard", "--help"])
    text = capsys.readouterr().out
    for words in (
        "zoo shard clips/ -o",
        "--short-side 320",
        "lightning fit --config",
        "continues after an interruption",
    ):
        assert words in text
