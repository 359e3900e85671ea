import json

import pytest

from datamodules.annotations.captions import Captions, read_captions, read_json, read_lines, read_table
from datamodules.errors import DataError

WANTED = [Captions("a.mp4", ("one", "three, with a comma")), Captions("b/c d.mp4", ('two "quoted"',))]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'video,caption\na.mp4,one\nb/c d.mp4,"two ""quoted"""\na.mp4,"three, with a comma"\n'),
        ("a.csv", '\ufeffid, caption ,video\r\n1, one,a.mp4\r\n2,"two ""quoted""",b/c d.mp4\r\n'
                  '\r\n3,"three, with a comma",a.mp4\r\n'),
        ("a.json", [{"video": "a.mp4", "caption": "one", "duration": 3},
                    {"video": "b/c d.mp4", "caption": ['two "quoted"']},
                    {"video": "a.mp4", "caption": ["three, with a comma"]}]),
        ("a.json", {"a.mp4": ["one", "three, with a comma"], "b/c d.mp4": ['two "quoted"']}),
    ],
)  # fmt: skip
def test_forms(tmp_path, name, content):
    assert read_captions(write(tmp_path / name, content)) == WANTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "path,caption\na,b\n", "has no column video (its first row is 'path,caption'); name the columns"),
        ("a.csv", "a.mp4,one\n", "has no column video and no column caption (its first row is 'a.mp4,one')"),
        ("a.csv", "video;caption\na;b\n", "has no column video and no column caption"),
        ("a.csv", "", "has no column video"),
        ("a.csv", "video,caption\n", "has a header but no rows"),
        ("a.csv", "video,caption\na.mp4,x\nb.mp4\n", "line 3: video or caption is missing; correct the row"),
        ("a.csv", "video,caption\na.mp4,x\n,y\n", "line 3: video or caption is missing"),
        ("a.json", "{", "is not JSON (line 1: "),
        ("a.json", "[" * 100_000, "is not JSON (line 1: nested too deeply)"),
        ("a.json", [], "is not a JSON list or object with entries"),
        ("a.json", "3", "is not a JSON list or object with entries"),
        ("a.json", [{"video": "a"}], 'an entry without caption, or with something else there: {"video": "a"}; take'),
        ("a.json", [{"video": "a", "caption": 3}], "an entry without caption"),
        ("a.json", [["a", "b"]], "an entry without video"),
        ("a.json", [{"video": "a", "caption": []}], "the captions of a are not a list of texts with one at least"),
        ("a.json", {"a": ["b", None]}, "the captions of a are not a list of texts"),
    ],
)
def test_wrong_forms(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_captions(path)
    text = str(caught.value)
    assert text.startswith(path) and message in text and "\n" not in text and text.endswith(".")


def test_lines_tables_and_keys(tmp_path):
    assert read_lines(write(tmp_path / "a.txt", "a b\r\n\n c\n")) == ["a b", "c"]
    assert read_table(write(tmp_path / "a.csv", "x,y\n1,2\n"), ["y"]) == [{"x": "1", "y": "2"}]
    with pytest.raises(DataError, match="is empty; it has to name one video on each line"):
        read_lines(write(tmp_path / "a.txt", "\n"))
    with pytest.raises(DataError, match=r"has no key sentences \(it has videos, info\)"):
        read_json(write(tmp_path / "a.json", {"videos": [], "info": 1}), dict, ["videos", "sentences"])
    with pytest.raises(DataError, match="does not exist"):
        read_json(str(tmp_path / "none.json"), dict)
