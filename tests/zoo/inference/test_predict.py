"""`zoo predict` and `zoo.predict` of several files, of broken ones, and of models that give no numbers."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import generate
from datamodules.video.opening import DecodeError
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.tasks.regression import VideoRegressor
from zoo.commands.main import main
from zoo.inference.features import extract
from zoo.inference.predict import UnreadableVideo

NANO = "videomamba-nano-motion"
SIZE = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "tubelet_size": 2}
CUT = ["--clips", "1", "--crops", "1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """clips/: b.mp4, deep/a.mp4 and deep/c.webm (an MP4 by another name), notes.txt; broken.mp4, empty.mp4 beside it;
    and models: nan/ with NaN in its weights, number/ that predicts one."""
    folder = tmp_path_factory.mktemp("inference")
    generate(folder / "data", num_train=0, num_val=0, num_test=3, classes=("grow", "shrink", "move_left"), num_frames=8,
             size=(48, 40), num_workers=0, progress=False)  # fmt: skip
    (folder / "clips/deep").mkdir(parents=True)
    for clip, name in zip(sorted((folder / "data/test").rglob("*.mp4")), ("b.mp4", "deep/a.mp4", "deep/c.webm"),
                          strict=True):  # fmt: skip
        shutil.copy(clip, folder / "clips" / name)
    (folder / "clips/notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    (folder / "empty.mp4").touch()
    torch.manual_seed(0)
    for name, model in (("nan", VideoClassifier(3, **SIZE)), ("number", VideoRegressor(**SIZE))):
        hub.save(model, folder / name)
    weights = folder / "nan/model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["net.head.weight"][0, 0] = torch.nan
    save_file(tensors, weights)
    config = json.loads((folder / "nan/config.json").read_text())
    config.pop("sha256")
    (folder / "nan/config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def command(workspace, monkeypatch, capsys):
    """The command in this process -> exit status, standard output, standard error."""
    monkeypatch.chdir(workspace)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return call


def test_a_broken_file_does_not_lose_the_others(command, tmp_path):
    files = ["clips/b.mp4", "broken.mp4", "empty.mp4", "clips/deep/a.mp4"]
    plot = str(tmp_path / "a.svg")
    status, out, error = command("predict", NANO, *files, *CUT, "--plot", plot)
    assert status == 1 and "Traceback" not in error
    assert "clips/b.mp4  (1 view)" in out and "deep/a.mp4  (1 view)" in out and "broken.mp4" not in out
    told = error.splitlines()
    assert len(told) == 3 and all(line.startswith("zoo: ") for line in told)
    assert "broken.mp4" in told[0] and "empty.mp4 is empty" in told[1]
    assert told[2] == "zoo: 2 of 4 videos cannot be read (see above); the first is broken.mp4."
    assert Path(plot).read_text().count("<image") >= 12  # six frames of each good one
    status, out, error = command("predict", NANO, *files, *CUT, "--json")
    assert status == 1 and [record["video"] for record in json.loads(out)] == [files[0], files[3]]
    status, out, error = command("predict", NANO, *files, "--window", "1", "--json")
    assert status == 1 and [record["video"] for record in json.loads(out)] == [files[0], files[3]]
    status, out, error = command("predict", NANO, "broken.mp4")
    assert status == 1 and out == "" and error.count("\n") == 1 and "broken.mp4" in error and "1 of" not in error
    status, out, error = command("predict", NANO, "broken.mp4", "empty.mp4")
    assert status == 1 and out == "" and error.count("\n") == 3


def test_a_folder_stands_for_its_videos(command, workspace):
    status, out, _ = command("predict", NANO, "clips", "clips/b.mp4", *CUT, "--json")
    assert status == 0
    assert [record["video"] for record in json.loads(out)] == ["clips/b.mp4", "clips/deep/a.mp4", "clips/deep/c.webm"]
    status, out, error = command("predict", NANO, "clips", "gone.mp4")
    assert status == 1 and out == "" and "There is no file or folder gone.mp4" in error
    (workspace / "none").mkdir()
    status, out, error = command("predict", NANO, "none")
    assert status == 1 and "none holds no videos (files ending in .3gp" in error


def test_predict_of_a_list(workspace):
    model = zoo.load(NANO)
    files = [
        workspace / "clips/b.mp4",
        workspace / "broken.mp4",
        workspace / "gone.mp4",
        workspace / "clips/deep/a.mp4",
    ]
    with pytest.warns(UnreadableVideo) as warned:
        found = zoo.predict(model, files, topk=2, num_clips=1, num_crops=1)
    assert [len(best) for best in found] == [2, 0, 0, 2]
    assert [name in str(one.message) for name, one in zip(("broken.mp4", "gone.mp4"), warned, strict=True)] == [
        True
    ] * 2
    assert found[0] == zoo.predict(model, files[0], topk=2, num_clips=1, num_crops=1)
    assert zoo.predict(model, [], topk=2) == []
    with pytest.raises(DecodeError, match="broken"):
        zoo.predict(model, files[1])


def test_numbers_that_are_not_finite_are_refused(command, workspace, tmp_path):
    model = VideoClassifier(3, **SIZE).eval()
    torch.nn.init.constant_(model.net.head.bias, torch.nan)
    video = workspace / "clips/b.mp4"
    for answer in (lambda: zoo.predict(model, video), lambda: zoo.timeline(model, video)):
        with pytest.raises(zoo.ZooError, match="not finite"):
            answer()
    number = VideoRegressor(**SIZE).eval()
    torch.nn.init.constant_(number.net.head.bias, torch.inf)
    with pytest.raises(zoo.ZooError, match="not finite"):
        zoo.predict_value(number, video)
    torch.nn.init.constant_(model.net.patch_embed.proj.bias, torch.nan)
    for answer in (lambda: zoo.extract_features(model, video),
                   lambda: extract(model, video, tmp_path / "features.parquet")):  # fmt: skip
        with pytest.raises(zoo.ZooError, match="not finite"):
            answer()
    assert not (tmp_path / "features.parquet").exists()
    for arguments in (["predict", "nan", "clips"], ["predict", "nan", "clips/b.mp4", "--json"],
                      ["predict", "nan", "clips/b.mp4", "--timeline", str(tmp_path / "a.png")]):  # fmt: skip
        status, out, error = command(*arguments)
        assert status == 1 and out == "" and error.count("\n") == 1 and "NaN" in error  # already loading refuses it
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--clips 1000000000", "--clips is 1000000000; it has to be from 1 to 100."),
        ("--clips -1", "--clips is -1; it has to be from 1"),
        ("--topk 0", "--topk is 0; it has to be from 1 to 100,000."),
        ("--topk 1000000000", "--topk is 1000000000; it has to be from 1 to 100,000."),
        ("--frames 100000", "--frames is 100000; it has to be from 1 to 4,096."),
        ("--window 1e-9", "--window is 1e-09; it has to be from 0.01 to 1,000,000."),
        ("--window inf", "--window is inf"),
        ("--step 1e9", "--step is 1000000000.0"),
        ("--plot noext", "noext has none of the endings .png"),
        ("--timeline a.mp4", "a.mp4 has none of the endings .png"),
    ],
)
def test_nonsense_is_refused_before_the_model_is_loaded(command, arguments, sentence):
    status, out, error = command("predict", "no-such-model", "clips/b.mp4", *arguments.split())
    assert (status, out) == (1, "") and sentence in error and error.count("\n") == 1
    assert not os.path.exists("noext") and not [name for name in os.listdir() if name.startswith(".")]


def test_windows_are_bounded_by_the_length_of_the_video(command, monkeypatch, workspace):
    """The bound is lowered here, since a video of the real one takes days."""
    monkeypatch.setattr("zoo.limits.WINDOWS", 20)
    status, _, error = command("predict", "no-such-model", "clips/b.mp4", "--window", "1", "--step", "0.01")
    assert status == 1 and "clips/b.mp4 is 1 s long, which makes 67 windows at one every 0.01 s" in error
    model = zoo.load(NANO)
    with pytest.raises(zoo.ZooError, match="and 20 are the most; move them further apart"):
        zoo.timeline(model, workspace / "clips/b.mp4", window=0.08, step=0.01)
    with pytest.warns(UnreadableVideo, match="20 are the most"):
        extract(model, workspace / "clips/b.mp4", workspace / "features.lance", window=0.1, stride=0.01, num_workers=0)


def test_a_picture_of_very_many_is_refused(command, tmp_path):
    for number in range(81):
        (tmp_path / f"{number}.mp4").touch()
    status, _, error = command("predict", "no-such-model", str(tmp_path), "--plot", "a.png")
    assert status == 1 and "There are 81 videos and a picture shows 80 at most" in error


def test_names_with_dollar_signs_are_drawn_as_they_are(workspace, tmp_path):
    """Matplotlib would read a formula between them, and fail where it is none."""
    names = [r"$\frac{", "costs 5$ or 6$", "a\x1b[2JSURROGATE"]
    hub.save(VideoClassifier(3, **SIZE, class_names=names), tmp_path / "model")
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace("SURROGATE", r"\udcff"))
    video = shutil.copy(workspace / "clips/b.mp4", tmp_path / r"$\frac{$.mp4")
    main(["predict", str(tmp_path / "model"), str(video), *CUT, "--plot", str(tmp_path / "a.png")])
    main(["predict", str(tmp_path / "model"), str(video), "--timeline", str(tmp_path / "b.pdf")])
    assert (tmp_path / "a.png").stat().st_size > 5000 and (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
