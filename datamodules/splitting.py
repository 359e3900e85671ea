"""Set videos aside for validation in data sets without splits."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import torch

from datamodules.checks import SEED, check
from datamodules.errors import DataError, some

__all__ = ["check_groups", "check_split", "group_pattern", "groups_of", "origin_of", "set_aside"]


def check_split(val_fraction: float, split_seed: int) -> None:
    """Raise `DataError` for a share that is not between 0 and 1, both excluded, or a seed that torch does not take."""
    check(split_seed=(split_seed, SEED))
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; it is a share between 0 and 1, both excluded.")


def group_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """The compiled pattern of `groups_of`.

    Raises:
        DataError: not a regular expression, or one without a capture group.
    """
    try:
        found = None if pattern is None else re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"group {pattern!r} is not a regular expression ({error}); correct it.") from error
    if found is not None and not found.groups:
        raise DataError(
            f"group {pattern!r} has no capture group; put the part of a path that names the film into parentheses, as "
            r"in '([^/]+)_\d+\.mp4'."
        )
    return found


def groups_of(names: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Return what the pattern's capture groups match in each name.

    Raises:
        DataError: it does not fit every name.
    """
    matches = [pattern.search(name) for name in names]
    strange = [name for name, match in zip(names, matches, strict=True) if match is None]
    if strange:
        raise DataError(
            f"group {pattern.pattern!r} does not fit {len(strange)} of the {len(names)} videos: {some(strange)}; "
            "change the pattern so that it finds the group of each."
        )
    return ["/".join(part or "" for part in match.groups()) for match in matches if match is not None]


def check_groups(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Raise `DataError` for groups that are both trained on and validated on."""
    both = sorted(set(train) & set(val))
    if both:
        raise DataError(
            f"{len(both)} groups have videos both for training and for validation in {where}: {some(both)}; move each "
            "group to one side, or leave group out."
        )


def origin_of(split: str, source: str, fraction: float, seed: int, in_groups: bool = False) -> str:
    """Describe how the videos of a split were chosen from those of `source`."""
    if split == "train":
        return f"the rest of {source}"
    return f"{fraction:.0%} of {source}, by class{' in whole groups' if in_groups else ''}, seed {seed}"


def set_aside(
    labels: Sequence[Hashable], fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> list[bool]:
    """For each video whether it is set aside for validation: about `fraction` of each class, the same for a seed.

    A class of two or more videos has at least one on each side. With `groups`, a whole group is on one side, so shares
    are only near the fraction, and a class whose videos are all of one group may be in training alone.

    Args:
        labels: class of each video.
        fraction: share in (0, 1).
        seed: of the choice.
        groups: what must stay together; None divides video by video.

    Raises:
        DataError: all videos are of one group.
    """
    if groups is not None:
        return _whole_groups(labels, fraction, seed, groups)
    chosen = [False] * len(labels)
    for places in _places(labels).values():
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
        for i in order[: _wanted(len(places), fraction)]:
            chosen[places[i]] = True
    return chosen


def _whole_groups(labels: Sequence[Hashable], fraction: float, seed: int, groups: Sequence[Hashable]) -> list[bool]:
    """Take groups in random order: those of which validation lacks at least a half, then one for each class still bare.

    No class loses its last training video.
    """
    members = _places(groups)
    if len(members) < 2:
        raise DataError(
            f"All {len(labels)} videos are of one group, {next(iter(members), '')!r}, so none can be set aside for "
            "validation; change group."
        )
    training = Counter(labels)
    lacking = {label: _wanted(count, fraction) for label, count in training.items()}
    names = list(members)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    contents = {names[i]: Counter(labels[place] for place in members[names[i]]) for i in order}
    validated: set[Hashable] = set()

    def move(group: Hashable) -> None:
        validated.add(group)
        for label, count in contents[group].items():
            training[label] -= count
            lacking[label] -= count

    def may_move(group: Hashable) -> bool:
        return group not in validated and all(training[label] > count for label, count in contents[group].items())

    for group, content in contents.items():
        needed = sum(min(count, max(lacking[label], 0)) for label, count in content.items())
        if may_move(group) and 2 * needed >= content.total():
            move(group)
    for label, count in Counter(labels).items():
        if lacking[label] == _wanted(count, fraction) > 0:  # nothing of it is validated
            smallest = min(filter(may_move, (g for g in contents if label in contents[g])),
                           key=lambda group: contents[group].total(), default=None)  # fmt: skip
            if smallest is not None:
                move(smallest)
    return [group in validated for group in groups]


def _places(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Return the positions of each key, keys in the order of their first position."""
    places = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return places


def _wanted(count: int, fraction: float) -> int:
    """Videos to set aside of a class of so many."""
    return min(max(round(fraction * count), 1), count - 1)
