import shutil
import warnings

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.base import DataError
from datamodules.kinetics import Kinetics
from datamodules.synthetic.motion import render, sample_spec
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views

FORMAT = {
    "num_frames": 4,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bilinear",
}
NAMES = ["abseiling", "air drumming", "zumba"]
PATH_LIST = """train/abseiling/-3B32lodo2M_000059_000069.mp4,0
train/zumba/zzz00000000_000010_000020.mp4,2
train/air_drumming/yyy00000000_000003_000013.mp4,1
"""
OFFICIAL = """label,youtube_id,time_start,time_end,split
abseiling,-3B32lodo2M,59,69,train
air drumming,yyy00000000,3,13,train
zumba,zzz00000000,10,20,train
"""
FILES = ["-3B32lodo2M_000059_000069.mp4", "yyy00000000_000003_000013.mp4", "zzz00000000_000010_000020.mp4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One generated video per class, under its official name."""
    folder = tmp_path_factory.mktemp("clips")
    for number, (name, motion) in enumerate(zip(FILES, ("grow", "move_left", "shrink"), strict=True)):
        frames = render(sample_spec(np.random.default_rng(number), motion))
        write_video(folder / name, frames[: 8 + number], 12)
    return folder


def place(clips, root, *paths):
    """Copies each video to its paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / path.rpartition("/")[2], root / path)
    return root


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def write(root, **files):
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    return root


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Kinetics(root, **{"num_classes": 3} | arguments, **FORMAT).setup(stage)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


# Path lists ------------------------------------------------------------------------------------------------------


def test_path_list(clips, tmp_path):
    paths = [line.rpartition(",")[0] for line in PATH_LIST.splitlines()]
    root = write(place(clips, tmp_path, *paths), train=PATH_LIST, val=PATH_LIST)
    data = Kinetics(root, num_classes=3, batch_size=3, num_workers=0, num_clips=2, **FORMAT)
    assert data.class_names is None and data.num_classes == 3
    assert listing(data) == list(zip(paths, [0, 2, 1], strict=True))
    with pytest.warns(UserWarning, match=f"test.csv does not exist: {root}/val.csv is tested on"):
        data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["label"].tolist() == [0, 2, 1] and batch["index"].tolist() == [0, 1, 2]
    test = next(iter(data.test_dataloader()))
    wanted = load_views(root / paths[0], **FORMAT, num_clips=2, num_crops=3).video
    assert torch.equal(test["video"][0], wanted)


@pytest.mark.parametrize(
    ("row", "given", "path", "label"),
    [
        ("train/abseiling/a.mp4,399", None, "train/abseiling/a.mp4", 399),
        ("air drumming/yyy 3.mp4 1", None, "air drumming/yyy 3.mp4", 1),
        ("throwing, catching/a b.mp4,17", None, "throwing, catching/a b.mp4", 17),
        ("throwing, catching/a.mp4 17", None, "throwing, catching/a.mp4", 17),
        ("throwing, catching/a,5 17", " ", "throwing, catching/a,5", 17),
        ("x/a 5,17", ",", "x/a 5", 17),
        ("x/a.mp4\t17", None, "x/a.mp4", 17),
    ],
)
def test_delimiter(tmp_path, row, given, path, label):
    data = Kinetics(write(tmp_path, train=f"{row}\n{row}\n"), delimiter=given)
    assert data.num_classes == 400 and listing(data) == [(path, label)] * 2


def test_lists_elsewhere_and_other_sizes(tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path / "lists", all="a.mp4,699\n", some="/data/b.mp4,0\ns3://bucket/c.mp4,1\n")
    data = Kinetics(tmp_path / "videos", num_classes=700, train=f"{tmp_path}/lists/all.csv", val="../lists/some.csv")
    assert [tuple(s) for s in data.listing("train")] == [(f"{tmp_path}/videos/a.mp4", 699)]
    assert [tuple(s) for s in data.listing("val")] == [("/data/b.mp4", 0), ("s3://bucket/c.mp4", 1)]


def test_names_beside_a_list_of_numbers(tmp_path):
    root = write(tmp_path, train="a.mp4,0\nb.mp4,zumba\n", val="c.mp4,2\n")
    (root / "classes.txt").write_text("\n".join(NAMES))
    data = Kinetics(root, num_classes=3, delimiter=",")
    assert data.class_names == NAMES and listing(data) == [("a.mp4", 0), ("b.mp4", 2)]
    assert "classes.txt has 3 classes, but num_classes is 400; set data.num_classes" in error(root, num_classes=400)


# Official lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        ["train/abseiling", "train/air drumming", "train/zumba"],
        ["train/abseiling", "train/air_drumming", "train/zumba"],
        ["abseiling", "air_drumming", "zumba"],
        ["abseiling", "train/air drumming", "train"],
        ["train", "train", "train"],
        [".", ".", "."],
    ],
)
def test_official_list(clips, tmp_path, where):
    paths = [f"{folder}/{file}".removeprefix("./") for folder, file in zip(where, FILES, strict=True)]
    root = write(place(clips, tmp_path, *paths), train=OFFICIAL, val=OFFICIAL)
    data = Kinetics(root, num_classes=3, batch_size=3, num_workers=0, **FORMAT)
    assert data.class_names == NAMES
    assert listing(data) == list(zip(paths, range(3), strict=True))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    files = [path.rpartition("/")[2] for path in batch["path"]]
    assert sorted(zip(batch["label"].tolist(), files, strict=True)) == list(enumerate(FILES))


def test_official_list_with_quotes_more_columns_and_other_suffix(tmp_path, make_video):
    text = (
        "label,youtube_id,time_start,time_end,split,is_cc\r\n"
        '"passing, catching (in game)",aaaaaaaaaaa,100,110,validate,0\r\nzumba,bbbbbbbbbbb,0,10,validate,1\r\n'
    )
    root = write(tmp_path, val=text)
    make_video(root / "validate" / "zumba" / "bbbbbbbbbbb_000000_000010.mkv", 2)
    data = Kinetics(root, num_classes=2)
    assert data.class_names == ["passing, catching (in game)", "zumba"]  # from val, the only list
    assert listing(data, "val") == [("validate/aaaaaaaaaaa_000100_000110.mp4", 0),
                                    ("validate/zumba/bbbbbbbbbbb_000000_000010.mkv", 1)]  # fmt: skip


def test_missing_videos_are_counted(clips, tmp_path):
    more = "".join(f"zumba,gone{number:07d},0,10,train\n" for number in range(5))
    root = write(place(clips, tmp_path, *(f"train/{file}" for file in FILES)), train=OFFICIAL + more, val=OFFICIAL)
    with pytest.warns(UserWarning) as caught:
        data = Kinetics(root, num_classes=3, num_workers=0, batch_size=4, max_unreadable=0.7, **FORMAT)
        data.setup("fit")
    text = next(text for w in caught if "do not exist" in (text := str(w.message)))
    assert text.startswith(f"5 of the 8 train videos do not exist: {root}/train/gone0000000_000000_000010.mp4, ")
    assert text.endswith("gone0000002_000000_000010.mp4 and 2 more.")
    assert data.datasets["train"].tally.flags.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    for batch in data.train_dataloader():  # others take their places
        assert batch["index"].max() < 3
    assert "5 of 8 videos cannot be read, more than max_unreadable allows (1)" in error(root)
    assert "3 of 3 videos do not exist, and neither does the folder" in error(
        write(tmp_path / "empty", train=OFFICIAL, val=OFFICIAL)
    )
    Kinetics(root, num_classes=3, check_files=False, **FORMAT).setup("fit")


# As downloaders leave it ------------------------------------------------------------------------------------------

VALIDATED = OFFICIAL.replace(",train", ",validate").replace("abseiling", '"abseiling"')
TESTED = OFFICIAL.replace(",train", ",test")


def annotations(root):
    """The official lists where CVDF's downloader puts them."""
    write(root / "annotations", train=OFFICIAL, val=VALIDATED, test=TESTED)
    return root


def test_as_the_downloader_of_cvdf_leaves_it(clips, tmp_path):
    """Flat folders; a whole copy of a damaged file is preferred, and one of a file that is nowhere else is found."""
    root = annotations(place(clips, tmp_path, *(f"{s}/{file}" for s in ("train", "val", "test") for file in FILES)))
    (root / "train" / FILES[1]).write_bytes(b"cut off")
    replacement = f"replacement/replacement_for_corrupted_k400/{FILES[1]}"
    place(clips, root, replacement)
    (root / "test" / FILES[2]).unlink()
    data = Kinetics(root, num_classes=3, num_workers=0, batch_size=3, **FORMAT)
    assert data.class_names == NAMES
    assert listing(data) == [(f"train/{FILES[0]}", 0), (replacement, 1), (f"train/{FILES[2]}", 2)]
    assert listing(data, "val") == [(f"val/{FILES[0]}", 0), (replacement, 1), (f"val/{FILES[2]}", 2)]
    assert listing(data, "test")[2] == (f"test/{FILES[2]}", 2)
    with pytest.warns(UserWarning, match=f"1 of the 3 test videos do not exist: {root}/test/{FILES[2]}"):
        data.setup()
    assert next(iter(data.val_dataloader()))["index"].tolist() == [0, 1, 2]


def test_as_the_script_of_cvdf_arranges_it(clips, tmp_path):
    folders = [f"videos/{split}/{name}/{file}" for split in ("train", "val", "test")
               for name, file in zip(NAMES, FILES, strict=True)]  # fmt: skip
    root = annotations(place(clips, tmp_path, *folders))
    data = Kinetics(root, num_classes=3, num_workers=0, batch_size=3, **FORMAT)
    for split in ("train", "val", "test"):
        assert listing(data, split) == [(f"videos/{split}/{NAMES[i]}/{FILES[i]}", i) for i in range(3)]
    data.setup()
    shutil.rmtree(root / "annotations")  # the folders say the same
    assert listing(Kinetics(root, num_classes=3)) == [(f"videos/train/{NAMES[i]}/{FILES[i]}", i) for i in range(3)]


def test_as_mmaction_lays_it_out(clips, tmp_path):
    """Its lists are named by arguments; their paths start in the folder of the split."""
    rows = [f"{name.replace(' ', '_')}/{file}" for name, file in zip(NAMES, FILES, strict=True)]
    root = place(clips, tmp_path, *(f"videos_{split}/{row}" for split in ("train", "val") for row in rows[1:]))
    for split in ("train", "val"):
        text = "".join(f"{row} {number}\n" for number, row in enumerate(rows))
        (root / f"kinetics400_{split}_list_videos.txt").write_text(text)
    lists = {split: f"kinetics400_{split}_list_videos.txt" for split in ("train", "val")}
    data = Kinetics(root, num_classes=3, num_workers=0, batch_size=3, **lists, **FORMAT)
    for split in ("train", "val"):
        assert listing(data, split) == [(f"videos_{split}/{row}", i) for i, row in enumerate(rows)]  # the first is gone
    with pytest.warns(UserWarning, match="1 of the 3 train videos do not exist"):
        data.setup("fit")
    with pytest.warns(UserWarning, match="is tested on"):
        assert listing(data, "test") == listing(data, "val")


@pytest.mark.parametrize("said", ["val", "validate", "validation"])
@pytest.mark.parametrize("folder", ["val", "validation", "videos/val"])
def test_every_name_of_the_validation_split(clips, tmp_path, said, folder):
    root = place(clips, tmp_path, *(f"{folder}/{file}" for file in FILES))
    write(root, train=OFFICIAL, val=OFFICIAL.replace(",train", f",{said}"))
    assert listing(Kinetics(root, num_classes=3), "val") == [(f"{folder}/{file}", i) for i, file in enumerate(FILES)]


def test_videos_that_are_nowhere_are_expected_in_the_folder_of_their_split(tmp_path):
    """The advice of a first start is about the path, not about a disk that was there before."""
    write(tmp_path, train=VALIDATED, val=VALIDATED)
    assert listing(Kinetics(tmp_path, num_classes=3), "val")[0] == (f"val/{FILES[0]}", 0)
    text = error(tmp_path)
    assert text.startswith(f"3 of 3 videos do not exist, and neither does the folder {tmp_path}/val; check data.root")
    assert "disk back" not in text and "--ckpt_path" not in text


# Folders ---------------------------------------------------------------------------------------------------------


def test_folder_of_classes(clips, tmp_path):
    place(clips, tmp_path, f"train/zumba/{FILES[2]}", f"train/air_drumming/{FILES[1]}", f"train/abseiling/{FILES[0]}",
          f"val/air drumming/{FILES[1]}")  # fmt: skip
    data = Kinetics(tmp_path, num_classes=3, num_workers=0, batch_size=1, **FORMAT)
    assert data.class_names == NAMES
    assert listing(data) == [(f"train/{name.replace(' ', '_')}/{FILES[i]}", i) for i, name in enumerate(NAMES)]
    assert listing(data, "val") == [(f"val/air drumming/{FILES[1]}", 1)]
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["label"].tolist() == [1]
    place(clips, tmp_path, f"val/waving/{FILES[1]}")
    assert f"{tmp_path}/val/waving is not a class of {tmp_path}/train; rename or remove it" in error(tmp_path)


# URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_everything_behind_a_url(clips, num_workers):
    store = MemoryFileSystem()
    store.pipe_file("/kinetics/train.csv", OFFICIAL.encode())
    store.pipe_file("/kinetics/val.csv", f"train/air_drumming/{FILES[1]} 1\ntrain/zumba/gone.mp4 2\n".encode())
    paths = [f"train/{name.replace(' ', '_')}/{file}" for name, file in zip(NAMES, FILES, strict=True)]
    for path, file in zip(paths, FILES, strict=True):
        store.pipe_file(f"/kinetics/{path}", (clips / file).read_bytes())
    data = Kinetics("memory://kinetics/", num_classes=3, batch_size=3, num_workers=num_workers, **FORMAT)
    assert data.class_names == NAMES
    with pytest.warns(UserWarning, match="1 of the 2 val videos do not exist: memory://kinetics/train/zumba/gone.mp4"):
        data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    found = sorted(zip(batch["label"].tolist(), batch["path"], strict=True))
    assert found == [(label, f"memory://kinetics/{path}") for label, path in enumerate(paths)]
    batch = next(iter(data.val_dataloader()))
    assert batch["index"].tolist() == [0, -1]
    assert torch.equal(batch["video"][0], load_views(clips / FILES[1], **FORMAT).video[0])
    store.rm("/kinetics", recursive=True)


def test_nothing_behind_a_url():
    text = error("memory://nothing")
    assert "neither the list memory://nothing/train.csv nor a folder memory://nothing/train" in text


# Errors ----------------------------------------------------------------------------------------------------------


def test_neither_list_nor_folder(tmp_path):
    text = error(tmp_path / "nowhere")
    for part in ("nowhere/train.csv", "nowhere/train with a folder per class", "check data.root", "https://"):
        assert part in text
    write(tmp_path, train=PATH_LIST)
    assert f"neither the list {tmp_path}/val.csv nor a folder {tmp_path}/val" in error(tmp_path)


def test_labels_outside_the_classes_are_counted(tmp_path):
    rows = "a.mp4,0\nb.mp4,3\nc.mp4,-1\nd.mp4,400\ne.mp4,3\n"
    text = error(write(tmp_path, train=rows, val="a.mp4,0\n"))
    assert text.startswith(f"4 of the 5 train videos have labels outside 0 .. 2: {tmp_path}/b.mp4 (3), ")
    assert "d.mp4 (400) and 1 more; correct the list or set the number of classes" in text


def test_videos_listed_twice(clips, tmp_path):
    place(clips, tmp_path, *FILES)
    rows = "".join(f"{file},{label}\n" for label, file in enumerate(FILES))
    write(tmp_path, train=rows + f"{FILES[0]},0\n{FILES[1]},2\n", val=rows)
    with pytest.warns(UserWarning) as caught:
        Kinetics(tmp_path, num_classes=3, **FORMAT).setup("fit")
    texts = sorted(str(warning.message) for warning in caught)
    assert len(texts) == 2
    assert texts[0].startswith("2 of the 5 train videos are listed again, 1 of them with another label: ")
    assert texts[1].startswith(f"3 of the 3 val videos are trained on too: {tmp_path}/{FILES[0]}, ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4\n", "train.csv, line 1: 'a.mp4' is not of the form path,label"),
        ("a.mp4,1\nb.mp4,x\n", "train.csv, line 2: label 'x' is not a number"),
        ("youtube_id,time_start,time_end,split\na,1,2,test\n", "has no column label, as the lists for the test server"),
        ("label,youtube_id,time_start,time_end\nzumba,a,1,2\nzumba,b,1.5,2\n", "line 3: no label, no youtube_id, or"),
        ("label,youtube_id,time_start,time_end\n", "train.csv lists no videos"),
        (OFFICIAL.replace("zumba", "abseiling"), "train.csv has 2 classes, but num_classes is 3"),
        ("", "train.csv lists no videos"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    assert message in error(write(tmp_path, train=text, val=PATH_LIST))


def test_val_has_a_class_that_train_lacks(tmp_path):
    write(tmp_path, train=OFFICIAL, val=OFFICIAL.replace("zumba", "waving"))
    assert f"val.csv, line 4: label 'waving' is not a class of {tmp_path}/train.csv" in error(tmp_path)
