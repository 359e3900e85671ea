"""LastCheckpoint: when it writes, and that it writes where ModelCheckpoint(save_last=True) does not."""

import os
import signal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from lightning_modules.callbacks.last import LastCheckpoint


class Worse(LightningModule):
    """Its score falls from epoch to epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch.float().view(-1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", 1.0 - self.current_epoch / 10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Record(Callback):
    """The steps that each written checkpoint holds."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self.steps.append(checkpoint["global_step"])


class Interrupt(Callback):
    """Ctrl-C, so many times, in the batch that becomes step 6."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == 5:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def fit(folder, every_minutes: float, ckpt_path=None, times: int = 0, **kwargs) -> tuple[Trainer, Record]:
    record = Record()
    best = ModelCheckpoint(monitor="val/top1", mode="max", filename="best", enable_version_counter=False)
    trainer = Trainer(
        **{"max_epochs": 3, **kwargs}, accelerator="cpu", default_root_dir=folder, logger=False, num_sanity_val_steps=0,
        callbacks=[record, best, Interrupt(times), LastCheckpoint(every_minutes)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Worse(), DataLoader(range(8), batch_size=2), DataLoader(range(2)), ckpt_path=ckpt_path)
    return trainer, record


def steps(folder, name: str) -> int:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]


def test_written_after_every_epoch_whatever_the_score(tmp_path):
    _, record = fit(tmp_path, every_minutes=30)
    assert record.steps == [4, 4, 8, 12]  # the best and the last of the first epoch, then only the last
    assert (steps(tmp_path, "best"), steps(tmp_path, "last")) == (4, 12)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_written_within_an_epoch_between_two_optimiser_steps(tmp_path):
    _, record = fit(tmp_path, every_minutes=0, max_epochs=1, log_every_n_steps=1)
    assert record.steps == [1, 2, 3, 4, 4]
    _, record = fit(tmp_path, every_minutes=0, max_epochs=1, log_every_n_steps=2)
    assert record.steps == [1, 3, 4, 4]
    _, record = fit(tmp_path, every_minutes=0, max_epochs=1, log_every_n_steps=1, accumulate_grad_batches=3)
    assert record.steps == [1, 2, 2]  # after batches 3 and 4 of 4, the last being the epoch's end


@pytest.mark.parametrize(("times", "error", "status", "last"), [(1, SIGTERMException, 130, 6), (2, SystemExit, 1, 4)])
def test_ctrl_c_stops_after_the_batch_and_pressed_again_at_once(tmp_path, times, error, status, last):
    with pytest.raises(error) as caught:
        fit(tmp_path, every_minutes=30, times=times)
    assert caught.value.code == status
    assert steps(tmp_path, "last") == last
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_continued_run_keeps_the_best_score_and_file(tmp_path):
    fit(tmp_path, every_minutes=30, max_epochs=2)
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    content = (moved / "checkpoints" / "best.ckpt").read_bytes()
    trainer, record = fit(moved, every_minutes=30, max_epochs=4, ckpt_path=str(moved / "checkpoints" / "last.ckpt"))
    assert record.steps == [12, 16]
    best = trainer.checkpoint_callback
    assert best.best_model_score == 1.0
    assert best.best_model_path == str(moved / "checkpoints" / "best.ckpt")
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == content
