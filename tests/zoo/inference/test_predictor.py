"""`zoo predict -o` and `zoo.VideoPredictor`: the labels of `zoo.predict`, in one table that resumes."""

import json
import os
import shutil

import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.regression import VideoRegressor
from zoo.commands.main import main

pytest.importorskip("lancedb")
parquet = pytest.importorskip("pyarrow.parquet")

NANO = "videomamba-nano-motion"
SIZE = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "tubelet_size": 2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips of 0.67 s and a broken file."""
    folder = tmp_path_factory.mktemp("predictor")
    generate(folder / "data", num_train=0, num_val=0, num_test=6, classes=("grow", "shrink"), num_frames=8,
             size=(48, 40), num_workers=0, progress=False)  # fmt: skip
    shutil.move(folder / "data/test", folder / "clips")
    (folder / "clips/torn.mp4").write_bytes(b"torn" * 100)
    return folder / "clips"


def test_labels_are_those_of_predict(clips):
    paths = sorted(map(str, clips.rglob("*.mp4")))
    predictor = zoo.VideoPredictor(NANO, topk=3)
    rows = predictor({"path": paths})
    assert [*rows] == ["path", "start", "end", "labels", "probabilities", "size", "mtime", "error"]
    assert rows["path"] == paths
    for number, path in enumerate(paths):
        if path.endswith("torn.mp4"):
            assert "torn.mp4 cannot be opened" in rows["error"][number] and rows["labels"][number] is None
            continue
        expected = zoo.predict(NANO, path, topk=3)
        assert rows["labels"][number] == [one.label for one in expected] and rows["error"][number] is None
        assert rows["probabilities"][number] == pytest.approx([one.probability for one in expected], abs=1e-6)
        state = os.stat(path)
        assert (rows["size"][number], rows["mtime"][number]) == (state.st_size, state.st_mtime_ns)
        assert (rows["start"][number], rows["end"][number]) == (0.0, pytest.approx(8 / 12))
    assert predictor(paths[:1]) == {name: values[:1] for name, values in rows.items()}
    part = predictor({"path": paths[:1], "start": [0.0], "end": [0.3]})
    assert (part["start"], part["end"]) == ([0.0], [0.3])
    assert part["probabilities"][0] != rows["probabilities"][0]
    assert sum(zoo.VideoPredictor(NANO, topk=99)(paths[:1])["probabilities"][0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["labels.parquet", "labels.lance"])
def test_a_table_of_labels_is_written_once_and_kept_up(clips, tmp_path, capsys, name):
    shutil.copytree(clips, tmp_path / "clips")
    out = str(tmp_path / name)
    command = ["predict", NANO, str(tmp_path / "clips"), "-o", out, "--topk", "2", "--workers", "1", "--clips", "1"]

    def run(*more):
        main([*command, *more, "--json"])
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        assert found.pop("predictions") == out
        return found, printed.err

    first, warned = run()
    assert first == {"videos": 7, "predicted": 6, "unreadable": 1, "kept": 0, "dropped": 0, "rows": 7}
    assert warned.count("\n") == 1 and "torn.mp4 cannot be opened" in warned and "(no prediction of it)" in warned
    again = {"videos": 7, "predicted": 0, "unreadable": 1, "kept": 6, "dropped": 0, "rows": 7}
    assert run() == (again, "")
    clip = next((tmp_path / "clips").glob("*/*.mp4"))
    shutil.copy(clip, tmp_path / "clips/torn.mp4")
    clip.unlink()
    later, warned = run()
    assert later == {"videos": 6, "predicted": 1, "unreadable": 0, "kept": 5, "dropped": 2, "rows": 6} and not warned
    assert sorted(os.listdir(tmp_path)) == ["clips", name]
    with pytest.raises(SystemExit):
        run("--crops", "1")
    assert "was made with other settings (num_crops 3); choose another name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--precision", "bf16")
    assert "was made with other settings (precision fp32); choose another name" in capsys.readouterr().err

    if name.endswith(".parquet"):  # by the ordinary reader of the format
        rows = parquet.read_table(out).to_pylist()
    else:
        rows = pytest.importorskip("lancedb").connect(tmp_path).open_table("labels").to_arrow().to_pylist()
    paths = sorted(row["path"] for row in rows)
    assert paths == sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "clips").rglob("*.mp4"))
    (row,) = [row for row in rows if row["path"] == "clips/torn.mp4"]
    expected = zoo.predict(NANO, tmp_path / "clips/torn.mp4", topk=2, num_clips=1)
    assert row["labels"] == [one.label for one in expected] and row["error"] is None
    assert row["probabilities"] == pytest.approx([one.probability for one in expected], abs=1e-6)


def test_a_regressor_gives_values(clips, tmp_path, capsys):
    torch.manual_seed(0)
    hub.save(VideoRegressor(**SIZE), tmp_path / "number")
    main(["predict", str(tmp_path / "number"), str(clips / "torn.mp4"), str(next(clips.glob("*/*.mp4"))), "-o",
          str(tmp_path / "a.parquet"), "--workers", "0"])  # fmt: skip
    assert "2 videos: 1 predicted now, 0 kept, 1 unreadable, 0 dropped; 2 rows." in capsys.readouterr().out
    found, broken = sorted(parquet.read_table(tmp_path / "a.parquet").to_pylist(), key=lambda row: row["error"] or "")
    path = os.path.normpath(tmp_path / found["path"])
    assert found["value"] == pytest.approx(zoo.predict_value(tmp_path / "number", path), abs=1e-5)
    assert broken["value"] is None and "torn.mp4" in broken["error"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", "1"], "--workers, --ray and --shard are for tables; name one with -o."),
        (["-o", "a.parquet", "--window", "2"], "-o writes one row for each video; omit --plot"),
        (["-o", "a.csv"], "a.csv has none of the endings .parquet, .lance; name a table with one of them."),
        (["-o", "a.parquet", "--ray", " "], "--ray is empty; write auto"),
        (["-o", "a.parquet", "--shard", "1/2"], "--shard 1/2 is gone; start a command without it"),
    ],
)
def test_mistakes_are_one_sentence(clips, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["predict", NANO, str(clips), *options])
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
