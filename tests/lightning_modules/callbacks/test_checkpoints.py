import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_modules.callbacks import AtomicCheckpointIO

SCRIPT = """
import resource, signal, sys, torch
from lightning_modules.callbacks import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
AtomicCheckpointIO().save_checkpoint({"value": torch.ones(100_000)}, sys.argv[1])
"""


def test_killed_while_writing(tmp_path):
    """The kernel ends the process at byte 200,000 of 400,000; the earlier file stays and the next save succeeds."""
    path = tmp_path / "deep" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"value": torch.zeros(100_000)}, path)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)])
    assert done.returncode < 0
    assert [f.stat().st_size for f in path.parent.glob(".*.part")] == [200_000]
    assert not io.load_checkpoint(path)["value"].any()
    io.save_checkpoint({"value": torch.ones(100_000)}, path)
    assert io.load_checkpoint(path)["value"].all()
    assert [f.name for f in path.parent.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_written_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: 1}, path)
    assert torch.load(path) == {"value": 1}


def test_urls_are_written_too():
    io = AtomicCheckpointIO()
    io.save_checkpoint({"value": 3}, "memory://runs/last.ckpt")
    assert io.load_checkpoint("memory://runs/last.ckpt", weights_only=True) == {"value": 3}


FULL = """
import resource, signal, sys, torch
from lightning_modules.callbacks import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    AtomicCheckpointIO().save_checkpoint({"value": torch.ones(100_000)}, sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


DEATH = RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")


@pytest.mark.parametrize("error", [DEATH, KeyboardInterrupt()], ids=["death", "ctrl-c"])
def test_what_a_signal_raises_while_writing_is_no_fault_of_the_disk(tmp_path, error):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": torch.zeros(3_000_000)}, path)
    raised = 0

    def handler(*_):
        nonlocal raised
        raised += 1
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for delay in np.linspace(1e-4, 3e-2, 40):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                AtomicCheckpointIO().save_checkpoint({"value": torch.zeros(3_000_000)}, path)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except type(error) as caught:
                assert caught is error
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised > 10
    assert len(torch.load(path)["value"]) == 3_000_000 and [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(("earlier", "remedy"), [
    ("last.ckpt", "continue from {folder}/last.ckpt, which is whole, with --ckpt_path last.\n"),
    pytest.param(None, "start again, as there is no earlier checkpoint beside it.\n", marks=pytest.mark.slow),
])  # fmt: skip
def test_full_disk_is_told_and_leaves_the_earlier_file(tmp_path, earlier, remedy):
    path = tmp_path / "last.ckpt"
    if earlier:
        AtomicCheckpointIO().save_checkpoint({"value": torch.zeros(100_000)}, path)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.stdout.startswith(f"ModelError The checkpoint {path} cannot be written (File too large); make room")
    assert done.stdout.endswith(remedy.format(folder=tmp_path))
    assert [f.name for f in tmp_path.iterdir()] == ([earlier] if earlier else [])
    assert not earlier or not torch.load(path)["value"].any()
