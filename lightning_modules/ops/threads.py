"""Shares the tasks of one kernel call among threads.

The kernels are machine code that holds no lock of the interpreter, so plain Python threads suffice. Numba's own
parallel loops were left aside: of their threading layers one ends the process when two threads call at a time, one when
a process is forked after its first use, and the third is a further package.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

__all__ = ["run"]

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def run(work: Callable[..., None], tasks: Iterable[tuple]) -> None:
    """Call `work(*task)` for every task on `torch.get_num_threads()` threads, the calling one among them."""
    tasks = list(tasks)
    helpers = min(torch.get_num_threads(), len(tasks)) - 1
    # next() of a list's iterator holds the interpreter's lock: every task is taken once.
    queue = iter(tasks)

    def drain() -> None:
        for task in queue:
            work(*task)

    futures = [_executor().submit(drain) for _ in range(helpers)] if helpers > 0 else []
    try:
        drain()
    finally:
        # A helper that is still queued behind another caller's tasks has nothing left to do here.
        running = [future for future in futures if not future.cancel()]
        for future in running:
            future.result()


def _executor() -> ThreadPoolExecutor:
    global _pool, _pool_size
    size = torch.get_num_threads()
    with _lock:
        if _pool is None or _pool_size < size:
            _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="scan"), size
        return _pool


def _forget() -> None:
    """A forked child has the pool's object but not its threads."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
