"""Folders are replaced as a whole or not at all."""

import os

import pytest

from hub.files import written


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "deep" / "model"
    with written(target) as beside:
        (beside / "a").write_text("new")
        assert not target.exists() and beside.parent == target.parent
    assert (target / "a").read_text() == "new" and names(target.parent) == ["model"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path, there):
    target = tmp_path / "model"
    if there:
        target.mkdir()
        (target / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), written(target) as beside:
        (beside / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["model"] * there
    assert not there or (target / "a").read_text() == "old"


def test_a_folder_is_replaced_with_all_it_holds(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "gone").write_text("old")
    with written(target) as beside:
        (beside / "a").write_text("new")
    assert names(target) == ["a"] and names(tmp_path) == ["model"]


def test_the_old_folder_returns_where_the_new_one_cannot_be_renamed(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(OSError), written(target) as beside:
        os.rmdir(beside)  # nothing is left to rename
    assert (target / "a").read_text() == "old" and names(tmp_path) == ["model"]
