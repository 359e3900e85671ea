import pytest

from datamodules.errors import DataError
from datamodules.lists import is_number, read_names, read_rows


@pytest.mark.parametrize("delimiter", [",", None])
def test_header_blank_lines_and_line_numbers(tmp_path, delimiter):
    (tmp_path / "list.csv").write_text('\npath,label\n\na.mp4,0\n"b,c.mp4",12\n')
    rows = read_rows(str(tmp_path / "list.csv"), delimiter)
    assert [tuple(row) for row in rows] == [(4, "a.mp4", "0"), (5, "b,c.mp4", "12")]


@pytest.mark.parametrize(("line", "rest", "label"), [
    ("a b.mp4,3", "a b.mp4", "3"), ("a, b.mp4 3", "a, b.mp4", "3"), ("a b\t3", "a b", "3"), ("a b;3", "a b", "3"),
    ("78687 48 19", "78687 48", "19"), ("a.mp4,-1", "a.mp4", "-1"),
])  # fmt: skip
def test_delimiter_is_found(tmp_path, line, rest, label):
    (tmp_path / "list.txt").write_text(line)
    assert [tuple(row) for row in read_rows(str(tmp_path / "list.txt"), None)] == [(1, rest, label)]


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4,", "17", "a.mp4,run"])
def test_delimiter_is_not_found(tmp_path, line):
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(DataError, match=r"line 1: .* is not of the form path,label; correct the row or set"):
        read_rows(str(tmp_path / "list.txt"), None)


def test_names(tmp_path):
    (tmp_path / "names.txt").write_text("b \n\na\n")
    assert read_names(str(tmp_path / "names.txt")) == ["b", "a"]
    (tmp_path / "names.txt").write_text("a\nb\nb\na\n")
    with pytest.raises(DataError, match="names 'b' twice"):
        read_names(str(tmp_path / "names.txt"))


def test_numbers():
    assert is_number("0") and is_number("-12") and not is_number("1.5") and not is_number("x") and not is_number("")
