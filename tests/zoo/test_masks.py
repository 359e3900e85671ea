"""`zoo masks`: counts, the picture, JSON, mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.synthetic.writing import generate
from lightning_modules.nets.clip_tower import build_clip
from zoo.commands.main import main

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"text_config": {"vocab_size": 514, **TOWER}, "vision_config": {"image_size": 32, "patch_size": 8, **TOWER}}
SMALL = ("--frames", "4", "--size", "48", "--patch", "12")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    torch.manual_seed(0)
    build_clip(CLIP).save_pretrained(folder / "clip")
    root = generate(folder / "data", num_train=0, num_val=0, num_test=1, num_workers=0, progress=False)
    next(root.rglob("*.mp4")).rename(folder / "clip.mp4")
    return folder


@pytest.fixture
def masks(workspace, monkeypatch, capsys):
    """The command in this process -> exit status, standard output, standard error."""
    monkeypatch.chdir(workspace)

    def call(*args: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(["masks", *args])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_a_picture_of_the_mask_that_clips_attention_chose(masks):
    def told(*args: str) -> dict:
        status, out, error = masks("clip.mp4", "--teacher", "clip", "--json", *SMALL, *args)
        assert status == 0, error
        return json.loads(out)

    record = told("--plot", "out/a.png")
    assert (record["type"], record["ratio"], record["side"]) == ("attention", 0.8, 4)  # a teacher means its attention
    assert [len(frame) for frame in record["visible"]] == [4] * 4 and len(record["seconds"]) == 4
    picture = np.asarray(Image.open("out/a.png").convert("RGB")).astype(int)
    grey = (np.abs(picture - 225).max(axis=2) == 0).mean()
    # A third of the picture are the frames with 12 of 16 patches masked; margins between them take the rest.
    assert 0.75 / 3 * 0.8 < grey < 0.75 / 3
    assert told() == record
    assert told("--seed", "1")["visible"] != record["visible"]


def test_counts_are_told_by_the_real_command(workspace):
    command = [sys.executable, "-m", "zoo.commands.main", "masks", "clip.mp4", "--type", "tube", "--ratio", "0.5"]
    result = subprocess.run([*command, *SMALL], capture_output=True, text=True, timeout=600, cwd=workspace)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("clip.mp4: 32 of 64 patches stay visible (50.0%)")
    assert first.endswith("the student reads 33 tokens in place of 65.") and second == "In each frame: 8, 8, 8, 8"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("none.mp4",), "There is no file none.mp4"),
        (("clip.mp4", "--size", "50"), "--size 50 and --patch 16 do not make patches"),
        (("clip.mp4", "--type", "tube", "--ratio", "1"), "mask_ratio is 1.0; it has to be at least 0 and less than 1"),
        (("clip.mp4", "--teacher", "/nowhere/at/all"), "The CLIP checkpoint '/nowhere/at/all' cannot be read"),
    ],
)
def test_mistakes_get_one_sentence(masks, args, sentence):
    status, out, error = masks(*args)
    assert (status, out) == (1, "")
    assert sentence in error and error.count("\n") == 1
