"""Checkpoint files that are whole or absent."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_modules.errors import ModelError

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, forces it to disk and renames it.

    A process that is killed, or a machine that loses power, while it saves leaves the earlier checkpoint of that name
    as it was. Lightning's own writer moves the file out of the system's temporary folder, which is often another disk
    where a move is a copy, and holds the whole checkpoint in memory a second time. URLs are left to Lightning's.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.part")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except (OSError, RuntimeError) as error:  # torch has an exception of its own for a failed write
            with suppress(OSError):
                beside.unlink()
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
            raise ModelError(
                f"The checkpoint {path} cannot be written ({reason}); make room on that disk, and go on from the last "
                "checkpoint, which is whole, with --ckpt_path last."
            ) from error
