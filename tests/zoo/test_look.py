"""`zoo info` on models that the registry does not name: folders, runs, checkpoints, repositories."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hub
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.tasks.regression import VideoRegressor
from zoo.commands.main import main

ZOO = Path(sys.executable).with_name("zoo")
SIZE = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "tubelet_size": 2}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """model/ and number/, folders in the hub format."""
    folder = tmp_path_factory.mktemp("look")
    torch.manual_seed(0)
    hub.save(VideoClassifier(2, **SIZE, class_names=["grow", "turn \x1b[2J"]), folder / "my model")
    hub.save(VideoRegressor(**SIZE), folder / "number")
    return folder


@pytest.fixture
def info(workspace, monkeypatch, capsys):
    """`zoo info` in this process -> what it prints; of a program that fails, its sentence."""
    monkeypatch.chdir(workspace)

    def call(*arguments: str, status: int = 0) -> str:
        try:
            main(["info", *arguments])
            left = 0
        except SystemExit as exit_:
            left = exit_.code
        printed = capsys.readouterr()
        assert left == status, printed
        return printed.err if status else printed.out

    return call


def test_a_folder(info):
    text = info("my model")
    facts = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    assert facts["task"].strip() == "video classification" and facts["weights"].strip() == "my model"
    assert facts["classes"].strip() == r"2: grow, turn \x1b[2J"
    assert facts["input"].strip() == "4 frames of 32 x 32 px, sparse sampling"
    assert "zoo predict 'my model' clip.mp4" in text and 'zoo.load("my model")' in text
    record = json.loads(info("my model", "--json"))
    assert record["class_path"] == "lightning_modules.VideoClassifier" and record["init_args"]["num_frames"] == 4
    assert f"{record['meta']['params']:,} parameters" in facts["size"]
    assert "zoo.predict_value(model" in info("number")


def test_a_run_and_its_checkpoint(info, workspace, fit):
    generate(workspace / "data", num_train=4, num_val=2, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    done = fit(workspace, "runs", "--trainer.max_epochs", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (str(path.relative_to(workspace)) for path in workspace.glob("runs/**/version_0"))
    text = info(run)
    assert "scores" in text and "validation top1" in text and f"zoo predict {run} clip.mp4" in text
    (best,) = workspace.glob(f"{run}/checkpoints/best.ckpt")
    assert str(best.relative_to(workspace)) in text
    assert json.loads(info(str(best), "--json"))["meta"]["scores"].keys() >= {"validation top1"}


@pytest.mark.slow
def test_a_repository(hub_server, workspace, tmp_path):
    files = {path.name: path.read_bytes() for path in (workspace / "number").iterdir()}
    commit = hub_server.commit("me/number", files)
    env = hub_server.environment(tmp_path)
    for name in ("me/number", "hf://me/number@main"):
        done = subprocess.run([ZOO, "info", name], env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert f"me/number, model.safetensors, revision {commit}" in done.stdout and "video regression" in done.stdout
        assert f"zoo predict {name} clip.mp4" in done.stdout and "no: the first use" in done.stdout
    assert not hub_server.count("model.safetensors")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("videomamba-m-k40", "did you mean videomamba-m-k400"),
        ("./gone", "./gone does not exist"),
        ("gone/model/", "gone/model/ does not exist"),
        ("hf://model", "hf://model is not a repository; write hf://organisation/name"),
        ("number/config.json", "does not say which model it is"),
        ("..", "is no"),
    ],
)
def test_what_is_no_model(info, name, sentence):
    told = info(name, status=1)
    assert told.count("\n") == 1 and (sentence in told or name == "..")
