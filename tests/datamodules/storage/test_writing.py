"""Files and folders that are there complete or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.storage.writing import written, written_folder

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("locked", [False, True])
def test_a_file_appears_when_its_block_has_run(tmp_path, locked):
    path = tmp_path / "a.tar"
    path.write_text("old")
    with written(path, locked=locked) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyError), written(path, locked=locked) as beside:
        beside.write_text("half")
        raise KeyError
    with written(path, locked=locked) as beside:  # nothing to write after all
        pass
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_written_over(tmp_path):
    code = """
import os, signal, sys, pathlib
from datamodules.storage.writing import written
with written(pathlib.Path(sys.argv[1]), locked=True) as beside:
    beside.write_text("a long half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "a.tar"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, timeout=600)
    assert done.returncode == -signal.SIGKILL and not path.exists() and len(list(tmp_path.iterdir())) == 1
    with written(path, locked=True) as beside:
        beside.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, [], ["old"]])
def test_a_folder_appears_when_its_block_has_run(tmp_path, before):
    path = tmp_path / "above" / "set"
    if before is not None:
        path.mkdir(parents=True)
        for name in before:
            (path / name).touch()
    with pytest.raises(KeyError), written_folder(path) as beside:
        (beside / "half").touch()
        raise KeyError
    assert (before is not None) == path.exists() and (not before or os.listdir(path) == before)
    with written_folder(path) as beside:
        (beside / "new").touch()
        assert not (path / "new").exists()
    assert os.listdir(path) == ["new"] and list(path.parent.iterdir()) == [path]
    other = tmp_path / "other"
    other.mkdir()
    assert path.stat().st_mode == other.stat().st_mode  # not private, as temporary folders are
