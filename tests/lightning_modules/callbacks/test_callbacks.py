"""What holds for every callback of ours."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

import lightning_modules.callbacks
from hub import PushToHub

OURS = {name: getattr(lightning_modules.callbacks, name) for name in lightning_modules.callbacks.__all__}
OURS = {name: cls for name, cls in OURS.items() if issubclass(cls, Callback)} | {"PushToHub": PushToHub}


class Data(LightningDataModule):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def setup(self, stage: str) -> None:
        raise self.error


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("name", OURS)
def test_an_error_before_the_callbacks_setup_comes_out_unchanged(tmp_path, name, stage):
    callback = OURS[name]("me/model") if name == "PushToHub" else OURS[name]()
    error = FileNotFoundError("There is no data/train.csv.")
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path, name="", version=""), callbacks=[callback],
        default_root_dir=tmp_path, enable_model_summary=False,
        **({} if name == "RichProgressBar" else {"enable_progress_bar": False}),
        **({} if name in ("LastCheckpoint", "ModelCheckpoint") else {"enable_checkpointing": False}),
    )  # fmt: skip
    with pytest.raises(FileNotFoundError) as caught:
        getattr(trainer, stage)(Line(), datamodule=Data(error))
    assert caught.value is error and caught.value.__context__ is None
