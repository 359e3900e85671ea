"""Helper processes that leave Ctrl-C to the process that started them."""

import signal
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

__all__ = ["ProcessPool"]


class ProcessPool(ProcessPoolExecutor):
    """A `ProcessPoolExecutor` whose block ends soon when it is left by an error: what has not begun is dropped.

    A terminal sends Ctrl-C to all processes. A helper that dies of it while it starts, or while it takes a job from the
    queue, can leave the executor waiting for ever; so helpers never see it, and this process alone ends the work.
    """

    def submit(self, *args: Any, **kwargs: Any) -> Future:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(*args, **kwargs)
        # Submitting starts processes, which inherit what is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(cancel_futures=kind is not None)
