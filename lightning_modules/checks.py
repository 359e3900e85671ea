"""Allowed ranges of the numbers that modules and networks are built from, checked in one place by their names."""

import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_modules.errors import ModelError

__all__ = [
    "ACTIVATIONS",
    "MASK_TYPES",
    "Range",
    "check_arguments",
    "check_choice",
    "check_constructor",
    "check_entries",
    "check_group",
    "check_mapping",
    "check_range",
    "check_sizes",
]


class Range(NamedTuple):
    """Numbers from `low` to `high`.

    Attributes:
        whole: only whole numbers.
        above: `low` itself is not allowed.
        below: `high` itself is not allowed.
        count: how many numbers there are; None is a single number, 0 a sequence of any length.
    """

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    count: int | None = None  # type: ignore[assignment]  # it hides tuple.count, which nobody needs of a range

    def allows(self, value: object) -> bool:
        """Whether a value is a number of this range; no bool is, and neither infinity nor NaN."""
        kind = numbers.Integral if self.whole else numbers.Real
        number: Any = value  # the abstract types of numbers do not compare with float
        if isinstance(value, bool) or not isinstance(value, kind) or not abs(number) <= sys.float_info.max:
            return False
        low = number > self.low if self.above else number >= self.low
        high = number < self.high if self.below else number <= self.high
        return bool(low and high)

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "finite number"
        noun = f"a {kind}" if self.count is None else f"{self.count or 'a list of'} {kind}s"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"above {self.low:,}" if self.above else f"of at least {self.low:,}")
        if self.high < math.inf:
            bounds.append(f"less than {self.high:,}" if self.below else f"at most {self.high:,}")
        return " ".join([noun, " and ".join(bounds)]).rstrip()


# Upper bounds are far above every published model: they keep a typing error or a stranger's config from asking for
# terabytes.
_WIDTH = Range(1, 65_536, whole=True)
_BLOCKS = Range(1, 1_000, whole=True)
_PIXELS = Range(1, 16_384, whole=True)
_FRAMES = Range(1, 100_000, whole=True)
_OUTPUTS = Range(1, 1_000_000, whole=True)
_COUNT = Range(0, 1_000_000, whole=True)
_SHARE = Range(0, 1, below=True)
_POSITIVE = Range(0, above=True)
_NOT_NEGATIVE = Range(0)

_RANGES = {
    # what the network is
    "embed_dim": _WIDTH,
    "depth": _BLOCKS,
    "num_frames": _FRAMES,
    "image_size": _PIXELS,
    "patch_size": _PIXELS,
    "tubelet_size": _FRAMES,
    "state_size": Range(1, 4_096, whole=True),
    "conv_width": Range(1, 64, whole=True),
    "expand": Range(1, 64, whole=True),
    "num_classes": _OUTPUTS,
    "num_verbs": _OUTPUTS,
    "num_nouns": _OUTPUTS,
    "num_actions": _OUTPUTS,
    "feature_dim": _WIDTH,
    "heads": Range(1, 1_024, whole=True),
    "positions": Range(2, 1_000_000, whole=True),
    "vision_dim": _WIDTH,
    "fusion_layers": _BLOCKS,
    "dim": _WIDTH,
    "target_dim": _WIDTH,
    "align_layers": _BLOCKS,
    "align_interval": _BLOCKS,
    "max_words": Range(3, 100_000, whole=True),
    "scales": Range(0, 64, above=True, count=0),
    "mean": Range(-1_000_000, 1_000_000, count=3),
    "std": Range(1e-6, 1_000_000, count=3),
    "value_mean": Range(-math.inf),
    # how its input is prepared
    "short_side": _PIXELS,
    "frame_stride": _FRAMES,
    # training
    "drop": _SHARE,
    "drop_path": _SHARE,
    "dropout": _SHARE,
    "label_smoothing": _SHARE,
    "mask_ratio": _SHARE,
    "image_mask_ratio": _SHARE,
    "word_ratio": Range(0, 1, above=True),
    "rerank": _COUNT,
    "freeze_layers": _COUNT,
    "teacher_interval": _BLOCKS,
    "teacher_epochs": _COUNT,
    "margin": Range(0, 2),
    "distill_weight": _NOT_NEGATIVE,
    "question_weight": _NOT_NEGATIVE,
    # optimiser
    "lr": _POSITIVE,
    "min_lr": _NOT_NEGATIVE,
    "warmup_lr": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "warmup_share": Range(0, 1),
    "weight_decay": _NOT_NEGATIVE,
    "betas": Range(0, 1, below=True, count=2),
    "eps": _POSITIVE,
    "momentum": _SHARE,
    "lr_samples": Range(1, 1_000_000_000, whole=True),
    "layer_decay": Range(0, 1, above=True),
}
# Of towers from transformers, which keeps whatever it is given.
_TOWER_SIZES = {
    "num_hidden_layers": _BLOCKS,
    "layer_norm_eps": _SHARE,
    "hidden_dropout_prob": _SHARE,
    "attention_probs_dropout_prob": _SHARE,
    "image_size": _PIXELS,
    "patch_size": _PIXELS,
}
_TOWER_SIZE = Range(1, 10_000_000, whole=True)
# What the blocks of a network keep of a training step for its backward pass.
ACTIVATIONS = ("speed", "balanced", "memory")
# How `lightning_modules.nets.masking` chooses patches; here, a command can name them without torch.
MASK_TYPES = ("random", "tube", "clip-row", "frame-row", "attention")


def check_range(name: str, value: object, allowed: Range) -> None:
    """Raise `ModelError` where one number, or one sequence of them, is out of its range."""
    values = [value] if allowed.count is None else value
    if (
        not isinstance(values, Sequence)
        or isinstance(values, str)
        or (allowed.count and len(values) != allowed.count)
        or not all(map(allowed.allows, values))
    ):
        raise ModelError(f"{name} is {_shown(value)}; it has to be {allowed}.")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise `ModelError` where a value is none of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise ModelError(f"{name} is {_shown(value)}; choose one of {', '.join(allowed)}.")


def check_arguments(arguments: Mapping[str, object], optional: Collection[str] = ()) -> None:
    """Compare arguments with the ranges that are allowed under their names; other names are skipped.

    Args:
        arguments: names and values.
        optional: names that may be None.

    Raises:
        ModelError: see `check_range`.
    """
    for name, value in arguments.items():
        if name in _RANGES and (value is not None or name not in optional):
            check_range(name, value, _RANGES[name])


def check_constructor(constructor: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """`check_arguments` of a constructor's arguments; those annotated with None may be None.

    An argument with an annotation of another kind, such as ``depth: list[int]``, means something else and passes.
    """
    try:
        hints = typing.get_type_hints(constructor)
    except (NameError, TypeError):  # types that exist for type checkers only
        return
    checked, optional = {}, set()
    for name in (name for name in arguments if name in hints):
        value, kinds = arguments[name], _kinds(hints[name])
        several = name in _RANGES and _RANGES[name].count is not None
        if kinds - {None} <= ({Sequence} if several else {int, float, str}):
            checked[name] = value
        if None in kinds:
            optional.add(name)
    check_arguments(checked, optional)


def check_group(name: str, given: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a group of arguments, which may be None.

    Raises:
        ModelError: it is not a mapping, has an unknown entry, or a number out of its range.
    """
    given = check_mapping(name, given)
    check_entries(name, given, defaults)
    filled = {**defaults, **given}
    for entry, default in defaults.items():
        if isinstance(default, str) and not isinstance(filled[entry], str):
            raise ModelError(f"{name}.{entry} has to be a text, such as {default!r}.")
    check_arguments(filled, optional=[entry for entry, value in defaults.items() if value is None])
    return filled


def check_entries(name: str, given: Mapping[str, object], known: Collection[str]) -> None:
    """Raise `ModelError` where a group of arguments has an unknown entry."""
    for entry in given:
        if entry not in known:
            raise ModelError(f"{name} has no entry {_shown(entry)}; it takes {', '.join(known) or 'nothing here'}.")


def check_mapping(name: str, given: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for None; raise `ModelError` for anything else."""
    if not isinstance(given, Mapping | None):
        raise ModelError(f"{name} is a {type(given).__name__}; it maps names to values.")
    return given or {}


def constructors(cls: type) -> Iterator[type]:
    """Yield a class, and its bases as long as their constructors pass ``**kwargs`` on."""
    for base in cls.__mro__:
        yield base
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # a class
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break


def check_sizes(where: str, sizes: object, known: Collection[str]) -> None:
    """Compare the sizes of a tower, such as ``{"hidden_size": 512}``, with what is allowed; transformers checks words.

    Args:
        where: what the sizes are called.
        sizes: the mapping.
        known: the names that it may have.

    Raises:
        ModelError: no mapping, an unknown name, or a number out of its range.
    """
    if not isinstance(sizes, Mapping):
        raise ModelError(f"{where} is {_shown(sizes)}; it has to map names to sizes, for example hidden_size to 512.")
    check_entries(where, sizes, known)
    for name, value in sizes.items():
        if name != "hidden_act":
            check_range(f"{where}.{name}", value, _TOWER_SIZES.get(name, _TOWER_SIZE))


def _kinds(hint: object) -> set[object]:
    """The types that an annotation lets through: None for that of None, ``Sequence`` for lists of whatever."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(hint)))
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return {Sequence}
    return {None if hint is type(None) else hint}


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
