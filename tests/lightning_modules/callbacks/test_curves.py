"""curves.png: what is read from metrics.csv, and that a picture is there however a training ends."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader

from lightning_modules.callbacks.curves import Curves, draw_curves, plot_curves, read_curves


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_each_column_has_its_own_steps(tmp_path):
    path = write(tmp_path / "metrics.csv", [
        {"step": 1, "lr-AdamW": 0.1},
        {"step": 1, "epoch": 0, "train/loss": 3.0},
        {"step": 3, "epoch": 1, "train/loss": "nan"},
        {"step": 3, "epoch": 1, "val/top1": 0.25},
    ])  # fmt: skip
    curves, epochs = read_curves(path)
    assert set(curves) == {"lr-AdamW", "train/loss", "val/top1"}
    np.testing.assert_array_equal(curves["train/loss"], [[1, 3], [3.0, np.nan]])
    np.testing.assert_array_equal(curves["val/top1"], [[3], [0.25]])
    np.testing.assert_array_equal(epochs, [[1, 3, 3], [0, 1, 1]])


@pytest.mark.parametrize("panels", [1, 2, 4])
def test_the_picture_has_the_panels_that_have_numbers(tmp_path, panels):
    columns = ["train/loss", "val/top1", "train/clips_per_second", "lr-AdamW"][:panels]
    rows = [{"step": s, "epoch": s // 10, **dict.fromkeys(columns, s / 40)} for s in range(40)]
    plot_curves(write(tmp_path / "metrics.csv", rows), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.height == pytest.approx(3.7 * 120 * (1 if panels <= 2 else 2), abs=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ("top1 top5", "accuracy (%)"),
        ("verb_top1 action_top5_as_coded", "accuracy (%)"),
        ("t2v_r1 v2t_r10", "recall (%)"),
        ("noun_recall5", "recall (%)"),
        ("mae top1", "score"),
    ],
)
def test_scores_say_what_they_are_a_share_of(tmp_path, columns, label):
    rows = [{"step": s, **{f"val/{name}": s / 8 for name in columns.split()}} for s in range(5)]
    (panel,) = draw_curves(write(tmp_path / "metrics.csv", rows)).axes
    assert panel.get_ylabel() == label
    shares = [line for line in panel.lines if "mae" not in line.get_label()]
    assert shares and all(max(line.get_ydata()) == 50 for line in shares)


def test_speed_and_waiting_time_are_smoothed(tmp_path):
    """A mean over a twentieth of the points, beside the points themselves; few points stay as they are."""
    noise = np.random.default_rng(0).random(100)
    rows = [{"step": s, "train/clips_per_second": x, "train/data_wait": x} for s, x in enumerate(noise)]
    for count in (100, 19):
        axes = draw_curves(write(tmp_path / "metrics.csv", rows[:count])).axes
        assert [axis.get_ylabel() for axis in axes] == ["clips per second", "waiting for data (% of the time)"]
        for axis, factor in zip(axes, (1, 100), strict=True):
            drawn = [line.get_ydata() for line in axis.lines]
            np.testing.assert_allclose(drawn[0], factor * noise[:count])
            assert len(drawn) == (2 if count == 100 else 1)
            if count == 100:
                expected = [noise[max(0, i - 2) : i + 3].mean() for i in range(100)]
                np.testing.assert_allclose(drawn[1], factor * np.array(expected))


def test_nothing_is_drawn_of_nothing(tmp_path):
    plot_curves(write(tmp_path / "metrics.csv", [{"step": 0, "epoch": 0}]), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


class Failing(LightningModule):
    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.layer, self.error = torch.nn.Linear(1, 1), error

    def training_step(self, batch, batch_idx):
        if batch_idx == 5 and self.error is not None:
            raise self.error
        loss = self.layer(batch.float().view(-1, 1)).square().sum()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, error: BaseException | None) -> None:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", log_every_n_steps=1, logger=CSVLogger(folder, name="", version=""),
        callbacks=[Curves()], enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Failing(error), DataLoader(range(8)))


@pytest.mark.parametrize(
    ("error", "seen"), [(None, None), (ValueError("x"), ValueError), (KeyboardInterrupt(), SystemExit)]
)
def test_drawn_however_the_training_ends(tmp_path, error, seen):
    if seen is None:
        fit(tmp_path, error)
    else:
        with pytest.raises(seen):
            fit(tmp_path, error)
    with Image.open(tmp_path / "curves.png") as image:
        image.verify()


def test_a_picture_on_a_full_disk_leaves_nothing_behind(tmp_path):
    (tmp_path / ".curves.png.part").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="could not be drawn: .*No space left"):
        fit(tmp_path, None)
    assert [path.name for path in tmp_path.glob("curves*")] == []


def test_a_picture_that_cannot_be_drawn_fails_no_training(tmp_path):
    (tmp_path / ".curves.png.part").mkdir()
    with pytest.warns(UserWarning, match="curves.png could not be drawn"):
        fit(tmp_path, None)
