"""The commands as a user types them: real processes for the main path, the console entries for the errors."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml
from lightning.pytorch import LightningDataModule

import zoo.cli
from datamodules.synthetic.writing import generate
from zoo.commands.main import main as zoo_main
from zoo.recipe import find_recipe, list_recipes, read_recipe

CONF = Path(__file__).parents[1] / "conf"
BIN = Path(sys.executable).parent
SMALL = dict(num_train=8, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40), num_frames=8,
             num_workers=0, progress=False)  # fmt: skip


def run(*command, cwd, check=True):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    assert (result.returncode == 0) == check, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A small generated data set and a run trained on it by the real command."""
    folder = tmp_path_factory.mktemp("cli")
    generate(folder / "data", **SMALL)
    run("lightning", "fit", "--config", CONF / "tiny.yaml", cwd=folder)
    return folder


def checkpoint(workspace):
    return next((workspace / "run" / "checkpoints").glob("*.ckpt"))


def test_fit_leaves_checkpoint_config_and_curves(workspace):
    config = yaml.safe_load((workspace / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["embed_dim"] == 16
    assert config["data"]["init_args"]["mixup"] == 0.8
    with (workspace / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/top1"] for row in rows)
    assert checkpoint(workspace).is_file()


def test_test_averages_views_and_keeps_the_record_of_the_training(workspace):
    before = (workspace / "run" / "config.yaml").read_text()
    result = run("lightning", "test", "--config", CONF / "tiny.yaml", "--ckpt_path", checkpoint(workspace),
                 "--trainer.logger", "false", cwd=workspace)  # fmt: skip
    assert "test/top1" in result.stdout
    assert (workspace / "run" / "config.yaml").read_text() == before


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_another_number_of_classes_than_the_checkpoint_is_refused(workspace, monkeypatch, capsys, command):
    path = checkpoint(workspace)
    arguments = ["--config", CONF / "tiny.yaml", "--ckpt_path", path, "--model.class_names", "null"]
    before = sorted(workspace.rglob("*"))
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["lightning", command, *map(str, arguments), "--model.num_classes", "5"])
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main()
    assert caught.value.code == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} has 2 classes and model.num_classes is 5; set it to 2" in sentence
    assert sorted(workspace.rglob("*")) == before


def test_a_text_that_is_no_yaml_is_a_text():
    """Such as the comma that lists are split at, which is a default."""
    zoo.cli.limit_jsonargparse()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    arguments = ["--data", "datamodules.VideoCSV", "--data.root", "x", "--data.delimiter", ","]
    assert parser.parse_args(arguments).data.init_args.delimiter == ","


@pytest.mark.slow
def test_predict_writes_a_row_per_video(workspace):
    run("lightning", "predict", "--config", CONF / "tiny.yaml", "--ckpt_path", checkpoint(workspace), cwd=workspace)
    with (workspace / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["path"]).parent.name for row in rows) == ["grow"] * 2 + ["move_left"] * 2
    assert all(row["truth"] == Path(row["path"]).parent.name for row in rows)
    assert all(row["label"] in ("grow", "move_left") and 0.5 <= float(row["probability"]) <= 1 for row in rows)


@pytest.mark.slow
def test_checkpoint_to_folder_to_predictions(workspace):
    """Convert, then predict by the command and by the function: the same numbers, and a picture."""
    import zoo as package

    folder = workspace / "model"
    run("zoo", "convert", checkpoint(workspace), folder, cwd=workspace)
    assert {"config.json", "model.safetensors", "recipe.yaml"} <= {p.name for p in folder.iterdir()}
    clip = next((workspace / "data" / "val" / "grow").glob("*.mp4"))
    result = run("zoo", "predict", folder, clip, "--json", "--plot", workspace / "out.png", cwd=workspace)
    (record,) = json.loads(result.stdout)
    assert (record["num_clips"], record["num_crops"]) == (4, 3)
    expected = package.predict(package.load(folder), clip)
    assert [p["label"] for p in record["predictions"]] == [p.label for p in expected]
    assert [p["probability"] for p in record["predictions"]] == pytest.approx(
        [p.probability for p in expected], abs=1e-6
    )
    assert sum(p.probability for p in expected) == pytest.approx(1.0)
    assert (workspace / "out.png").read_bytes().startswith(b"\x89PNG")
    table = run("zoo", "predict", folder, clip, "--topk", 1, cwd=workspace).stdout
    assert expected[0].label in table and f"{expected[0].probability:.1%}" in table


def test_features_are_the_class_token_or_all_tokens(workspace):
    import torch

    import zoo as package
    from datamodules.video.views import load_views

    model = package.load(checkpoint(workspace))
    clip = next((workspace / "data" / "val" / "grow").glob("*.mp4"))
    tokens = package.extract_features(model, clip, pool=None)
    assert tokens.shape == (1 + 4 * 4, 16)
    assert package.extract_features(model, clip).tolist() == pytest.approx(tokens[0].tolist(), abs=1e-6)
    video = load_views(clip, **model.preprocessing).video
    with torch.no_grad():
        assert tokens.tolist() == model.forward_features(video, pool=None)[0].tolist()


CLIPS = ["arm_wrestling.mp4", "cleaning_pool.mp4", "mpeg4_320x240.avi"]


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """Random weights of VideoMamba-Ti in the official format."""
    import torch

    import zoo as package

    torch.manual_seed(0)
    model = package.create("videomamba-ti-k400")
    path = tmp_path_factory.mktemp("official") / "videomamba_t16_k400_f16_res224.pth"
    torch.save({key.removeprefix("net."): value for key, value in model.state_dict().items()}, path)
    return path, model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_shipped_model_and_official_file_on_real_clips(shared, official_file, capsys, clip):
    """The command's probabilities are those of the network on views read independently of it."""
    from datamodules.video.views import load_views

    path, source = official_file
    video = shared / "videos" / clip
    zoo_main(["predict", "videomamba-nano-motion", str(video), "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert sum(p["probability"] for p in record["predictions"]) == pytest.approx(1.0, abs=0.05)
    assert record["predictions"][0]["label"].split("_")[0] in ("grow", "shrink", "move", "turn")

    zoo_main(
        [
            "predict",
            "videomamba-ti-k400",
            str(video),
            "--checkpoint",
            str(path),
            "--clips",
            "1",
            "--crops",
            "1",
            "--json",
        ]
    )
    (record,) = json.loads(capsys.readouterr().out)
    views = load_views(video, **source.preprocessing).video
    expected = source(views).softmax(dim=1)[0]
    for prediction in record["predictions"]:
        assert prediction["label"] == source.class_names[prediction["index"]]
        assert prediction["probability"] == pytest.approx(expected[prediction["index"]].item(), rel=1e-4)
    assert record["predictions"][0]["index"] == expected.argmax()


def errors(call, capsys):
    """Exit status and what an entry point says on stderr."""
    with pytest.raises(SystemExit) as stop:
        call()
    return stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]


# What is typed after `lightning fit --config`, the exit status, and part of the sentence.
LIGHTNING_ERRORS = [
    ("demoo", 1, "no config file and no recipe called 'demoo': did you mean 'demo'?"),
    ("{tiny} --model.lrr 3", 1, "model.lrr: VideoClassifier has no argument 'lrr': did you mean 'optim.lr'?"),
    ("{tiny} --model.lr 3", 1, "model.lr is part of model.optim: write --model.optim.lr, or in a config optim with lr"),
    ("{tiny} --model.decay_state_matrix=true", 1, "write --model.optim.decayed state_matrices, or in a config optim"),
    ("{earlier}", 1, "model.warmup_epochs is part of model.optim: write --model.optim.warmup_epochs"),
    ("{tiny} --model.checkpoint_blocks 2", 1, "model.checkpoint_blocks is model.activations now: write --model"),
    ("{tiny} --model.activations most", 1, "activations is 'most'; choose one of speed, balanced, memory."),
    ("{tiny} --model.optim.lrr 3", 1, "model.optim has no entry 'lrr': did you mean 'lr'?"),
    ("{tiny} --model.optim.lr=-1", 1, "optim.lr is -1.0; it has to be a finite number above 0."),
    ("{tiny} --model.optim null", 1, "model.optim is null; leave it out"),
    ("{tiny} --data.rooot x", 1, "VideoFolder has no argument 'rooot': did you mean 'root'?"),
    ("{tiny} --trainer.max_epoch=1", 1, "Trainer has no argument 'max_epoch': did you mean 'max_epochs'?"),
    ("{misspelled}", 1, "VideoClassifier has no argument 'embed_dimm': did you mean 'embed_dim'?"),
    ("{broken}", 1, "is not valid YAML"),
    ("{tiny} --model.num_classes abc", 2, "model.num_classes: expected int or null, got abc."),
    ("{tiny} --trainer.max_epochs x", 2, "trainer.max_epochs: expected int or null, got x."),
    ("{tiny} --data VideoFoldr", 1, "There is no data class 'VideoFoldr'"),
    ("{tiny} --data.root nowhere", 1, "nowhere is not a folder; check data.root."),
    ("{tiny} --model.num_classes 3 --model.class_names null", 1, "set model.num_classes to 2"),
    ("{tiny} --unknown 3", 2, "--unknown"),
    ("{tiny} --trainer.callbacks.Curves null", 1, "trainer.callbacks has no Curves: the config has none."),
    ("demo --trainer.callbacks.Curves 3", 1, "trainer.callbacks.Curves takes null, which leaves the callback out"),
    ("demo --trainer.callbacks.Curve null", 1, "trainer.callbacks has no Curve: did you mean 'Curves'?"),
    ("demo --trainer.callbacks.LastCheckpoint.every_minuts 3", 2, "Option 'every_minuts' is not accepted"),
    ("demo --trainer.default_root_dir s3://a/b", 1, "default_root_dir is s3://a/b: runs live in local folders"),
    ("demo --ckpt_path best", 1, "There is no best.ckpt of a run in runs/demo; train first"),
]


@pytest.mark.parametrize(("arguments", "status", "sentence"), LIGHTNING_ERRORS)
def test_lightning_explains_mistakes_in_one_sentence(workspace, monkeypatch, capsys, arguments, status, sentence):
    monkeypatch.chdir(workspace)
    content = yaml.safe_load((CONF / "tiny.yaml").read_text())
    content["model"]["init_args"]["embed_dimm"] = 3
    Path("misspelled.yaml").write_text(yaml.safe_dump(content))
    earlier = {"model": {**content["model"], "init_args": {"num_classes": 2, "warmup_epochs": 1}}}
    Path("earlier.yaml").write_text(yaml.safe_dump(earlier))
    Path("broken.yaml").write_text("model: [")
    known = {
        "tiny": CONF / "tiny.yaml",
        "misspelled": "misspelled.yaml",
        "earlier": "earlier.yaml",
        "broken": "broken.yaml",
    }
    before = sorted(workspace.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", *arguments.format(**known).split()])
    found_status, message = errors(zoo.cli.main, capsys)
    assert (found_status, message.startswith("lightning: ")) == (status, True)
    assert sentence in message
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("addition", [["--trainer.callbacks+=ModelCheckpoint"], ["--trainer.callbacks+", "Throughput"]])
def test_callbacks_of_ours_are_added_by_their_names(monkeypatch, capsys, addition):
    """Also where Lightning has one of that name, which the recipe's is, too."""
    demo = ["lightning", "fit", "--config", "demo", "--trainer.callbacks.ModelCheckpoint.tie_breaker=null"]
    monkeypatch.setattr(sys, "argv", [*demo, *addition, "--print_config"])
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main()
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert caught.value.code == 0
    assert callbacks[-1]["class_path"] == f"lightning_modules.callbacks.{addition[-1].rpartition('=')[2]}"
    best = next(c for c in callbacks if c["class_path"] == "lightning_modules.callbacks.ModelCheckpoint")
    assert best["init_args"]["tie_breaker"] is None and best["init_args"]["monitor"] == "val/top1"


@pytest.mark.parametrize("continued", [False, True])
def test_full_disk_names_the_runs_folder(workspace, tmp_path, monkeypatch, capsys, continued):
    """Only where a checkpoint is there the advice is to continue from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("data").symlink_to(workspace / "data")
    Path(f"full_{continued}.py").write_text("""
from lightning.pytorch import Callback
class Full(Callback):
    def on_train_start(self, trainer, pl_module):
        with open("/dev/full", "w") as file:
            file.write("row")
""")
    if continued:
        Path("run/checkpoints").mkdir(parents=True)
        Path("run/checkpoints/last.ckpt").touch()
    addition = f"--trainer.callbacks+=full_{continued}.Full"
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", str(CONF / "tiny.yaml"), addition])
    status, message = errors(zoo.cli.main, capsys)
    again = "continue with --ckpt_path last" if continued else "start again"
    assert status == 1
    assert message.splitlines()[-1] == (
        f"lightning: A file in run cannot be written (No space left on device); make room on that disk and {again}."
    )


def test_the_config_is_kept_where_the_logger_has_no_folder(workspace, tmp_path, monkeypatch):
    """As MLflow's, which writes to a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("data").symlink_to(workspace / "data")
    Path("remote_logger.py").write_text("""
from lightning.pytorch.loggers import Logger
class Remote(Logger):
    name, version = "remote", 0
    def log_metrics(self, metrics, step=None):
        pass
    def log_hyperparams(self, params, *args, **kwargs):
        pass
""")
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", str(CONF / "tiny.yaml"),
                                      "--trainer.logger", "remote_logger.Remote"])  # fmt: skip
    zoo.cli.main()
    config = yaml.safe_load(Path("config.yaml").read_text())
    assert config["trainer"]["logger"]["class_path"] == "remote_logger.Remote"


def test_zoo_predict_names_bad_files(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    clip = next((workspace / "data" / "val" / "grow").glob("*.mp4"))
    content = clip.read_bytes()
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("not a video")
    Path("cut.mp4").write_bytes(content[:200])
    for arguments, sentence in [
        (["nano", clip], "No model is named 'nano'"),
        (["videomamba-nano-motion", "gone.mp4"], "There is no file or folder gone.mp4"),
        ([checkpoint(workspace), "empty.mp4"], "empty.mp4"),
        ([checkpoint(workspace), "text.mp4"], "text.mp4"),
        ([checkpoint(workspace), "cut.mp4"], "cut.mp4"),
        ([checkpoint(workspace), clip, "--clips", "0"], "--clips is 0"),
        ([checkpoint(workspace), clip, "--device", "abacus"], "device 'abacus' cannot be used"),
    ]:
        status, message = errors(lambda a=arguments: zoo_main(["predict", *map(str, a), "--plot", "never.png"]), capsys)
        assert status == 1
        assert message.startswith("zoo: ") and sentence in message, message
        assert not Path("never.png").exists()


@pytest.mark.slow
def test_training_goes_on_past_a_broken_video_and_names_it(workspace, tmp_path):
    generate(tmp_path / "data", **SMALL)
    broken = next((tmp_path / "data" / "train" / "grow").glob("*.mp4"))
    broken.write_bytes(b"junk")
    result = run("lightning", "fit", "--config", CONF / "tiny.yaml", "--data.num_workers", "1", cwd=tmp_path)
    assert str(broken.name) in result.stderr
    for other in sorted((tmp_path / "data" / "train" / "grow").glob("*.mp4"))[:3]:
        other.write_bytes(b"junk")
    result = run("lightning", "fit", "--config", CONF / "tiny.yaml", cwd=tmp_path, check=False)
    assert "videos cannot be read" in result.stderr.strip().splitlines()[-1]


def test_recipes_include_their_parts():
    assert "demo" in list_recipes() and "trainer" not in list_recipes()
    recipe = read_recipe(find_recipe("demo"))
    nano = yaml.safe_load((Path(zoo.cli.__file__).parent / "models" / "videomamba-nano.yaml").read_text())
    assert recipe["model"]["class_path"] == nano["class_path"]
    assert nano["init_args"].items() <= recipe["model"]["init_args"].items()
    assert recipe["trainer"]["callbacks"]
    assert "include" not in recipe


def test_finetune_takes_the_network_from_the_donor_and_the_classes_from_the_folders(workspace, tmp_path):
    """A linear probe on the shipped model: the backbone stays the donor's, the head has the data's classes."""
    import zoo as package

    tune = ["lightning", "fit", "--config", "finetune", "--data.root", workspace / "data", "--data.num_workers", "0",
            "--model.freeze_backbone", "true", "--trainer.accelerator", "cpu"]  # fmt: skip
    start = ["--model.init_from", "videomamba-nano-motion", "--model.num_frames", "4"]
    result = run(*tune, *start, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert "a new head" in result.stderr
    donor = package.load("videomamba-nano-motion", num_frames=4)
    tuned = package.load(next(tmp_path.rglob("last.ckpt")))
    assert tuned.class_names == ["grow", "move_left"]
    assert tuned.config["init_args"]["embed_dim"] == donor.config["init_args"]["embed_dim"]
    assert tuned.preprocessing == donor.preprocessing
    ours, theirs = tuned.net.state_dict(), donor.net.state_dict()
    assert ours["head.weight"].shape == (2, 96)
    assert all(ours[key].equal(theirs[key]) for key in ours if not key.startswith("head."))

    # Resumed without repeating the start, which is another one in the recipe: the record keeps what it was.
    result = run(*tune, "--ckpt_path", "last", "--trainer.max_epochs", "2", cwd=tmp_path)
    assert "Resuming" in result.stderr
    record = yaml.safe_load((tmp_path / "runs" / "finetune" / "version_0" / "config.yaml").read_text())
    assert record["trainer"]["max_epochs"] == 2
    assert record["model"]["init_args"]["init_from"] == "videomamba-nano-motion"
