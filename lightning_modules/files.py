"""Files that are there complete or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["written"]


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it becomes `path` when the block has run, and is removed where it fails.

    Raises:
        OSError: the system refuses; what was at `path` before is unchanged.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        with suppress(OSError):  # a full disk
            beside.unlink(missing_ok=True)
