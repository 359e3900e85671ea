import pytest

from datamodules.annotations.lists import is_number, parse_json, read_csv, read_names, read_numbered, read_rows
from datamodules.errors import DataError


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
    assert is_number("9" * 18) and not is_number("9" * 19) and not is_number("1" * 5000)


def test_long_numbers_and_fields_are_named_with_their_line(tmp_path):
    path = str(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text(f"a.mp4,0\nb.mp4,{'1' * 5000}\n")
    with pytest.raises(DataError, match=r"list\.csv, line 2: label '1+' is not a number") as refused:
        read_numbered(path, ",", "")
    assert len(str(refused.value)) < 400
    (tmp_path / "list.csv").write_text(f'path,label\na.mp4,0\n"{"x" * 200_000}\n')
    with pytest.raises(DataError, match=r"list\.csv, line 3: field larger than field limit"):
        read_csv(path)
    (tmp_path / "list.csv").write_text('video , caption\n"a\nb",c\nd,e\n')
    assert [line for line, _ in read_csv(path)[1]] == [3, 4]


@pytest.mark.parametrize(("text", "reason"), [
    ("[1,\n\n" + "2" * 5000 + "]", "line 3: a number of too many digits"),
    ("[" * 100_000, "line 1: nested too deeply"), ("[1,\n2", "line 2: "), ("", "line 1: "),
])  # fmt: skip
def test_what_is_not_json(text, reason):
    with pytest.raises(DataError, match=rf"^a\.json is not JSON \({reason}.*\); download it again\.$"):
        parse_json(text, "a.json")
    with pytest.raises(DataError, match=r"^a\.json is not JSON \(line 7: .*\); fix it\.$"):
        parse_json(text, "a.json", 7, remedy="fix it")
