"""A run that is killed and taken up again ends with the weights of one that was not."""

import csv
import signal
from pathlib import Path

import pytest
import torch

from datamodules.synthetic.writing import generate

CHECKPOINTS = Path("resume/version_0/checkpoints")

KILLER = '''
import os, resource, signal
from lightning.pytorch import Callback

class Killer(Callback):
    """Kills the process at the start of a batch, or by the kernel in the middle of the next checkpoint's file."""

    def __init__(self, epoch: int, batch: int, writing: bool = False, interrupt: bool = False):
        self.place, self.writing, self.interrupt = (epoch, batch), writing, interrupt

    def setup(self, trainer, pl_module, stage):
        os.setpgid(0, 0)  # with the loader processes to come, as a terminal's job

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) != self.place:
            return
        if self.interrupt:
            os.killpg(0, signal.SIGINT)
            return
        if not self.writing:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would make an OSError of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
'''


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    generate(folder / "data", num_train=18, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    (folder / "killer.py").write_text(KILLER)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(workspace, fit):
    done = fit(workspace, "whole")
    assert done.returncode == 0, done.stderr
    return torch.load(workspace / "whole" / CHECKPOINTS / "last.ckpt")


def metrics(run):
    """Rows of metrics.csv: what was logged at which step."""
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def differences(a, b, place=""):
    """Where two nested states differ; NaN and the order of keys do not matter here, every bit of a tensor does."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if key not in a or key not in b:
                yield f"{place}/{key}"
            else:
                yield from differences(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{place}/{number}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield place
    elif a != b:
        yield f"{place}: {a!r} {b!r}"


# Nine batches an epoch, a checkpoint at every second step of two batches and after each epoch.
@pytest.mark.parametrize(("epoch", "batch", "writing", "signal_number"), [
    # In the middle of the first epoch, two batches after a checkpoint; between two epochs.
    pytest.param(0, 6, False, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(1, 0, False, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(2, 3, False, signal.SIGKILL, marks=pytest.mark.slow),  # between two batches of one step
    pytest.param(1, 5, True, signal.SIGXFSZ, marks=pytest.mark.slow),  # while a checkpoint is written
])  # fmt: skip
def test_killed_run_goes_on_as_if_nothing_had_happened(
    workspace, fit, uninterrupted, epoch, batch, writing, signal_number
):
    name = f"killed-{epoch}-{batch}"
    killed = fit(
        workspace, name, "--trainer.callbacks+=killer.Killer", f"--trainer.callbacks.epoch={epoch}",
        f"--trainer.callbacks.batch={batch}", f"--trainer.callbacks.writing={writing}",
    )  # fmt: skip
    assert killed.returncode == -signal_number, killed.stderr
    checkpoints = workspace / name / CHECKPOINTS
    assert not writing or (checkpoints / ".last.ckpt.part").stat().st_size == 100_000
    steps = torch.load(checkpoints / "last.ckpt")["global_step"]
    assert 0 < steps < uninterrupted["global_step"] == 15

    resumed = fit(workspace, name, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    last = torch.load(checkpoints / "last.ckpt")
    assert last["global_step"] == 15
    # Weights, their average, optimiser, schedule, counters, the loader's place. (The callbacks' paths differ.)
    assert list(differences({**last, "callbacks": {}}, {**uninterrupted, "callbacks": {}})) == []
    assert metrics(checkpoints.parent) == metrics(workspace / "whole" / CHECKPOINTS.parent)


# Within an epoch; and in its last batch, so that the validation is broken off and the step before counts.
@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "batch", "steps"), [(1, 3, 7), (1, 8, 9)])
def test_interrupted_run_ends_after_its_batch_and_goes_on(workspace, fit, uninterrupted, epoch, batch, steps):
    """Ctrl-C reaches the loader processes too."""
    name = f"interrupted-{epoch}-{batch}"
    stopped = fit(
        workspace, name, "--trainer.callbacks+=killer.Killer", f"--trainer.callbacks.epoch={epoch}",
        f"--trainer.callbacks.batch={batch}", "--trainer.callbacks.interrupt=true",
    )  # fmt: skip
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr, stopped.stderr
    assert "Stopping after this batch" in stopped.stderr and "--ckpt_path last" in stopped.stderr.splitlines()[-1]
    checkpoints = workspace / name / CHECKPOINTS
    assert torch.load(checkpoints / "last.ckpt")["global_step"] == steps
    resumed = fit(workspace, name, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    last = torch.load(checkpoints / "last.ckpt")
    assert list(differences({**last, "callbacks": {}}, {**uninterrupted, "callbacks": {}})) == []
    assert metrics(checkpoints.parent) == metrics(workspace / "whole" / CHECKPOINTS.parent)
