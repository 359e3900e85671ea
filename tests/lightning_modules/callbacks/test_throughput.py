"""Throughput by a clock that data, steps, validation and checkpoints set forward by lengths of their own."""

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_modules.callbacks import throughput
from lightning_modules.callbacks.throughput import Throughput

FETCH, STEP, PAUSE = 0.25, 0.5, 4.0  # seconds


class Clock:
    """Stands in for the module `time`: it goes on only where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = Clock()


class Slow(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        time.sleep(STEP)
        return self.layer(batch["video"].flatten(1)[:, :1]).sum()

    def validation_step(self, batch, batch_idx):
        time.sleep(PAUSE)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Batches(DataLoader):
    """4 clips every FETCH seconds."""

    def __init__(self, count: int, timed: bool) -> None:
        super().__init__(range(count), batch_size=1)
        if timed:
            self.waited = 0.0

    def __iter__(self):
        for _ in range(len(self)):
            time.sleep(FETCH)
            if hasattr(self, "waited"):
                self.waited += FETCH
            yield {"video": torch.zeros(4, 3, 1, 2, 2)}


class SlowSaving(Callback):
    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step % 3 == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/x.ckpt")
            time.sleep(PAUSE)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(throughput, "time", time)


def fit(folder, timed: bool = True, **kwargs) -> tuple[list[float], list[float]]:
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", log_every_n_steps=4, default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""), callbacks=[Throughput(), SlowSaving()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        **kwargs,
    )  # fmt: skip
    trainer.fit(Slow(), Batches(12, timed), Batches(1, False))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [[float(row[c]) for row in rows if row.get(c)] for c in ("train/clips_per_second", "train/data_wait")]


def test_speed_and_wait_leave_out_validation_and_saving(tmp_path):
    speed, wait = fit(tmp_path)
    # Four steps each time, one of them after a checkpoint: the clock stands still until that step's batch is there.
    assert speed == pytest.approx([4 * 4 / (4 * STEP + 3 * FETCH)] * 6)
    assert wait == pytest.approx([3 * FETCH / (4 * STEP + 3 * FETCH)] * 6)


def test_accumulated_batches_count_and_a_plain_loader_has_no_wait(tmp_path):
    speed, wait = fit(tmp_path, timed=False, accumulate_grad_batches=3)
    batches, saved = 12, (5, 3)  # a batch that only adds to the gradient leaves the step as it was: saved again
    assert speed == pytest.approx([4 * batches / (batches * STEP + (batches - n) * FETCH) for n in saved])
    assert wait == []
