"""A loss that is no number: real Trainers, one process and two."""

import subprocess
import sys
import textwrap

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_modules.callbacks import FiniteLoss
from lightning_modules.errors import ModelError


class Line(LightningModule):
    """The loss is the mean of weight * value, NaN for the video whose value is NaN."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch["value"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def videos(bad):
    return [{"value": float("nan" if i in bad else i), "path": f"videos/{i}.mp4"} for i in range(12)]


def fit(module, bad, folder, **kwargs):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[FiniteLoss()], default_root_dir=folder,
                      **quiet, **kwargs)  # fmt: skip
    trainer.fit(module, DataLoader(videos(bad), batch_size=2))
    return trainer


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 3), (2, 1), (3, 1)])
def test_stops_before_the_step_and_names_the_files(tmp_path, accumulated, steps):
    """Batch 3 has video 7. With steps of one batch three are done, the means 0.5, 2.5, 4.5 are gone from the weight."""
    module = Line()
    with pytest.raises(ModelError) as caught:
        fit(module, {7}, tmp_path, accumulate_grad_batches=accumulated)
    text = str(caught.value)
    assert f"step {steps} (epoch 0)" in text and "videos/6.mp4, videos/7.mp4;" in text and "8.mp4" not in text
    taken = torch.arange(6.0).view(3, 2).mean(dim=1)[: steps * accumulated].sum() / accumulated
    torch.testing.assert_close(module.weight.detach(), 1 - 0.1 * taken)


def test_infinite_is_not_finite(tmp_path):
    module = Line()
    with torch.no_grad():
        module.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="step 0"):
        fit(module, set(), tmp_path)


def test_finite_losses_pass(tmp_path):
    assert fit(Line(), set(), tmp_path).global_step == 6


def test_modules_of_the_zoo_have_it():
    from lightning_modules import VideoClassifier

    module = VideoClassifier(num_classes=2, embed_dim=16, depth=1, num_frames=2, image_size=16)
    assert [type(callback) for callback in module.configure_callbacks()] == [FiniteLoss]


@pytest.mark.slow
def test_both_processes_stop_and_name_the_file_of_one(tmp_path):
    """Without an agreement the other process would take the step with averaged NaN gradients, and save it."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import importlib.util, os, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        module = helpers.Line()
        try:
            helpers.fit(module, {{7}}, {str(tmp_path)!r}, devices=2, strategy="ddp_fork")
        except Exception as error:
            open({str(tmp_path)!r} + "/parent.txt", "w").write(str(error))
        """)
    )
    done = subprocess.run([sys.executable, str(script)], timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "parent.txt").read_text()
    assert "videos/7.mp4" in text and "step 1" in text and "videos/6.mp4" not in text
