"""`import zoo` and the commands that only read the registry load no heavy library."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "lightning", "transformers", "torchvision", "av", "matplotlib")
RUN = "import sys; from zoo.commands.main import main; main({argv!r})"
REPORT = "; import sys; print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo; dir(zoo)",
        "import zoo; zoo.info(zoo.list_models('*-m-k400')[0])",
        RUN.format(argv=["list"]),
        RUN.format(argv=["list", "--json"]),
        RUN.format(argv=["info", "videomamba-m-k400"]),
    ],
)
def test_nothing_heavy_is_loaded(code):
    command = [sys.executable, "-c", code + REPORT.format(heavy=HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stderr.split() == []


def test_public_names_are_listed_and_unknown_ones_refused():
    promised = {"list_models", "info", "create", "load", "convert", "register", "predict", "extract_features"}
    assert promised <= set(dir(zoo)) == set(zoo.__all__)
    with pytest.raises(AttributeError, match="zoo attribute lode"):
        zoo.lode  # noqa: B018


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_public_name_resolves_and_stays(name):
    # The import system binds a submodule on its package: a module zoo/predict.py would hide the function of that name.
    importlib.import_module("zoo.inference.predict")
    assert getattr(zoo, name).__module__.startswith("zoo.")
    assert getattr(zoo, name) is getattr(zoo, name)
    assert callable(getattr(zoo, name))


@pytest.mark.parametrize("theirs", ["hub.py", "datamodules/__init__.py", "lightning_modules/__init__.py"])
def test_a_file_of_the_users_that_hides_a_package_is_named(theirs, tmp_path):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).touch()
    (tmp_path / "script.py").write_text("import zoo")
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600)
    hidden = tmp_path / theirs.removesuffix("/__init__.py")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"ImportError: {hidden} hides the package {hidden.stem!r}, which zoo needs; rename that file or folder"
    )


def test_other_files_of_the_users_hide_nothing(tmp_path):
    """A folder of data without an __init__.py is not a package where ours is on the path."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "models.py").touch()
    (tmp_path / "script.py").write_text("import zoo; print(zoo.__file__)")
    result = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.stdout.strip() == str(REPOSITORY / "zoo" / "__init__.py"), result.stderr
