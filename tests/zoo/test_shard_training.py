"""Training from tar shards behind a URL, by the commands that a user types."""

import csv
import signal
from pathlib import Path

import pytest
import torch

from datamodules.synthetic.writing import generate
from zoo.commands.main import main

pytestmark = pytest.mark.slow  # the loader's part is in tests/datamodules/shards/test_reading.py

RUN = Path("resume/version_0")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

KILLER = '''
import os, signal
from lightning.pytorch import Callback

class Killer(Callback):
    """Kills the process at the start of a batch."""

    def __init__(self, epoch: int, batch: int):
        self.place = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """34 + 5 videos as files and in shards of about four."""
    folder = tmp_path_factory.mktemp("shard_training")
    generate(folder / "data", num_train=34, num_val=5, num_test=5, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    main(["shard", str(folder / "data"), "-o", str(folder / "shards"), "--max-size", "20KB"])
    assert len(list((folder / "shards").glob("train-*.tar"))) > 6
    (folder / "killer.py").write_text(KILLER)
    return folder


def tensors(checkpoint):
    """All that a run's state has of numbers, in a fixed order."""
    state = torch.load(checkpoint)
    parts = [state["state_dict"], state["optimizer_states"], state["global_step"], state["VideoFolder"]]
    return [leaf for part in parts for leaf in leaves(part)]


def leaves(value):
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def test_a_killed_run_goes_on_in_the_middle_of_an_epoch(workspace, fit, shard_server):
    """With two workers that read over the network; every weight, the optimiser and the loader's place are equal."""
    with shard_server(workspace / "shards") as server:
        data = ["--data.root", server.url, "--data.shuffle_buffer=3", "--trainer.max_epochs=1"]
        killed = fit(workspace, "killed", *data, "--trainer.callbacks+=killer.Killer", "--trainer.callbacks.epoch=0",
                     "--trainer.callbacks.batch=11", **ONE_THREAD)  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        steps = torch.load(workspace / "killed" / RUN / "checkpoints/last.ckpt")["global_step"]
        assert 0 < steps < 9
        resumed = fit(workspace, "killed", *data, "--ckpt_path", "last", **ONE_THREAD)
        assert resumed.returncode == 0, resumed.stderr
        whole = fit(workspace, "whole", *data, **ONE_THREAD)
        assert whole.returncode == 0, whole.stderr
    runs = [tensors(workspace / name / RUN / "checkpoints/last.ckpt") for name in ("killed", "whole")]
    assert len(runs[0]) == len(runs[1]) > 50
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_two_processes_train_as_one(workspace, fit, shard_server):
    alone = ["--data.shuffle_buffer=3", "--data.mixup=0", "--data.cutmix=0", "--data.random_erasing=0",
             "--data.repeats=1", "--model.drop=0", "--model.drop_path=0",
             "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2"]  # fmt: skip
    layouts = {"one": ["--data.batch_size=4"],
               "two": ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp"]}  # fmt: skip
    curves = {}
    with shard_server(workspace / "shards") as server:
        for name, layout in layouts.items():
            done = fit(workspace, name, "--data.root", server.url, *alone, *layout, **ONE_THREAD)
            assert done.returncode == 0, done.stderr
            with (workspace / name / RUN / "metrics.csv").open() as file:
                rows = list(csv.DictReader(file))
            curves[name] = [
                float(row[key]) for key in ("train/loss", "val/loss", "val/top1") for row in rows if row[key]
            ]
    assert len(curves["one"]) > 10 and curves["one"] == pytest.approx(curves["two"], abs=1e-5)
