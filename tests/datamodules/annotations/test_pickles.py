import os
import pickle
from collections import OrderedDict

import pytest

from datamodules.annotations.pickles import read_pickle
from datamodules.errors import DataError

CONTENT = {"eyhzDC936uk_15_27": [["a", "man", "is", "café", "cooking"], ["someone", "cooks"]], "n": [1, -2.5, 2**70]}


def refused(path):
    with pytest.raises(DataError) as caught:
        read_pickle(str(path))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(path)) and text.endswith(".") and text.count(". ") == 0
    return text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    assert read_pickle(str(path)) == CONTENT


def test_byte_strings_of_python_2(tmp_path):
    """What Python 2.7 writes for {"a": [["caf\\xc3\\xa9"]]} with protocol 2."""
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x01aq\x01]q\x02]q\x03U\x05caf\xc3\xa9q\x04aas.")
    assert read_pickle(str(path)) == {"a": [["café"]]}


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", [lambda it: it, lambda it: {"a": [["b", it]]}, lambda it: [it] * 3])
def test_exploit_does_not_run(tmp_path, protocol, place):
    path, mark = tmp_path / "raw-captions.pkl", tmp_path / "was_here"
    path.write_bytes(pickle.dumps(place(Exploit(f"touch {mark}")), protocol))
    text = refused(path)
    assert f"holds {os.system.__module__}.system, but only lists, strings, dicts and numbers are read" in text
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have worked


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",  # REDUCE
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b'cbuiltins\neval\n(S\'open("{}", "w")\'\ntR.',
    ],
)
def test_hand_made_exploits(tmp_path, code):
    path, mark = tmp_path / "evil.pkl", tmp_path / "was_here"
    path.write_bytes(code.replace(b"{}", str(mark).encode()))
    assert "system" in (text := refused(path)) or "builtins.eval" in text
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


def test_persistent_ids(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"P1\n.")
    assert "a reference to an object outside the file" in refused(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": ("b",)}, "a tuple"),
        ({"a": {"b"}}, "__builtin__.set"),
        ({"a": b"bytes"}, "_codecs.encode"),
        ({"a": [None]}, "a NoneType"),
        ({("a", "b"): "c"}, "a tuple"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (3j, "__builtin__.complex"),
    ],
)
def test_other_types_are_refused(tmp_path, value, name):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(value, 2))
    assert f"holds {name}, but only" in refused(path)


@pytest.mark.parametrize(
    ("value", "name"), [({"a": {"b"}}, "a set"), ([b"x"], "a bytes"), ([frozenset()], "frozenset")]
)
def test_other_types_of_newer_protocols(tmp_path, value, name):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(value, 4))
    assert name in refused(path)


def test_damaged_files(tmp_path):
    whole = pickle.dumps(CONTENT)
    for number, data in enumerate([whole[:-5], b"", b"not a pickle", whole[:20] + b"\xff" * 9, b"\x80\x63."]):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(data)
        assert "is not a complete pickle" in refused(path)
    with pytest.raises(DataError, match="does not exist"):
        read_pickle(str(tmp_path / "none.pkl"))


def test_data_that_holds_itself_or_itself_many_times(tmp_path):
    """A walk through every path would not end."""
    path = tmp_path / "knot.pkl"
    knot = {}
    knot["a"] = [knot]
    doubled = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    for value, what in ((knot, "data that holds itself"), (doubled, "more than 100000000 values")):
        path.write_bytes(pickle.dumps(value))
        assert f"holds {what}, but only" in refused(path)
    twice = ["a", "man"]
    path.write_bytes(pickle.dumps({"a": [twice, twice], "b": twice}))
    assert read_pickle(str(path)) == {"a": [twice, twice], "b": twice}


@pytest.mark.parametrize("data", [
    b"]r\xff\xff\xff\x7f.",  # a place in the memo: room for two billion others
    b"]p2147483647\n.",
    b"\x80\x04\x95\xff\xff\xff\xff\x00\x00\x00\x00].",  # a frame of 4 GB
    b"\x8e\xff\xff\xff\xff\x01\x00\x00\x00.",  # bytes, 8 GB
    b"\x96\xff\xff\xff\xff\x01\x00\x00\x00.",
    b"X\xff\xff\xff\x7f.",
    b"\x8b\xff\xff\xff\x7f.",
    b"I" + b"9" * 5000 + b"\n.",
    b"]p" + b"9" * 5000 + b"\n.",
])  # fmt: skip
def test_few_bytes_take_little_memory(tmp_path, data):
    path = tmp_path / "greedy.pkl"
    path.write_bytes(data)
    assert "is not a complete pickle (ValueError: " in refused(path)
