"""What fails under a run - a loader process, the disk, the data - ends it with one sentence, and the run can go on."""

from pathlib import Path

import pytest
import torch

from datamodules.synthetic.writing import generate

LAST = Path("resume/version_0/checkpoints/last.ckpt")

SABOTEUR = '''
import os, resource, signal
from pathlib import Path
from lightning.pytorch import Callback

class Saboteur(Callback):
    """Breaks something at the start of the second epoch."""

    def __init__(self, what: str):
        self.what = what

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and self.what == "disk":  # as a full disk, writing fails from here on
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        if trainer.current_epoch == 1 and self.what == "root":
            Path("data").rename("elsewhere")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1 and self.what == "worker":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
'''


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    generate(folder / "data", num_train=18, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    (folder / "saboteur.py").write_text(SABOTEUR)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("what", "sentence"), [
    ("worker", "lightning: A loader process died"),
    ("disk", "cannot be written (File too large); make room on that disk"),
    ("root", "videos cannot be read, as the folder data/"),
])  # fmt: skip
def test_run_ends_with_a_sentence_and_goes_on(workspace, fit, what, sentence):
    failed = fit(workspace, what, "--trainer.callbacks+=saboteur.Saboteur", f"--trainer.callbacks.what={what}")
    if what == "root":
        (workspace / "elsewhere").rename(workspace / "data")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr[-3000:]
    *_, last_line = failed.stderr.splitlines()
    assert last_line.startswith("lightning: ") and sentence in last_line and "--ckpt_path last" in last_line
    before = torch.load(workspace / what / LAST)["global_step"]
    assert 0 < before < 15
    assert not list((workspace / what / LAST.parent).glob(".*"))

    resumed = fit(workspace, what, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert torch.load(workspace / what / LAST)["global_step"] == 15
