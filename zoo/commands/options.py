"""Options that several subcommands share."""

import re

from zoo.errors import ZooError
from zoo.limits import SHARDS

__all__ = ["parse_shard"]


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parse ``--shard K/N``; None means 1/1.

    Raises:
        ZooError: it is not of that form, or out of range.
    """
    if text is None:
        return 1, 1
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= SHARDS[1]:
        raise ZooError(f"--shard is {text}; write 1/8, 2/8, ... 8/8 for eight processes, of {SHARDS[1]:,} at most.")
    return int(found[1]), int(found[2])
