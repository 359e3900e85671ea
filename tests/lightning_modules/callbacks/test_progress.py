"""The bar in a terminal, and the lines in a log file."""

import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_modules.callbacks import RichProgressBar
from lightning_modules.callbacks.progress import _text


class Many(LightningModule):
    """Logs more than fits in a line."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = 0 * self.layer(batch.float().view(-1, 1)).sum()
        self.log("train/loss", 1.25, prog_bar=True)
        self.log_dict({f"train/metric_number_{i}": 0.5 for i in range(12)}, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", 0.75, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Draw(Callback):
    """Draws every state of the bar, whatever the clock says."""

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.progress_bar_callback.refresh(hard=True)


def fit(folder, *loaders, **kwargs) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, logger=False, callbacks=[RichProgressBar(), Draw()],
                      enable_model_summary=False, enable_checkpointing=False, **kwargs)  # fmt: skip
    trainer.fit(Many(), *loaders)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_one_line_in_a_terminal(tmp_path, monkeypatch, capsys, width):
    for name, value in (("COLUMNS", str(width)), ("TERM", "xterm"), ("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"),
                        ("TTY_INTERACTIVE", "1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    fit(tmp_path, DataLoader(range(40)), max_epochs=2)
    written = capsys.readouterr().out
    assert "\x1b[1A" not in written  # the cursor never has to go up
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", written)]
    drawn = [line for line in lines if "40/40" in line]
    assert drawn and all(len(line) <= width for line in drawn)
    assert any("loss 1.250, metric_nu" in line and line.rstrip().endswith("…") for line in drawn)
    assert sum(bool(re.match(r"Epoch [01]/1 \(\d+ s\): loss 1.250, ", line)) for line in lines) == 2


def test_a_line_for_each_epoch_in_a_file(tmp_path, capsys):
    fit(tmp_path, DataLoader(range(4)), DataLoader(range(2)), max_epochs=3, check_val_every_n_epoch=2)
    written = capsys.readouterr().out
    assert "\r" not in written and "\x1b" not in written
    lines = written.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["Epoch 0/2", "Epoch 1/2", "Epoch 2/2"]
    assert ["val/top1 0.750" in line for line in lines] == [False, True, False]


def test_epochs_without_a_known_number(tmp_path, capsys):
    fit(tmp_path, DataLoader(range(4)), max_steps=4)
    assert capsys.readouterr().out.startswith("Epoch 0 (")


def test_switched_off(tmp_path, capsys):
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[RichProgressBar(refresh_rate=0)], max_epochs=1,
                      default_root_dir=tmp_path, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(Many(), DataLoader(range(4)))
    assert capsys.readouterr().out == ""


def test_names_and_numbers():
    values = {"train/loss": 1.32849, "train/clips_per_second": 140.2, "val/top1": 1.0, "val/loss": 0.00004, "x": 0.0}
    assert _text(values) == "loss 1.328, clips/s 140, val/top1 1.000, val/loss 4.0e-05, x 0.000"
    assert _text({"val/loss": float("nan"), "val/mse": 12.345}) == "val/loss nan, val/mse 12.3"
