"""A training with fewer steps an epoch than the logging interval has a curve all the same."""

import csv
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.callbacks import LogInterval


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch.float().view(-1, 1)).square().sum()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        self.steps = self.trainer.estimated_stepping_batches  # loads the data, as a schedule does
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(6))


@pytest.mark.parametrize(("data", "arguments", "steps"), [
    (range(6), {}, [5, 11]),
    (range(6), {"log_every_n_steps": 2}, [1, 3, 5, 7, 9, 11]),
    (range(6), {"accumulate_grad_batches": 4}, [1, 3]),  # two steps an epoch
    (range(60), {}, [49, 99]),
    (range(60), {"limit_train_batches": 3}, [2, 5]),
    (Endless(), {"max_steps": 12}, []),  # nobody knows how many there are
])  # fmt: skip
def test_an_interval_is_no_longer_than_an_epoch(tmp_path, data, arguments, steps):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=CSVLogger(tmp_path, name="", version=""), callbacks=[LogInterval()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **arguments,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Line(), DataLoader(data))
    assert not [w for w in caught if "logging interval" in str(w.message)]
    path = tmp_path / "metrics.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    assert [int(row["step"]) for row in rows] == steps
