import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.ops import compiler
from lightning_modules.ops.compiler import what_is_missing

_ZIGLANG = "import sys; print('zig', sys.argv[1:])"
_PROVIDE = (
    "import os, subprocess; from lightning_modules.ops.compiler import provide_compiler; provide_compiler();"
    "cc = os.environ.get('CC'); print(cc); cc and subprocess.run([cc, 'a b.c', '-o', 'x'], check=True)"
)


def provide(folder: Path, **environment: str) -> str:
    """What CC names, and what that answers, in a process that finds ziglang and no program but those given."""
    package = folder / "packages" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_ZIGLANG)
    (folder / "programs").mkdir()
    path = os.pathsep.join([str(folder / "packages"), str(Path(__file__).parents[3])])
    surroundings = {name: value for name, value in os.environ.items() if name != "CC"}
    surroundings |= {"PYTHONPATH": path, "PATH": str(folder / "programs"), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _PROVIDE], env=surroundings | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ziglang_serves_where_there_is_no_compiler(tmp_path) -> None:
    program = tmp_path / "cache" / "video-mamba-zoo" / "zig-cc"
    assert provide(tmp_path) == f"{program}\nzig ['cc', 'a b.c', '-o', 'x', '-Wl,-z,lazy']\n"
    assert os.access(program, os.X_OK) and program.stat().st_mode & 0o077 == 0


def test_a_compiler_of_the_system_is_left_alone(tmp_path) -> None:
    other = tmp_path / "mine"
    other.write_text("#!/bin/sh\necho mine\n")
    other.chmod(0o700)
    assert provide(tmp_path, CC=str(other)) == f"{other}\nmine\n"


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_one_on_the_path_is_found_by_triton_itself(tmp_path, name) -> None:
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    assert provide(tmp_path, PATH=str(program.parent)) == "None\n"


def test_no_place_for_the_script(tmp_path) -> None:
    (tmp_path / "file").touch()
    assert provide(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")) == "None\n"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Triton's own step that compiles a file, in an environment without CC."""
    build = pytest.importorskip("triton.runtime.build")
    monkeypatch.delenv("CC", raising=False)
    if hasattr(build, "_find_compiler"):
        build._find_compiler.cache_clear()
    source = tmp_path / "driver.c"
    source.write_text("#include <Python.h>\n")
    options = [] if build._build.__code__.co_argcount == 6 else [[]]
    return lambda: build._build("driver", str(source), str(tmp_path), [], [], [], *options)


def test_no_c_compiler(build, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError) as caught:
        build()
    assert "install gcc (apt install gcc), or pip install 'video-mamba-zoo[cuda]'" in what_is_missing(caught.value)


def test_no_headers_of_python(build, tmp_path, monkeypatch) -> None:
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o700)
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build()
    monkeypatch.setattr(compiler, "_headers", lambda: tmp_path / "Python.h")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt install python{version}-dev" in what_is_missing(caught.value)
    (tmp_path / "Python.h").touch()
    assert what_is_missing(caught.value) is None


def test_no_driver() -> None:
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    try:
        driver.libcuda_dirs()
    except AssertionError as error:
        assert "install NVIDIA's driver" in what_is_missing(error)
    else:
        pytest.skip("this machine has one")


def test_other_errors_are_left_to_others() -> None:
    assert what_is_missing(ValueError("illegal memory access")) is None
