"""Every DataModule on a small data set of its own form: what it reads, and that broken annotations are one sentence."""

import json
import pickle
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg

import datamodules
from datamodules import DataError
from datamodules.clips import ClipDataModule

FORMAT = dict(num_frames=2, image_size=16, short_side=16, sampling="sparse", frame_stride=1, interpolation="bilinear",
              num_workers=0)  # fmt: skip
EPIC = (
    "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,"
    "verb_class,noun_class,all_noun_classes\n"
    "P01_{0}_0,P01,P01_{0},00:00:00.00,00:00:01.00,take plate,0,1,[1]\n"
    "P01_{0}_1,P01,P01_{0},00:00:00.50,00:00:01.00,open tap,1,0,[0]\n"
)
LSMDC = """0001_Film_00.00.0{0}.000	00	00	00	00	SOMEONE sits.
0001_Film_00.00.0{0}.500	00	00	00	00	She turns.
"""
BREAKFAST = "file_name,duration,action,class_id\nP03-cam01-P03_milk,56,milk,8\n"
NAMES = {"Bending something": "0", "Moving something": "1"}
TOKENS = {"id0": [["a", "man"]], "id1": [["b"]]}
COIN = {"database": {f"id{i}": {"class": f"Task{i % 2}", "recipe_type": i % 2, "duration": 1.5,
                                "subset": "training" if i < 2 else "testing"} for i in range(4)}}  # fmt: skip
KINETICS = "label,youtube_id,time_start,time_end,split\nair drumming,{0}aaa,1,11,{0}\nzumba,{0}bbb,2,12,{0}\n"
SSV2 = [{"id": "1", "template": "Bending [something]"}, {"id": "2", "template": "Moving [something]"}]
MSRVTT = {"videos": [{"video_id": f"video{i}", "split": "train"} for i in range(2)],
          "sentences": [{"video_id": f"video{i}", "caption": "a man is talking"} for i in range(2)]}  # fmt: skip
TOLD = {f"v_id{i}": {"duration": 1.0, "sentences": ["One.", "Two."], "timestamps": [[0, 1], [1, 2]]} for i in range(2)}
MOMENTS = [{"video": f"id{i}.m4v", "description": "someone waves", "times": [[0, 1]]} for i in range(2)]


def both(form, names=("train", "val")):
    return {f"{name}.csv": form.format(name) for name in names}


# Name -> arguments, annotation files, files that may be missing, videos.
CASES = {
    "Kinetics": (
        dict(num_classes=2),
        {f"annotations/{name}": text for name, text in both(KINETICS).items()},
        (),
        [f"{s}/{s}{name}.mp4" for s in ("train", "val") for name in ("aaa_000001_000011", "bbb_000002_000012")],
    ),
    "SomethingSomethingV2": (
        dict(num_classes=2),
        {"train.json": SSV2, "validation.json": SSV2, "labels.json": NAMES},
        (),
        ["1.webm", "2.webm"],
    ),
    "ImageNet": (
        dict(num_classes=2),
        {"train.txt": "a.JPEG 0\nb.JPEG 1\n", "meta/val.txt": "c.JPEG 0\n"},
        (),
        ["train/a.JPEG", "train/b.JPEG", "val/c.JPEG"],
    ),
    "Breakfast": (
        {},
        both(BREAKFAST),
        (),
        ["P03/cam01/P03_milk.avi"],
    ),
    "COIN": (dict(num_classes=2), {"COIN.json": COIN}, (), [f"videos/0/id{i}.mp4" for i in range(4)]),
    "LVU": (
        dict(task="relationship", window_seconds=60.0),
        {f"relationship/{name}": "class_id class_name youtube_id imdb_id\n0 friend -id0 tt0\n3 wife -id1 tt1\n"
         for name in ("train.csv", "val.csv")} | {"lvu_durations.csv": "videoid,duration\n-id0,100\n-id1,30\n"},
        (),
        ["-id0.mp4", "-id1.mp4"],
    ),
    "VideoFolder": ({}, {}, (), [f"{s}/{c}/0.mp4" for s in ("train", "val") for c in ("a", "b")]),
    "VideoCSV": (
        dict(classes="classes.txt"),
        both("1.mp4,run\n2.mp4,sit\n") | {"classes.txt": "run\nsit\n"},
        (),
        ["1.mp4", "2.mp4"],
    ),
    "CaptionCSV": ({}, {"captions.csv": "video,caption\n1.mp4,a man\n2.mp4,a dog\n"}, (), ["1.mp4", "2.mp4"]),
    "MSRVTT": (
        {},
        {"msrvtt_data/MSRVTT_data.json": MSRVTT, "msrvtt_data/MSRVTT_train.9k.csv": "video_id\nvideo0\nvideo1\n",
         "msrvtt_data/MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\nret0,msr1,video1,a person\n"},
        (),
        ["MSRVTT/videos/all/video0.mp4", "MSRVTT/videos/all/video1.mp4"],
    ),
    "ActivityNet": (
        {},
        {"train.json": TOLD, "val_1.json": TOLD, "train_ids.json": ["v_id0"], "val_ids.json": ["v_id1"]},
        ("train_ids.json", "val_ids.json"),
        ["id0.mp4", "v_id1.mkv"],
    ),
    "DiDeMo": (
        {},
        {f"{split}_data.json": MOMENTS for split in ("train", "val")} | {f"{split}_list.txt": "id0.m4v\nid1.m4v\n"
                                                                         for split in ("train", "val")},
        ("train_list.txt", "val_list.txt"),
        ["id0.m4v", "id1.mp4"],
    ),
    "LSMDC": (
        {},
        {"LSMDC16_annos_training.csv": LSMDC.format(1), "LSMDC16_annos_val.csv": LSMDC.format(2)},
        (),
        [f"Film/0001_Film_00.00.0{i}.{j}00.avi" for i in (1, 2) for j in (0, 5)],
    ),
    "MSVD": (
        {},
        {"train_list.txt": "id0\n", "val_list.txt": "id1\n", "raw-captions.pkl": TOKENS},
        (),
        ["id0.avi", "id1.avi"],
    ),
    "EpicKitchens100": (
        {},
        {"annotations/EPIC_100_train.csv": EPIC.format(11), "annotations/EPIC_100_validation.csv": EPIC.format(12),
           "annotations/EPIC_100_verb_classes.csv": "id,key,instances,category\n0,take,x,y\n1,open,x,y\n",
           "annotations/EPIC_100_noun_classes.csv": "id,key,instances,category\n0,tap,x,y\n1,plate,x,y\n",
           "annotations/EPIC_100_tail_verbs.csv": "verb\n1\n", "annotations/EPIC_100_tail_nouns.csv": "noun\n0\n",
           "annotations/EPIC_100_unseen_participant_ids_validation.csv": "participant_id\nP01\n",
           "annotations/actions.csv": "id,verb,noun,action\n0,0,1,take plate\n1,1,0,open tap\n"},
        ("annotations/EPIC_100_tail_verbs.csv", "annotations/EPIC_100_tail_nouns.csv", "annotations/actions.csv",
         "annotations/EPIC_100_unseen_participant_ids_validation.csv"),
        ["P01/videos/P01_11.MP4", "P01/rgb_frames/P01_12.tar"],
    ),
    "EpicKitchensRetrieval": (
        {},
        {f"retrieval_annotations/EPIC_100_retrieval_{split}.csv": EPIC.format(video)
         for split, video in (("train", 11), ("test", 12))}
        | {f"retrieval_annotations/EPIC_100_retrieval_{split}_sentence.csv":
           f"narration_id,narration\nP01_{video}_0,take plate\nP01_{video}_1,open tap\n"
           for split, video in (("train", 11), ("test", 12))}
        | {"EPIC_100_verb_classes.csv": "id,key,instances,category\n0,take,x,y\n1,open,x,y\n",
           "EPIC_100_noun_classes.csv": "id,key,instances,category\n0,tap,x,y\n1,plate,x,y\n"},
        (),
        ["P01/videos/P01_11.MP4", "P01/rgb_frames/P01_12.tar"],
    ),
    "PairCorpora": (
        dict(corpora=[{"annotations": "pairs.jsonl"}, {"annotations": "pictures.json"}], val="val.json"),
        {"pairs.jsonl": '{"video": "1.mp4", "caption": "a"}\n{"video": "2.mp4", "caption": ["b", "c"]}\n',
         "pictures.json": [{"image": "3.jpg", "caption": "d"}], "val.json": {"1.mp4": ["a"]}},
        (),
        ["1.mp4", "2.mp4", "3.jpg"],
    ),
}  # fmt: skip
FILES = [(name, file) for name, case in CASES.items() for file in case[1]]


def encoded(content) -> bytes:
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


@pytest.fixture(scope="module")
def roots(tmp_path_factory, make_video):
    """The data set of each case; one video, of which all are copies."""
    folder = tmp_path_factory.mktemp("sets")
    clip = make_video(folder / "clip.mp4", 4, width=32, height=32)
    write_jpeg(torch.zeros((3, 32, 32), dtype=torch.uint8), str(folder / "clip.jpg"))
    for name, (_, files, _, videos) in CASES.items():
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(content) if file.endswith(".pkl") else encoded(content))
        for video in videos:
            path = folder / name / video
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "clip.jpg" if path.suffix.lower() in (".jpg", ".jpeg") else clip, path)
    return folder


def module(name, root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = getattr(datamodules, name)(root, **FORMAT, **CASES[name][0])
        # What the command asks for before `setup`, and `setup`.
        _ = getattr(data, "num_classes", None), getattr(data, "class_names", None), getattr(data, "captions", None)
        data.setup("fit")
    return data


def test_every_datamodule_has_a_case():
    concrete = [name for name in datamodules.__all__ if isinstance(getattr(datamodules, name), type)
                and issubclass(getattr(datamodules, name), ClipDataModule)
                and not getattr(getattr(datamodules, name), "__abstractmethods__", None)]  # fmt: skip
    assert sorted(concrete) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_layouts_of_each_are_documented(name):
    """A table in the docstring, and a row of docs/data.md."""
    assert "\n    |---|" in getattr(datamodules, name).__doc__
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| [^|]+ \| `{name}` \| [^|]+ \|", page, re.MULTILINE)


@pytest.mark.parametrize("name", CASES)
def test_each_tells_what_it_reads(roots, name):
    data = module(name, roots / name)
    rows = data.describe()
    assert [row.split for row in rows] == ["train", "val"]
    for row in rows:
        assert row.videos >= 1 and row.clips >= row.videos and not row.left_out
        assert (row.classes is None) == (row.num_classes is None) and (row.classes or 1) >= 1
        assert row.origin, f"{name} does not say where {row.split} comes from"


WRONG = {
    "empty": b"",
    "blank": b"\n \n",
    "garbage": bytes(range(256)) * 4,
    "other_columns": b"colour,taste\nred,sweet\nblue,bitter\n",
    "number": b"3",
    "null": b"null",
    "list": b"[]",
    "objects": b"{}",
    "list_of_null": b"[null]",
    "object_of_null": b'{"database": null, "videos": null, "sentences": {}, "id": null}',
    "wrong_types": b'[{"id": {}, "template": 3, "video": 1, "image": [], "caption": {"a": 1}, "description": null}]',
    "deep": b"[" * 100_000,
    "digits": b"1" * 5000,
    "digits_in_json": b'{"a": ' + b"9" * 5000 + b"}",
    "digits_in_a_row": b"a.mp4," + b"9" * 5000 + b"\n",
    "long_field": b'"' + b"x" * 200_000 + b'",1\n',
    "nul": b"a\x00b.mp4,0\n\x00/c.mp4,1\n",
    "surrogate": b'[{"video": "\\ud800.mp4", "caption": "\\udfff"}]',
    "infinite": b'{"Bending something": Infinity, "Moving something": NaN}',
}


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}-{file.rpartition('/')[2]}" for name, file in FILES])
def test_broken_annotations_are_one_sentence(roots, tmp_path, name, file):
    """A missing file, one of another form, and many with pieces changed: `DataError`, or data, and nothing else."""
    root = shutil.copytree(roots / name, tmp_path / "root")
    optional = file in CASES[name][2]
    path = root / file
    good = path.read_bytes()
    path.unlink()
    check(name, root, must_fail=not optional)
    for kind, content in WRONG.items():
        path.write_bytes(content)
        check(name, root, must_fail=kind in ("garbage", "empty") or (file.endswith(".json") and kind != "surrogate"))
    generator = random.Random(file)
    for _ in range(12):
        path.write_bytes(mutated(good, generator))
        check(name, root, must_fail=False)


def check(name, root, must_fail):
    try:
        module(name, root)
    except DataError as error:
        assert "\n" not in str(error) and str(error).endswith("."), str(error)
    else:
        assert not must_fail


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One to three changes: bytes flipped, a piece removed, repeated or replaced by something hostile."""
    hostile = [
        b",",
        b'"',
        b"\n",
        b"\t",
        b"[",
        b"{}",
        b"null",
        b"-1",
        b"1e999",
        b"9" * 30,
        b"\xff",
        b"\x00",
        b" ",
        b"NaN",
    ]
    for _ in range(generator.randint(1, 3)):
        start = generator.randrange(len(content) + 1)
        end = min(len(content), start + generator.randint(0, 12))
        piece = content[start:end]
        new = generator.choice([b"", piece * 2, bytes(b ^ generator.randrange(256) for b in piece), *hostile])
        content = content[:start] + new + content[end:]
    return content
