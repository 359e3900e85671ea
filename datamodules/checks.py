"""Whether values are what they have to be: arguments of constructors, and what files say.

A constructor says once what it takes, and an error names argument, value and what is allowed:

    check(batch_size=(batch_size, Number(1, 65_536, whole=True)), crop_area=(crop_area, Range(0, 1)), ...)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Protocol, Union, get_args, get_origin

from datamodules.errors import DataError

__all__ = ["Count", "Number", "OneOf", "Range", "check", "fits"]


class Rule(Protocol):
    """What a value has to be; ``str`` gives it in words."""

    def allows(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Number:
    """From `low` to `high`, both included.

    Args:
        low: smallest value.
        high: largest value.
        above: leave out `low`.
        below: leave out `high`.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    def __str__(self) -> str:
        if self.above or self.below:
            return f"above {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Count:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def allows(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number between {self.low} and {self.high}"


class OneOf:
    """One of some values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def allows(self, value: Any) -> bool:
        return any(type(value) is type(allowed) and value == allowed for allowed in self.values)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Range:
    """Two numbers in order, above `low` and at most `high`."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        number = Number(self.low, self.high, above=True)
        if not isinstance(value, Sequence) or len(value) != 2 or not all(map(number.allows, value)):
            return False
        return value[0] <= value[1]

    def __str__(self) -> str:
        return f"two numbers above {self.low:g} and at most {self.high:g}, the smaller one first"


def check(**arguments: tuple[Any, Rule]) -> None:
    """Raises `DataError` for the first argument that is not what it has to be.

    Args:
        arguments: of each its value and its rule. A value of None passes: it stands for a default.
    """
    for name, (value, rule) in arguments.items():
        if value is not None and not rule.allows(value):
            raise DataError(f"{name} is {_short(value)}; it has to be {rule}.")


def _short(value: Any) -> str:
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that came from JSON is of an annotated type, where lists count as tuples and integers as floats.

    Numbers have to be finite and fit into 64 bits.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if kind in (None, NoneType):
        return value is None
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if kind is float:
        return (type(value) is float and math.isfinite(value)) or fits(value, int)
    return type(value) is kind
