"""Checkpoint files that are whole or absent."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lightning_modules.errors import ModelError
from lightning_modules.files import written

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, forces it to disk and renames it.

    A process that is killed, or a machine that loses power, while it saves leaves the earlier checkpoint of that name
    as it was. Lightning's own writer moves the file out of the system's temporary folder, which is often another disk
    where a move is a copy, and holds the whole checkpoint in memory a second time. URLs are left to Lightning's.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written(path) as beside, beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:  # torch's writer hides what a write raised, which may be KeyboardInterrupt
            # That need not be the disk's fault: signals are answered where they arrive, the one that tells of a dead
            # loader process by raising.
            cause = error.__context__ if "inline_container" in str(error) and error.__context__ else error
            if not isinstance(cause, OSError):
                raise cause from None
            last = path.with_name("last.ckpt")
            if last.exists():
                remedy = f"make room on that disk and continue from {last}, which is whole, with --ckpt_path last"
            else:
                remedy = "make room on that disk and start again, as there is no earlier checkpoint beside it"
            reason = cause.strerror or cause
            raise ModelError(f"The checkpoint {path} cannot be written ({reason}); {remedy}.") from error
