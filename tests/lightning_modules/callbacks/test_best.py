"""The best checkpoint where scores are equal, in real fits that are resumed too."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_modules.callbacks import LastCheckpoint, ModelCheckpoint

NAN = float("nan")


class Scores(LightningModule):
    """Logs a given score and loss in each epoch."""

    def __init__(self, epochs: list[tuple[float, float | None]]) -> None:
        super().__init__()
        self.layer, self.epochs = torch.nn.Linear(1, 1), epochs

    def training_step(self, batch, batch_idx):
        return self.layer(batch.float().view(-1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        score, loss = self.epochs[self.current_epoch]
        self.log("val/score", score)
        if loss is not None:
            self.log("val/loss", loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, epochs, ckpt_path=None, **kwargs) -> ModelCheckpoint:
    arguments = {"monitor": "val/score", "mode": "max", "tie_breaker": "val/loss", "filename": "best",
                 "enable_version_counter": False, "auto_insert_metric_name": False}  # fmt: skip
    best = ModelCheckpoint(**{**arguments, **kwargs})
    trainer = Trainer(
        max_epochs=len(epochs), accelerator="cpu", default_root_dir=folder, logger=False, num_sanity_val_steps=0,
        callbacks=[best, LastCheckpoint()], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Scores(epochs), DataLoader(range(2)), DataLoader(range(1)), ckpt_path=ckpt_path)
    return best


def epoch_of(path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize(("epochs", "mode", "best"), [
    ([(0.5, 0.9), (1.0, 0.341), (1.0, 0.093), (1.0, 0.2)], "max", 2),
    ([(1.0, 0.1), (0.5, 0.9), (0.5, 0.3), (0.5, 0.3)], "min", 2),  # the earlier of equal ones
    ([(0.5, 0.1), (1.0, 0.9)], "max", 1),  # the score goes first
    ([(1.0, NAN), (1.0, 0.9), (1.0, NAN)], "max", 1),
    ([(1.0, None), (1.0, None)], "max", 0),  # not logged
])  # fmt: skip
def test_lower_loss_wins_among_equal_scores(tmp_path, epochs, mode, best):
    callback = fit(tmp_path, epochs, mode=mode)
    assert epoch_of(callback.best_model_path) == best
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


def test_without_a_tie_breaker_it_is_lightnings(tmp_path):
    assert epoch_of(fit(tmp_path, [(1.0, 0.3), (1.0, 0.1)], tie_breaker=None).best_model_path) == 0


def test_several_kept_are_ranked_by_both(tmp_path):
    epochs = [(1.0, 0.5), (1.0, 0.2), (1.0, 0.3), (0.9, 0.1), (1.0, 0.4)]
    callback = fit(tmp_path, epochs, save_top_k=2, filename="{epoch}")
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["1.ckpt", "2.ckpt", "last.ckpt"]
    assert callback.best_model_path == str(folder / "1.ckpt")
    # What a checkpoint says of itself is what was chosen, not what the score alone would choose.
    (state,) = (s for k, s in torch.load(folder / "2.ckpt")["callbacks"].items() if k.startswith("ModelCheckpoint"))
    assert state["best_model_path"] == str(folder / "1.ckpt")


def test_a_resumed_run_knows_the_loss_of_its_best_even_when_moved(tmp_path):
    epochs = [(1.0, 0.2), (1.0, 0.3), (1.0, 0.25), (1.0, 0.1)]
    fit(tmp_path, epochs[:2])
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    last = str(moved / "checkpoints" / "last.ckpt")
    callback = fit(moved, epochs[:3], ckpt_path=last)
    assert epoch_of(callback.best_model_path) == 0
    assert epoch_of(fit(moved, epochs, ckpt_path=last).best_model_path) == 3


def test_a_run_of_lightnings_callback_is_resumed(tmp_path):
    fit(tmp_path, [(1.0, 0.2), (0.5, 0.3)])
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last)
    for state in checkpoint["callbacks"].values():
        state.pop("ties", None)
    torch.save(checkpoint, last)
    callback = fit(tmp_path, [(1.0, 0.2), (0.5, 0.3), (0.9, 0.1)], ckpt_path=str(last))
    assert epoch_of(callback.best_model_path) == 0 and callback.best_model_score == 1.0


def test_the_best_is_named_at_the_end(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path, [(0.5, 0.3)])
    assert f"Best val/score: 0.5, in {tmp_path}/checkpoints/best.ckpt" in caplog.text
