import pytest

from datamodules.base import DataError
from datamodules.video_csv import VideoCSV

FORMAT = {
    "num_frames": 4,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bilinear",
}


def write(root, **files):
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    return root


def listing(data, split="train"):
    return [(sample.path.removeprefix(f"{data.root}/"), sample.label) for sample in data.listing(split)]


def test_numbers(tmp_path):
    data = VideoCSV(write(tmp_path, train="a.mp4,0\nb.mp4,2\n\n  c.mp4 , 1 \n", val="d.mp4,2\n"))
    assert data.class_names == ["0", "1", "2"]
    assert listing(data) == [("a.mp4", 0), ("b.mp4", 2), ("c.mp4", 1)]
    assert listing(data, "val") == listing(data, "test") == [("d.mp4", 2)]


def test_names_header_and_byte_order_mark(tmp_path):
    write(tmp_path, train="\ufeffpath,label\na.mp4,run\nb.mp4,jump\n", val="b.mp4,run\n", test="e.mp4,jump")
    data = VideoCSV(tmp_path, test="test.csv")
    assert data.class_names == ["jump", "run"]
    assert listing(data) == [("a.mp4", 1), ("b.mp4", 0)] and listing(data, "test") == [("e.mp4", 0)]


def test_class_file(tmp_path):
    root = write(tmp_path, train="a.mp4,run\nb.mp4,0\n", val="c.mp4,2\n")
    (root / "names.txt").write_text("sit\nrun\n\njump high\n")
    data = VideoCSV(root, classes="names.txt")
    assert data.class_names == ["sit", "run", "jump high"]
    assert listing(data) == [("a.mp4", 1), ("b.mp4", 0)] and listing(data, "val") == [("c.mp4", 2)]


@pytest.mark.parametrize(
    ("delimiter", "row", "path"),
    [
        (",", "a, b (1,5).mp4,3", "a, b (1,5).mp4"),
        (" ", "my holiday.mp4 3", "my holiday.mp4"),
        ("\t", "x y\t3", "x y"),
        (";", '"q;r.mp4";3', "q;r.mp4"),
    ],
)
def test_rows_are_split_at_the_last_delimiter(tmp_path, delimiter, row, path):
    data = VideoCSV(write(tmp_path, train=row, val=row), delimiter=delimiter)
    assert listing(data) == [(path, 3)]


def test_where_relative_paths_start(tmp_path, make_video):
    write(tmp_path, train="x/a.mp4,0\n", val="x/a.mp4,0\n")
    write(tmp_path / "lists", train="a.mp4,0\nb.mp4,0\n", val=f"{tmp_path}/x/a.mp4,0\n")
    data = VideoCSV(tmp_path, train="lists/train.csv", val="lists/val.csv")
    assert data.listing("train")[0].path == str(tmp_path / "a.mp4")
    assert data.listing("val")[0].path == str(tmp_path / "x" / "a.mp4")
    make_video(tmp_path / "lists" / "a.mp4", 2)
    assert [s.path for s in data.listing("train")] == [str(tmp_path / "lists" / name) for name in ("a.mp4", "b.mp4")]


def test_batches(class_root, tmp_path):
    rows = [f"{split}/{name}/0.mp4,{name}" for split in ("train", "val") for name in ("left", "right")]
    write(tmp_path, train="\n".join(rows), val="\n".join(rows))
    lists = {split: str(tmp_path / f"{split}.csv") for split in ("train", "val")}
    data = VideoCSV(class_root, **lists, num_workers=0, batch_size=2, **FORMAT)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["video"].shape == (2, 3, 4, 32, 32) and batch["label"].tolist() == [0, 1]


def error(root, stage="fit", **arguments):
    with pytest.raises(DataError) as caught:
        VideoCSV(root, **arguments, **FORMAT).setup(stage)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_missing_and_empty_lists(tmp_path):
    assert f"{tmp_path / 'train.csv'} does not exist; check data.root" in error(tmp_path)
    write(tmp_path, train="path,label\n", val="a.mp4,0")
    assert f"{tmp_path / 'train.csv'} lists no videos" in error(tmp_path)
    write(tmp_path, train="a.mp4,0")
    assert f"{tmp_path / 'other.csv'} does not exist" in error(tmp_path, val="other.csv")
    (tmp_path / "train.csv").write_bytes(b"\xff\xfea\x00.\x00")
    assert f"{tmp_path / 'train.csv'} is not a UTF-8 text file" in error(tmp_path)


@pytest.mark.parametrize("row", ["b.mp4", "b.mp4,", ",1", "b.mp4;1"])
def test_malformed_row(tmp_path, row):
    write(tmp_path, train=f"a.mp4,0\n\n{row}\n", val="a.mp4,0")
    assert f"{tmp_path / 'train.csv'}, line 3: {row!r} is not of the form path,label" in error(tmp_path)


def test_bad_labels(tmp_path):
    write(tmp_path, train="a.mp4,0\nb.mp4,1o\n", val="a.mp4,0")
    assert f"{tmp_path / 'train.csv'}, line 2: label '1o' and '0' of line 1" in error(tmp_path)
    write(tmp_path, train="a.mp4,0\nb.mp4,-1\n")
    assert f"{tmp_path / 'train.csv'}, line 2: label -1 is outside 0 .. 99999" in error(tmp_path)
    write(tmp_path, train="a.mp4,0\nb.mp4,1234567\n")
    assert "line 2: label 1234567 is outside" in error(tmp_path)
    write(tmp_path, train="a.mp4,0\nb.mp4,1\n", val="path,label\nc.mp4,2\n")
    text = error(tmp_path)
    assert (
        f"{tmp_path / 'val.csv'}, line 2: label 2 is outside 0 .. 1, the 2 classes of {tmp_path / 'train.csv'}" in text
    )
    write(tmp_path, train="a.mp4,run\n", val="c.mp4,walk\n")
    text = error(tmp_path)
    assert f"{tmp_path / 'val.csv'}, line 1: label 'walk' is not a class of {tmp_path / 'train.csv'}" in text


def test_class_file_at_fault(tmp_path):
    write(tmp_path, train="a.mp4,run\n", val="a.mp4,5\n")
    (tmp_path / "names.txt").write_text("run\nsit\n")
    text = error(tmp_path, classes="names.txt")
    assert f"label 5 is outside 0 .. 1, the 2 classes of {tmp_path / 'names.txt'}" in text
    (tmp_path / "names.txt").write_text("run\nsit\nrun\n")
    assert "names.txt names 'run' twice" in error(tmp_path, classes="names.txt")
    (tmp_path / "names.txt").write_text("\n")
    assert "names.txt names no class" in error(tmp_path, classes="names.txt")
    assert "none.txt does not exist" in error(tmp_path, classes="none.txt")


def test_empty_delimiter(tmp_path):
    assert "delimiter is empty" in error(tmp_path, delimiter="")


# Parts set aside -------------------------------------------------------------------------------------------------

FILMS = "path,film,label\n" + "".join(
    f'"{film}, {piece}.mp4",Film {film},{("run", "sit")[(film + piece) % 2]}\n'
    for film in range(10)
    for piece in range(3)
)


def test_a_part_of_the_list_is_set_aside(tmp_path):
    write(tmp_path, train="".join(f"{n}.mp4,{'run' if n < 20 else 'sit'}\n" for n in range(30)))
    data = VideoCSV(tmp_path, val=None, val_fraction=0.1)
    train, val = listing(data), listing(data, "val")
    assert len(train) == 27 and [label for _, label in val] == [0, 0, 1] and not set(train) & set(val)
    assert listing(data, "test") == val == listing(VideoCSV(tmp_path, val=None, val_fraction=0.1), "val")
    assert listing(VideoCSV(tmp_path, val=None, val_fraction=0.1, split_seed=1), "val") != val
    write(tmp_path, test="x.mp4,sit\n")
    data = VideoCSV(tmp_path, val=None, val_fraction=0.1, test="test.csv")
    assert listing(data, "test") == [("x.mp4", 1)] and listing(data, "val") == val
    write(tmp_path, train="a.mp4,0\nb.mp4,1\n")
    assert "No class of" in error(tmp_path, val=None)
    assert "val_fraction is 1" in error(tmp_path, val=None, val_fraction=1)


def test_groups_of_a_column(tmp_path):
    data = VideoCSV(write(tmp_path, train=FILMS), val=None, group="film")
    assert data.class_names == ["run", "sit"]
    sides = {split: {path.partition(",")[0] for path, _ in listing(data, split)} for split in ("train", "val")}
    assert not sides["train"] & sides["val"] and len(sides["train"] | sides["val"]) == 10 and sides["val"]
    assert listing(data, "test") == listing(data, "val")
    assert sum(len(listing(data, split)) for split in ("train", "val")) == 30
    # Two lists: a film on both sides is found.
    write(tmp_path, val="path,film,label\nx.mp4,Film 11,run\n")
    assert listing(VideoCSV(tmp_path, group="film"), "val") == [("x.mp4", 0)]
    write(tmp_path, val="path,film,label\nx.mp4,Film 3,run\n")
    assert "1 groups have videos both for training and for validation in train.csv and val.csv: Film 3" in error(
        tmp_path, group="film"
    )


def test_mistaken_groups(tmp_path):
    write(tmp_path, train=FILMS, val=FILMS)
    assert "has no column scene (its first row is 'path,film,label'); name path, label and scene" in error(
        tmp_path, group="scene"
    )
    write(tmp_path, train="path,film,label\na.mp4,,run\n")
    assert "train.csv, line 2: path, label, film are not all there" in error(tmp_path, group="film", val=None)
    write(tmp_path, train="path,film,label\n")
    assert "lists no videos" in error(tmp_path, group="film", val=None)
    assert "need a single character" in error(tmp_path, group="film", delimiter=", ")
