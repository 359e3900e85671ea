"""Files are replaced as a whole or not at all."""

import pytest

from lightning_modules.files import written


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with written(target) as beside:
        beside.write_text("new")
        assert target.read_text() == "old" and beside.parent == tmp_path
    assert target.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), written(target) as beside:
        beside.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]
