"""Two processes train and score as one with the same global batch, by the commands that a user types."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.synthetic.writing import generate

CONFIG = Path(__file__).parents[1] / "conf" / "resume.yaml"
# What each process draws for itself is off: mixing and dropout. Augmentation of single videos is on.
OWN = ["--data.mixup=0", "--data.cutmix=0", "--data.random_erasing=0", "--model.drop=0", "--model.drop_path=0"]
LAYOUTS = {
    "one": ["--data.batch_size=4"],
    # What `srun` and several machines come down to: the processes are started from outside.
    "torchrun": ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp"],
    "two": ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp"],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    generate(folder / "data", num_train=34, num_val=5, num_test=5, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    return folder


def lightning(workspace, subcommand, name, *arguments):
    binaries = Path(sys.executable).parent
    program = [binaries / "lightning"]
    if name == "torchrun":
        program = [binaries / "torchrun", "--standalone", "--nproc-per-node=2", "-m", "zoo.cli"]
    command = [*program, subcommand, "--config", CONFIG, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
               f"--trainer.default_root_dir={name}", *OWN, *arguments]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kind = "version_0" if subcommand == "fit" else "test_0"
    with (workspace / name / "resume" / kind / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def curve(rows, name):
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


@pytest.mark.slow
def test_two_processes_train_as_one(workspace):
    rows = {name: lightning(workspace, "fit", name, *layout) for name, layout in LAYOUTS.items()}
    for name, points in (("train/loss", 8), ("val/loss", 2), ("val/top1", 2)):
        one, *others = (curve(rows[layout], name) for layout in LAYOUTS)
        assert len(one) == points
        for other in others:
            assert one == pytest.approx(other, abs=1e-5), name
    assert len(set(curve(rows["one"], "train/loss").values())) == 8
    last = {name: torch.load(workspace / name / "resume/version_0/checkpoints/last.ckpt") for name in LAYOUTS}
    for key, weight in last["one"]["state_dict"].items():
        for layout in LAYOUTS:
            torch.testing.assert_close(last[layout]["state_dict"][key], weight, rtol=0, atol=1e-4)

    best = f"--ckpt_path={workspace / 'one/resume/version_0/checkpoints/best.ckpt'}"
    scores = [lightning(workspace, "test", name, best, *layout)[-1] for name, layout in LAYOUTS.items()]
    for name in ("test/top1", "test/loss"):
        values = [float(score[name]) for score in scores]
        assert values == pytest.approx([values[0]] * 3, abs=1e-6)
