"""The C compiler with which triton builds small files: one for each machine and, in older releases, for each kernel.

The system's gcc or clang where there is one, or what the environment variable CC names; else that of the package
ziglang, which pip installs: ``pip install 'video-mamba-zoo[cuda]'``.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from lightning_modules.files import written

__all__ = ["CACHE", "provide_compiler", "what_is_missing"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "video-mamba-zoo"
"""The folder of the user in which the package keeps what it can make again."""


@cache
def provide_compiler() -> None:
    """Name ziglang's compiler in CC where the system has none; once per process."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or not importlib.util.find_spec("ziglang"):
        return
    # Triton takes a program without arguments. Lazily: an older driver may lack functions that are never called.
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ziglang cc "$@" -Wl,-z,lazy\n'
    program = CACHE / "zig-cc"
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with written(program) as beside:
            beside.write_text(script, encoding="utf-8")
            beside.chmod(0o700)
    except OSError:
        return  # triton says that it finds no compiler
    os.environ["CC"] = str(program)


def what_is_missing(error: BaseException) -> str | None:
    """What to install where triton could not build its file for this machine, as a sentence; None for other errors."""
    if "C compiler" in str(error):
        return ("Triton finds no C compiler, which it needs once per machine: install gcc (apt install gcc), or "
                "pip install 'video-mamba-zoo[cuda]', which brings one")  # fmt: skip
    if isinstance(error, subprocess.CalledProcessError) and not _headers().is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (f"Triton finds no Python.h, which it needs once per machine: install Python's headers "
                f"(apt install python{version}-dev)")  # fmt: skip
    if "libcuda" in str(error):
        return ("Triton finds no libcuda.so.1: install NVIDIA's driver, start a container with its GPUs (docker run "
                "--gpus all), or name the library's folder in TRITON_LIBCUDA_PATH")  # fmt: skip
    return None


def _headers() -> Path:
    # On Debian the default scheme names /usr/local, where no headers are; triton looks where this does.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    return Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
