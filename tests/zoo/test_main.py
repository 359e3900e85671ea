"""How the commands fail: what becomes a sentence, what keeps its traceback, and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from zoo.commands.main import COMMANDS, report
from zoo.errors import UnknownModelError
from zoo.registry import info

REPOSITORY = Path(__file__).resolve().parents[2]


def raises(error: BaseException):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (lambda: info("videomamba-m-k40"), "did you mean videomamba-m-k400"),
        (raises(UnknownModelError("no such\n  model")), "no such model"),
        (lambda: Path("/nowhere/clip.mp4").read_bytes(), "/nowhere/clip.mp4"),
    ],
)
def test_a_foreseen_error_is_one_sentence_and_status_1(command, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        report(command, program="zoo")
    captured = capsys.readouterr()
    assert exit_.value.code == 1 and captured.out == ""
    assert captured.err.startswith("zoo: ") and sentence in captured.err and captured.err.count("\n") == 1


def test_a_builtin_error_is_foreseen_only_where_our_code_raises_it(capsys):
    namespace = {"__name__": "datamodules.video.decode"}
    exec("def ours():\n    raise ValueError('clip.mp4 is empty; record it again')", namespace)
    with pytest.raises(SystemExit):
        report(namespace["ours"], program="zoo")
    assert capsys.readouterr().err == "zoo: clip.mp4 is empty; record it again\n"
    with pytest.raises(ValueError, match="a bug"):
        report(raises(ValueError("a bug")), program="zoo")
    with pytest.raises(KeyError):
        report(raises(KeyError("a bug")), program="zoo")


@pytest.mark.parametrize(("error", "status"), [(LookupError("bad flag"), 2), (KeyboardInterrupt(), 130)])
def test_other_statuses(error, status, capsys):
    with pytest.raises(SystemExit) as exit_:
        report(raises(error), program="lightning", usage_errors=(LookupError,))
    assert exit_.value.code == status and capsys.readouterr().err.startswith("lightning: ")


def test_success_returns():
    assert report(lambda: 1, program="zoo") is None


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    code = f"from zoo.commands.main import main; main([{command!r}, '--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert f"usage: zoo {command} " in result.stdout and "examples:" in result.stdout
