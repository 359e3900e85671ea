"""Check values: arguments of constructors, and contents of files.

A constructor says once what it takes, and an error names argument, value and what is allowed:

    check(batch_size=(batch_size, Count(1, 65_536)), crop_area=(crop_area, Range(0, 1)))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Protocol, Union, cast, get_args, get_origin

from typing_extensions import override

from datamodules.errors import DataError

__all__ = ["MAX_CLASSES", "Count", "Number", "OneOf", "OrNone", "Range", "SEED", "SHARE", "Rule", "check", "fits"]


class Rule(Protocol):
    """A condition on a value; ``str`` describes it."""

    def allows(self, value: object) -> bool:
        """Whether the value is that."""


@dataclass(frozen=True)
class Number(Rule):
    """A number from `low` to `high`, both included; with `above`, without `low`."""

    low: float
    high: float
    above: bool = False

    @override
    def allows(self, value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number = cast(float, value)
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.low:g} and at most {self.high:g}"


@dataclass(frozen=True)
class Count(Number):
    """A whole number from `low` to `high`, both included."""

    @override
    def allows(self, value: object) -> bool:
        return isinstance(value, Integral) and super().allows(value)

    def __str__(self) -> str:
        return f"a whole number, at least {self.low} and at most {self.high}"


class OneOf(Rule):
    """One of some values."""

    def __init__(self, *values: object) -> None:
        self.values = values

    @override
    def allows(self, value: object) -> bool:
        return any(type(value) is type(allowed) and value == allowed for allowed in self.values)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Range(Rule):
    """Two numbers above 0 and at most `high`, the smaller one first."""

    high: float

    @override
    def allows(self, value: object) -> bool:
        number = Number(0, self.high, above=True)
        if not isinstance(value, Sequence) or len(value) != 2 or not all(map(number.allows, value)):
            return False
        return bool(value[0] <= value[1])

    def __str__(self) -> str:
        return f"two numbers above 0 and at most {self.high:g}, the smaller one first"


@dataclass(frozen=True)
class OrNone(Rule):
    """A value that fits the rule, or None for a default."""

    rule: Rule

    @override
    def allows(self, value: object) -> bool:
        return value is None or self.rule.allows(value)

    def __str__(self) -> str:
        return f"{self.rule}, or null"


SHARE = Number(0, 1)
"""A share or a probability."""

MAX_CLASSES = 100_000
"""Larger numbers cannot be labels: they are typing errors, or another column."""

SEED = Count(-(2**63), 2**63 - 1)
"""A seed of torch's generators."""


def check(**arguments: tuple[object, Rule]) -> None:
    """Raise `DataError` for the first argument that is not what its rule says.

    Args:
        arguments: of each its value and its rule.
    """
    for name, (value, rule) in arguments.items():
        if not rule.allows(value):
            raise DataError(f"{name} is {_short(value)}; it has to be {rule}.")


def _short(value: object) -> str:
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def fits(value: object, kind: Any) -> bool:  # noqa: ANN401 - an annotation, of which typing has many kinds
    """Whether a value that came from JSON is of an annotated type, where lists count as tuples and integers as floats.

    Numbers have to be finite and fit into 64 bits.
    """
    if kind is Any:
        return True
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
