"""A number for each video, through the commands: fit, test, predict, save, load, start from, and mistakes."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import generate
from datamodules.video.views import load_views
from hub.card import About, about_run, make_card
from lightning_modules import VideoClassifier, VideoRegressor
from zoo.build import initialise
from zoo.cli import ZooCLI
from zoo.cli import main as lightning_main
from zoo.commands.main import main as zoo_main
from zoo.errors import ZooError

TINY = {"embed_dim": 16, "depth": 2, "image_size": 32, "short_side": 36, "num_frames": 4}
MEAN = 11.76425435683139


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Generated videos as scenes of films with views, 10 for one kind of motion and a million for the other."""
    root = tmp_path_factory.mktemp("lvu") / "data"
    generate(root, num_train=8, num_val=4, num_test=4, classes=("grow", "move_left"), size=(48, 40), num_frames=8,
             num_workers=0, progress=False)  # fmt: skip
    (root / "view_count").mkdir()
    for split in ("train", "val", "test"):
        rows = ["view_count youtube_id imdb_id"]
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            name = f"-{split}{i}"
            video.rename(root / f"{name}.mp4")
            rows.append(f"{10 if video.parent.name == 'grow' else 10**6} {name} tt0000000")
        (root / "view_count" / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def lightning(folder: Path, monkeypatch, *arguments: str) -> ZooCLI:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
    return ZooCLI()


def options(data: Path) -> list[str]:
    model = [f"--model.{key}={value}" for key, value in TINY.items()]
    return ["--config", "videomamba-ti-lvu-regression", f"--data.root={data}", "--data.task=view_count", *model,
            "--data.batch_size=2", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1",
            "--trainer.max_epochs=1", "--trainer.precision=32", "--model.init_from=null",
            "--trainer.callbacks.RichProgressBar=null"]  # fmt: skip


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """The folder of a run of the recipe at reduced size."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        lightning(folder, monkeypatch, "fit", *options(data))
    return folder / "runs" / "videomamba-ti-lvu-regression" / "version_0"


def views_of(model: VideoRegressor, video: Path) -> torch.Tensor:
    return load_views(video, **model.preprocessing, num_clips=4, num_crops=3).video


def by_hand(model: VideoRegressor, video: Path) -> float:
    """Mean over the 12 views of what the network says, and the data's mean."""
    with torch.inference_mode():
        said = torch.cat([model.net(model.normalise(view[None])) for view in views_of(model, video)])
    return said.double().mean().item() + MEAN


def test_a_run_keeps_its_best_checkpoint_by_error_and_says_what_it_predicts(run):
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/mse"]]
    assert len(rows) == 1 and float(rows[0]["val/mse"]) > 0 and float(rows[0]["val/mae"]) > 0
    assert (run / "curves.png").is_file() and (run / "checkpoints" / "best.ckpt").is_file()
    model = zoo.load(run)
    assert isinstance(model, VideoRegressor) and not model.training
    assert (model.value_name, model.value_mean) == ("log_view_count", MEAN)


def test_test_and_predict(run, data, monkeypatch):
    arguments = [*options(data), "--ckpt_path", "best", "--data.num_clips", "4"]
    model = zoo.load(run)
    expected = {f"{data}/-test{i}.mp4": by_hand(model, data / f"-test{i}.mp4") for i in range(4)}
    cli = lightning(run.parents[2], monkeypatch, "test", *arguments)
    errors = [value - math.log(10 if i < 2 else 10**6) for i, value in enumerate(expected.values())]
    scores = cli.trainer.callback_metrics
    assert scores["test/mse"] == pytest.approx(sum(error**2 for error in errors) / 4, rel=1e-4)
    assert scores["test/mae"] == pytest.approx(sum(map(abs, errors)) / 4, rel=1e-4)
    lightning(run.parents[2], monkeypatch, "predict", *arguments)
    with (run.parent / "predict_0" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: float(row["log_view_count"]) for row in rows} == pytest.approx(expected, rel=1e-5)
    assert [float(row["truth"]) for row in rows] == pytest.approx([math.log(10)] * 2 + [math.log(10**6)] * 2, rel=1e-5)


def test_one_value_by_function_and_by_command(run, data, tmp_path, capsys, monkeypatch):
    model = zoo.load(run)
    folder = hub.save(model, tmp_path / "model")
    video = data / "-test0.mp4"
    expected = by_hand(model, video)
    assert zoo.predict_value(model, video) == pytest.approx(expected, rel=1e-5)
    again = zoo.load(folder)
    assert again.config == model.config
    assert zoo.predict_value(str(folder), video) == zoo.predict_value(again, video) == zoo.predict_value(model, video)
    assert zoo.extract_features(model, video).shape == (16,)

    monkeypatch.setattr(sys, "argv", ["zoo", "predict", str(folder), str(video), "--json"])
    zoo_main()
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["value_name"], record["num_clips"], record["num_crops"]) == ("log_view_count", 4, 3)
    assert record["value"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(sys, "argv", ["zoo", "predict", str(folder), str(video), str(data / "-test1.mp4")])
    zoo_main()
    out = capsys.readouterr().out
    assert "log_view_count" in out and f"{expected:.4g}" in out and "-test1.mp4" in out


def error(monkeypatch, capsys, main, *command: str) -> str:
    monkeypatch.setattr(sys, "argv", list(command))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    return capsys.readouterr().err


def test_mistakes_are_explained_in_one_sentence(run, data, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = str(run / "checkpoints" / "best.ckpt")
    text = error(monkeypatch, capsys, zoo_main, "zoo", "predict", model, f"{data}/-test0.mp4", "--plot", "out.png")
    assert f"{model} predicts a number, and --plot and --timeline show classes; leave them out." in text
    with pytest.raises(ZooError, match=r"VideoRegressor predicts a number and no classes; use zoo\.predict_value\."):
        zoo.predict(zoo.load(run), data / "-test0.mp4")
    with pytest.raises(ZooError, match=r"VideoClassifier predicts no number; use a VideoRegressor\."):
        zoo.predict_value(VideoClassifier(2, **TINY), data / "-test0.mp4")
    rest = ["--data.root", str(data), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]

    def fit(*arguments: str) -> str:
        return error(monkeypatch, capsys, lightning_main, "lightning", "fit", *arguments, *rest)

    text = fit("--config", "videomamba-ti-lvu", "--data.task=view_count", "--data.mixup=0", "--data.cutmix=0")
    assert "LVU does not say how many classes there are; set model.num_classes, or train a VideoRegressor" in text
    text = fit("--model", "VideoRegressor", "--model.value_name=likes", "--data", "LVU", "--data.task=view_count")
    assert "The model predicts likes and the data has log_view_count" in text
    text = fit("--config", "videomamba-ti-lvu-regression", "--data.task", "view")
    assert "task is 'view'; LVU's are relationship, " in text and "view_count." in text


def test_the_head_is_taken_where_it_predicts_the_same_number(run):
    donor = zoo.load(run)

    def started(module) -> tuple[bool, bool]:
        taken = initialise(module, run)
        head = torch.equal(module.net.head.weight, donor.net.head.weight)
        assert torch.equal(module.net.layers[1].norm.weight, donor.net.layers[1].norm.weight)
        assert torch.equal(module.net.patch_embed.proj.weight, donor.net.patch_embed.proj.weight)
        return taken, head

    assert started(VideoRegressor(**TINY)) == (True, True)
    assert started(VideoRegressor(**TINY, value_name="log_view_count")) == (True, True)
    assert started(VideoRegressor(**TINY, value_name="like_ratio")) == (False, False)
    assert started(VideoClassifier(1, **TINY)) == (False, False)
    assert started(VideoClassifier(3, **TINY)) == (False, False)


def test_the_registered_model_and_frames(tmp_path):
    entry = zoo.info("videomamba-ti-lvu-regression")
    assert entry.weights is None and entry.task == "video-regression"
    model = zoo.create(entry.name, **{key: value for key, value in TINY.items() if key != "num_frames"})
    assert isinstance(model, VideoRegressor) and model.preprocessing["num_frames"] == 32 and model.training
    folder = hub.save(model, tmp_path / "model")
    longer = zoo.load(folder, num_frames=48)
    assert longer.net.temporal_pos_embedding.shape == (1, 48, 16)
    with pytest.raises(
        ZooError, match="has no released weights; `lightning fit --config videomamba-ti-lvu-regression`"
    ):
        zoo.load(entry.name)


def test_the_card_of_a_run(run):
    checkpoint = zoo.build.read_local(run)
    about = about_run(checkpoint)
    card = make_card(checkpoint, about, "me/views")
    assert about.dataset == "LVU, view_count" and "predicts log_view_count" in card
    assert 'print(zoo.predict_value(model, "clip.mp4"))' in card and "zoo predict me/views clip.mp4" in card
    assert "| mse | validation |" in card and "%" not in card.partition("## Results")[2].partition("##")[0]
    image = VideoRegressor(**TINY | {"num_frames": None})
    found = hub.checkpoint.Checkpoint(image.config, image.state_dict())
    assert 'zoo.predict_value(model, "photo.jpg")' in make_card(found, About(), "me/photos")
