"""`zoo extract`: features of windows are the model's, and land in one table that resumes."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

import zoo
from datamodules.annotations.features import FeatureTable
from datamodules.synthetic.kitchen import generate_kitchen
from datamodules.video.decode import VideoReader
from datamodules.video.resize import center_crop
from datamodules.video.sampling import clip_indices
from lightning_modules.tasks.classification import VideoClassifier
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.inference.features import extract, find_sources

pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Ten videos of 6 seconds."""
    return generate_kitchen(tmp_path_factory.mktemp("features") / "kitchen", num_train=4, num_val=5, num_test=1,
                            actions=3, size=(32, 32), num_frames=12, num_workers=0, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return VideoClassifier(2, embed_dim=16, depth=1, num_frames=4, image_size=32, tubelet_size=2).eval()


def of_video(path, name):
    """Features (n, width) and seconds (n, 2) of one video in a table."""
    table = FeatureTable(str(path))
    first, last = table.places[name]
    return table.features[first:last], table.seconds[first:last]


def test_features_are_the_models_on_each_window(kitchen, tower, tmp_path):
    done = extract(tower, kitchen, tmp_path / "cls.parquet", window=1.0, stride=0.5, num_workers=0)
    videos = find_sources(kitchen)
    assert done == (len(videos), len(videos), 0, 0, 0, 110) and len(videos) == 10
    path = videos[0]
    features, seconds = of_video(tmp_path / "cls.parquet", path.stem)
    last = 6.0 - 1 / 12  # of 6 seconds at 12 frames a second
    assert features.shape == (11, 16) and seconds.shape == (11, 2)
    assert ((seconds[:, 0] - torch.arange(11) / 2).abs() < 0.1).sum() >= 10
    assert seconds.max() <= last + 1e-4
    # The fourth window by another way: the whole video decoded, its frames from 1.5 to 2.5 seconds.
    with VideoReader(path) as reader:
        positions = 18 + clip_indices(13, 4, sampling="sparse", mode="val")
        clip = center_crop(reader.read(positions, short_side=32), 32)
    with torch.no_grad():
        expected = tower.forward_features(clip.transpose(0, 1)[None])[0]
    torch.testing.assert_close(features[3], expected, rtol=1e-4, atol=1e-5)

    frames = extract(tower, path, tmp_path / "frames.lance", tokens="frames", window=1.0, stride=1.0, num_workers=1)
    assert frames.read == 1
    features, seconds = of_video(tmp_path / "frames.lance", path.stem)
    assert features.shape == (2 * 6, 16)  # 6 windows, 2 tubelets each
    assert (seconds.mean(1).diff() >= 0).all()


def test_the_callable_gives_the_rows_of_the_table(kitchen, tower, tmp_path):
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    paths = [str(path) for path in find_sources(kitchen)[:3]]
    features = zoo.VideoFeatures(tower, window=1.0, batch_size=4)
    rows = features({"path": [*paths, str(tmp_path / "torn.mp4")]})
    assert [*rows] == ["path", "start", "end", "features", "size", "mtime", "error"]
    assert rows["features"][-1] is rows["start"][-1] is None and "torn.mp4" in rows["error"][-1]
    extract(tower, paths, tmp_path / "all.parquet", window=1.0, batch_size=4, num_workers=0)
    table = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    made = zip(rows["path"], rows["start"], rows["end"], rows["features"], rows["size"], rows["mtime"], strict=True)
    expected = {(path, start): rest for path, start, *rest in made if start is not None}
    assert len(table) == len(expected) == 18
    for row in table:
        end, vector, *state = expected[os.path.normpath(tmp_path / row["path"]), row["start"]]
        np.testing.assert_allclose(row["features"], vector, atol=1e-6)
        assert (row["end"], row["size"], row["mtime"], row["error"]) == (end, *state, None)
    span = features({"path": paths[:1], "start": [2.0], "end": [4.0]})
    assert span["start"] == pytest.approx([2.0, 3.0], abs=0.1) and max(span["end"]) <= 4


@pytest.mark.parametrize("name", ["all.parquet", "all.lance"])
def test_an_interrupted_extraction_goes_on(kitchen, tower, tmp_path, name):
    out, videos = tmp_path / name, [str(path) for path in find_sources(kitchen)]
    first = extract(tower, videos[:4], out, window=2.0, num_workers=0)
    assert first == (4, 4, 0, 0, 0, 20)
    assert extract(tower, kitchen, out, window=2.0, num_workers=0) == (10, 6, 0, 4, 0, 50)
    assert extract(tower, kitchen, out, window=2.0, num_workers=0) == (10, 0, 0, 10, 0, 50)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing half-written
    with pytest.raises(ZooError, match=r"was made with other settings \(window 2\.0\); choose another name"):
        extract(tower, kitchen, out, window=3.0, num_workers=0)
    with pytest.raises(ZooError, match="was made with other weights"):
        extract(VideoClassifier(2, 16, 1, num_frames=4, image_size=32, tubelet_size=2), kitchen, out, window=2.0,
                num_workers=0)  # fmt: skip
    shutil.copytree(kitchen, tmp_path / "mine")
    mine = find_sources(tmp_path / "mine")
    assert extract(tower, tmp_path / "mine", out, window=2.0, num_workers=0)[:5] == (10, 10, 0, 0, 0)
    mine[0].unlink()
    mine[1].write_bytes(b"no video")
    with pytest.warns(UserWarning, match=r"cannot be opened .* \(no features of it\)"):
        again = extract(tower, tmp_path / "mine", out, window=2.0, num_workers=0)
    assert again == (9, 0, 1, 8, 2, 50 + 8 * 5 + 1)
    assert extract(tower, tmp_path / "mine", out, window=2.0, num_workers=0) == (9, 0, 1, 8, 0, 50 + 8 * 5 + 1)


def test_places_that_hold_something_else_are_refused(kitchen, tower, tmp_path):
    rows = pa.table({"path": ["a"]})
    parquet.write_table(rows, tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "folder.lance").mkdir()
    (tmp_path / "folder.lance/mine.txt").write_text("text")
    (tmp_path / "file.lance").write_text("text")
    video = find_sources(kitchen)[0]
    zoo.index("videomamba-nano-motion", video, tmp_path / "index.lance", num_workers=0)
    for name, words in (
        ("features", "has none of the endings .parquet, .lance"),
        ("other.parquet", "is a table of another kind"),
        ("text.parquet", "is there and cannot be read as Parquet"),
        ("folder.lance", "exists and is no table of videos"),
        ("index.lance", "exists and is no table of videos"),
        ("file.lance", "is a file and is not replaced; name a folder"),
        ("a b.lance", "has characters that no Lance table may have"),
        ("no/../x\0.parquet", "cannot be written"),
    ):
        with pytest.raises(ZooError, match=words):
            extract(tower, video, tmp_path / name, num_workers=0)
    with pytest.raises(ZooError, match="is a URL, where a Parquet file cannot grow"):
        extract(tower, video, "s3://bucket/a.parquet", num_workers=0)
    with pytest.raises(ZooError, match="is written by one process; use --ray"):
        extract(tower, video, tmp_path / "a.parquet", shard=(1, 2))
    assert (tmp_path / "text.parquet").read_text() == "text" and not (tmp_path / "a.parquet").exists()


def test_lists_and_shards_are_sources(kitchen, tower, tmp_path, capsys):
    videos = find_sources(kitchen)
    (tmp_path / "list.txt").write_text(f"{videos[0]}\n\nmine.mp4\n")
    (tmp_path / "list.csv").write_text(f"label,path\nx,{videos[1]}\ny,mine.mp4\n")
    shutil.copy(videos[2], tmp_path / "mine.mp4")
    done = extract(tower, [tmp_path / "list.txt", tmp_path / "list.csv"], tmp_path / "a.parquet", num_workers=0)
    assert done.videos == done.read == 3
    assert extract(tower, tmp_path / "list.txt", tmp_path / "a.parquet", num_workers=0)[:5] == (2, 0, 0, 2, 0)

    (tmp_path / "clips/a").mkdir(parents=True)
    for number in range(3):
        shutil.copy(videos[number], tmp_path / f"clips/a/{number}.mp4")
    main(["shard", str(tmp_path / "clips"), "-o", str(tmp_path / "shards")])
    done = extract(tower, tmp_path / "shards", tmp_path / "b.parquet", num_workers=1)
    assert done.videos == done.read == 3
    assert extract(tower, tmp_path / "shards", tmp_path / "b.parquet", num_workers=0).kept == 3
    rows = parquet.read_table(tmp_path / "b.parquet").to_pylist()
    assert all(".tar!" in row["path"] and row["path"].startswith("shards/") for row in rows)
    alone, _ = of_video(tmp_path / "a.parquet", "mine")
    together, _ = of_video(tmp_path / "b.parquet", "2")
    torch.testing.assert_close(alone, together)
    for name, text, words in (
        ("no.csv", "a,b\n", "has no column path"),
        ("latin.txt", "\xe9", "cannot be read as a list"),
        ("empty.txt", "", "names no videos"),
    ):
        (tmp_path / name).write_text(text, encoding="latin-1")
        with pytest.raises(ZooError, match=words):
            extract(tower, tmp_path / name, tmp_path / "c.parquet")
    (tmp_path / "shards" / "train.index.jsonl").write_text("{}")
    with pytest.raises(Exception, match="is no complete index of shards"):
        extract(tower, tmp_path / "shards", tmp_path / "c.parquet")
    capsys.readouterr()


def test_the_head_of_a_table_says_what_made_it(kitchen, tmp_path):
    video = find_sources(kitchen)[0]
    main(["extract", "videomamba-nano-motion", str(video), "-o", str(tmp_path / "a.parquet"), "--workers", "0"])
    head = json.loads(parquet.read_schema(tmp_path / "a.parquet").metadata[b"video-mamba-zoo"])
    assert head["model"]["source"] == "videomamba-nano-motion" and len(head["model"]["sha256"]) == 64
    assert head["settings"] == {"tokens": "cls", "window": 2.0, "stride": 1.0, "precision": "fp32"}
    assert head["columns"] == ["features"]


def test_which_videos_are_found(tmp_path):
    for name in ("a/videos/P01_01.MP4", "a/rgb_frames/P01_01.tar", "a/flow_frames/P01_01.tar", "a/.hidden/x.mp4",
                 "b/P02_01/frame_0000000001.jpg", "b/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_sources(tmp_path) == [tmp_path / "a/rgb_frames/P01_01.tar", tmp_path / "b/P02_01"]
    (tmp_path / "b" / "P01_01.webm").touch()
    (tmp_path / "a/rgb_frames/P01_01.tar").unlink()
    names = ["a/videos/P01_01.MP4", "b/P01_01.webm", "b/P02_01"]
    assert find_sources(tmp_path) == [tmp_path / name for name in names]
    with pytest.raises(ZooError, match="holds no videos"):
        find_sources(tmp_path / "a" / ".hidden" / "nothing")
