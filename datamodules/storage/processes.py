"""Helper processes that leave Ctrl-C to the process that started them and do not outlive it.

And differences between systems: cores, cleaning up after a fork, locks on files.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from typing_extensions import override

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows

_P = ParamSpec("_P")
_T = TypeVar("_T")

__all__ = ["ProcessPool", "after_fork", "cpu_info", "lock", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not tell (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_info() -> str:
    """What Linux says of the CPU in /proc/cpuinfo; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def after_fork(forget: Callable[[], object]) -> None:
    """Call `forget` in every forked process; Windows forks none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def lock(file: BinaryIO, *, wait: bool = True, inherited: bool = True) -> bool:
    """Lock an open file against other processes until it is closed; return whether that succeeded.

    On Windows nothing is locked: there, one process at a time may write to a folder.

    Args:
        file: open for writing.
        wait: for another process that has it locked.
        inherited: processes that this one starts hold the lock too.
    """
    if fcntl is None:
        return True
    try:
        take = fcntl.flock if inherited else fcntl.lockf
        take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True


class ProcessPool(ProcessPoolExecutor):
    """A `ProcessPoolExecutor` whose block ends soon when it is left by an error: what has not begun is dropped.

    A terminal sends Ctrl-C to all processes. A helper that dies of it while it starts, or while it takes a job from the
    queue, can leave the executor waiting for ever; so helpers never see it, and this process alone ends the work. Where
    this process is killed, they end too; without that they would wait for jobs for ever.
    """

    def __init__(self, num_workers: int, context: BaseContext | None = None) -> None:
        super().__init__(num_workers, mp_context=context, initializer=_end_with_parent)

    @override
    def submit(self, job: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(job, *args, **kwargs)
        # Submitting starts processes, which inherit what is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(job, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in helpers only
    wait_for_parent = parent.join

    def watch() -> None:
        wait_for_parent()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
