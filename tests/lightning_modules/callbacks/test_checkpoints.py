import subprocess
import sys

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
