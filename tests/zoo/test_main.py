"""How the commands fail: what becomes a sentence, what keeps its traceback, and the exit status."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.video.decode import DecodeError
from hub.errors import HubError
from lightning_modules.errors import ModelError
from zoo.commands.main import COMMANDS, main, report
from zoo.errors import UnknownModelError, ZooError
from zoo.registry import info

REPOSITORY = Path(__file__).resolve().parents[2]
BUILTIN = {
    # Shapes of tensors, which no command line sets.
    "lightning_modules/ops/conv/interface.py",
    "lightning_modules/ops/norm/interface.py",
    "lightning_modules/ops/scan/interface.py",
    # Caught where they are raised, and passed on as sentences about the file.
    "datamodules/annotations/pandas_pickles.py",
    "datamodules/annotations/pickles.py",
    "zoo/retrieval/old_index.py",
    "zoo/retrieval/table.py",
    "zoo/tables/table.py",
}


def raises(error: BaseException):
    def command():
        raise error

    return command


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert (exit_.value.code, capsys.readouterr().out) == (0, f"zoo {version('video-mamba-zoo')}\n")


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


@pytest.mark.parametrize("error", [DataError, DecodeError, HubError, ModelError, ZooError])
def test_our_types_are_foreseen_and_a_users_subclass_of_one(error, capsys):
    theirs = type("Theirs", (error,), {"__module__": "mine"})
    for kind in (error, theirs):
        with pytest.raises(SystemExit):
            report(raises(kind("clip.mp4 is empty; record it again")), program="zoo")
        assert capsys.readouterr().err == "zoo: clip.mp4 is empty; record it again\n"


def test_a_builtin_error_keeps_its_traceback_wherever_it_is_raised():
    namespace = {"__name__": "datamodules.video.decode"}
    exec("def ours():\n    raise ValueError('a bug of ours')", namespace)
    with pytest.raises(ValueError, match="a bug of ours"):
        report(namespace["ours"], program="zoo")
    with pytest.raises(RuntimeError, match="a bug"):
        report(raises(RuntimeError("a bug")), program="zoo")
    with pytest.raises(KeyError):
        report(raises(KeyError("a bug")), program="zoo")


def test_a_callers_mistake_has_a_type_of_ours():
    found = set()
    for package in ("zoo", "hub", "datamodules", "lightning_modules"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                raised = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
                if isinstance(raised, ast.Name) and raised.id in ("ValueError", "RuntimeError"):
                    found.add(path.relative_to(REPOSITORY).as_posix())
    assert found <= BUILTIN, f"{sorted(found - BUILTIN)}: raise a subclass from the package's errors.py"


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
