"""What files, classes and servers are called reaches the terminal as text, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len

import hub
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.classification import VideoClassifier
from zoo.commands.console import show
from zoo.commands.main import main, report
from zoo.printable import clock, printable, printable_warnings

ZOO = Path(sys.executable).with_name("zoo")
CLEAR, TITLE = "\x1b[2J", "\x1b]0;owned\x07"
CLASSES = [f"red{CLEAR}", f"{TITLE}blue", "abc\u202egnp.exe", ":smile: [bold]x[/bold]", "two\nlines\r\t",
           "caf\u00e9 \u7121", "half \ud83d"]  # fmt: skip
ESCAPED = [r"red\x1b[2J", r"\x1b]0;owned\x07blue", r"abc\u202egnp.exe", ":smile: [bold]x[/bold]", r"two\nlines\r\t",
           "caf\u00e9 \u7121", r"half \ud83d"]  # fmt: skip
FILE = os.fsdecode(b"a\xff\x1b[31m:smile:.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with hostile class names, and two videos: one of a hostile name, one that is empty."""
    folder = tmp_path_factory.mktemp("printable")
    torch.manual_seed(0)
    names = [*CLASSES[:-1], "HALF"]
    model = VideoClassifier(len(CLASSES), 16, 1, num_frames=4, image_size=32, tubelet_size=2, class_names=names)
    hub.save(model, folder / "model")
    config = folder / "model/config.json"  # UTF-8 has no half of a pair, but JSON's escapes do
    config.write_text(config.read_text().replace("HALF", r"half \ud83d"))
    generate(folder / "data", num_train=0, num_val=0, num_test=1, classes=("grow",), size=(48, 40), num_frames=8,
             num_workers=0, progress=False)  # fmt: skip
    shutil.copy(next((folder / "data/test").rglob("*.mp4")), folder / FILE)
    (folder / f"empty{CLEAR}.mp4").touch()
    return folder


def acting(text):
    """Characters of a text that a terminal acts on."""
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char != "\n"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, na\u00efve \u7121\u3000\u00a0 \U0001f600", None),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian is spelled with a joiner
        ("\x00\x07\x1b\x7f\x9b", r"\x00\x07\x1b\x7f\x9b"),
        ("\n\r\t\u2028", r"\n\r\t\u2028"),
        ("\u202a\u2066\u200f\ufeff\U000e0041", r"\u202a\u2066\u200f\ufeff\U000e0041"),
        (os.fsdecode(b"\xc3\x28"), r"\xc3("),
        ("\ud800x", r"\ud800x"),
    ],
)
def test_what_is_escaped(text, shown):
    assert printable(text) == (text if shown is None else shown)


def test_predict_in_a_pipe(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    main(["predict", "model", FILE, "--topk", "9"])
    table = capsys.readouterr().out
    assert not acting(table) and r"a\xff\x1b[31m:smile:.mp4" in table
    assert all(label in table for label in ESCAPED)
    lines = [line for line in table.splitlines() if line.endswith("%")]
    assert len(lines) == len(CLASSES) and len({cell_len(line) for line in lines}) == 1  # aligned
    main(["predict", "model", FILE, "--topk", "9", "--json"])
    text = capsys.readouterr().out
    (record,) = json.loads(text)
    assert not acting(text) and "caf\u00e9 \u7121" in text
    assert record["video"] == FILE and {found["label"] for found in record["predictions"]} == set(CLASSES)


def test_errors_and_wrong_usage(folder, capsys):
    for arguments, status, shown in [
        (["predict", str(folder / "model"), str(folder / f"empty{CLEAR}.mp4")], 1, r"empty\x1b[2J.mp4"),
        (["predict", str(folder / "model"), f"gone{TITLE}"], 1, r"gone\x1b]0;owned\x07"),
        (["info", f"videomamba{CLEAR}"], 1, r"\x1b[2J"),
        (["list", "a", f"--{CLEAR}"], 2, r"--\x1b[2J"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        error = capsys.readouterr().err
        assert exit_.value.code == status and shown in error and not acting(error)


def test_warnings():
    def command():
        warnings.warn(f"{CLEAR} is left out\nand \u202e")

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        report(command, program="lightning")
    assert [str(warning.message) for warning in shown] == [r"\x1b[2J is left out" + "\n" + r"and \u202e"]
    with pytest.warns(UserWarning, match="plain"), printable_warnings():
        warnings.warn("plain")


@pytest.mark.slow
def test_in_a_terminal(folder):
    """The progress bar and the table, as rich draws them there; only rich's own sequences arrive."""
    primary, secondary = os.openpty()
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [ZOO, "predict", "model", FILE, "--clips", "1", "--crops", "1"]
    process = subprocess.Popen(command, stdout=secondary, stderr=secondary, env=env, cwd=folder)
    os.close(secondary)
    written = b""
    try:
        while chunk := os.read(primary, 65536):
            written += chunk
    except OSError:  # Linux reports the closed terminal as an I/O error
        pass
    os.close(primary)
    text = written.decode()
    assert process.wait(timeout=600) == 0
    assert text.count(r"a\xff\x1b[31m:smile:.mp4") >= 2  # bar and table
    assert CLEAR not in text and "\x1b]" not in text and "\x1b[31m:" not in text
    assert not acting(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", "", text))


@pytest.mark.slow
def test_what_a_hub_answers(hub_server, tmp_path):
    hub_server.fail("mine/model", 403, times=99, **{"X-Error-Message": f"no{CLEAR}\x9b1m"})
    command = [ZOO, "predict", "hf://mine/model", __file__]
    env = {**os.environ, **hub_server.environment(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and r"no\x1b[2J\x9b1m" in done.stderr, done.stderr
    assert not acting(done.stderr) and done.stderr.startswith("zoo: ")


@pytest.mark.slow
def test_an_output_that_cannot_encode(folder):
    """A table in a terminal of another age is whole, and JSON is still JSON."""
    code = f"from zoo.commands.main import main; main(['predict', 'model', {FILE!r}, '--topk', '9'{{}}])"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    script = "; ".join([code.format(""), code.format(", '--json'").partition("; ")[2]])
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    table, bracket, rest = done.stdout.decode("ascii").partition("\n[\n")
    assert r"caf\xe9" in table
    assert {found["label"] for found in json.loads(bracket + rest)[0]["predictions"]} == set(CLASSES)


def test_a_long_line_is_not_cut_in_a_pipe(capsys):
    show("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00.0"), (59.96, "1:00.0"), (754.05, "12:34.0"), (3723.4, "1:02:03.4")]
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.96, "0:59"), (754.05, "12:34"), (3723.4, "1:02:03")])
def test_clock_without_tenths(seconds, shown):
    assert clock(seconds, tenths=False) == shown
