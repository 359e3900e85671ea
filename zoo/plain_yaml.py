"""YAML of recipes and configs, read within limits.

Aliases can repeat a part, so that a file of a few lines expands to more values than fit into memory; and a part can
contain itself. Values are counted while the file is read, before anything is copied.
"""

import stat
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError

__all__ = ["MAX_VALUES", "check_limits", "count_values", "load_yaml", "read_yaml"]

MAX_BYTES = 4 * 2**20
MAX_VALUES = 200_000  # with aliases expanded; a list of ImageNet-21k's classes has 21,841
MAX_DEPTH = 64


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, tuple[int, int]] = {}  # of finished nodes: values and levels, aliases replaced
        self.open: list[tuple[int, int]] = [(0, 0)]

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        mark = self.peek_event().start_mark
        self.open.append((1, 1))
        if len(self.open) > MAX_DEPTH + 1:
            raise yaml.MarkedYAMLError(problem=f"it is nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        values, levels = self.open.pop()
        if not is_alias:
            self.sizes[id(node)] = values, levels
        elif id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="an alias stands for a part that contains it", problem_mark=mark)
        else:
            values, levels = self.sizes[id(node)]
        above_values, above_levels = self.open[-1]
        self.open[-1] = above_values + values, max(above_levels, levels + 1)
        if self.open[-1][0] > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it has more than {MAX_VALUES:,} values", problem_mark=mark)
        if self.open[-1][1] > MAX_DEPTH + 1:
            raise yaml.MarkedYAMLError(problem=f"it is nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        return node


def load_yaml(text: str) -> Any:  # noqa: ANN401  # what the text holds
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: not valid, or beyond the limits.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, AttributeError, TypeError, OverflowError) as error:  # a date or a number that is none
        raise yaml.YAMLError("a value does not fit its type") from error
    finally:
        loader.dispose()


def check_limits(text: str) -> None:
    """Refuse a text beyond the limits; one that is not valid YAML passes.

    Raises:
        ZooError: too many values, too deep, or a part that contains itself.
    """
    if "&" not in text and len(text) < MAX_DEPTH:
        return
    if len(text) > MAX_BYTES:
        raise ZooError(f"A value has {len(text):,} characters; a config has {MAX_BYTES:,} at most.")
    loader = _Loader(text)
    try:
        loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        if type(error) is yaml.MarkedYAMLError:
            raise ZooError(f"A value is not accepted: {error.problem}.") from None
    except yaml.YAMLError:
        pass
    finally:
        loader.dispose()


def count_values(value: object, known: dict[int, int] | None = None) -> int:
    """Values in nested mappings and lists; a part that is shared counts wherever it stands."""
    known = {} if known is None else known
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(count_values(part, known) for part in parts)
    return known[id(value)]


def read_yaml(path: Path, quote: bool = True) -> Any:  # noqa: ANN401  # what the file holds
    """Plain values of a YAML file.

    Args:
        path: the file.
        quote: whether the message may repeat words of the file; not where another file chose it.

    Raises:
        ZooError: missing, not a regular file, too large, not valid YAML, or beyond the limits.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ZooError(f"{path} is not a file to read a config from; pass a YAML file.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ZooError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; a config is a short YAML file.")
        return load_yaml(content.decode())
    except FileNotFoundError as error:
        raise ZooError(f"{path} does not exist; check the path.") from error
    except OSError as error:
        raise ZooError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise ZooError(f"{path} is not valid YAML: it is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise ZooError(f"{path} is not valid YAML: {_reason(error, quote)}.") from error


def _reason(error: yaml.YAMLError, quote: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or (str(error) if type(error) is yaml.YAMLError else "")
    if not quote and type(error) not in (yaml.MarkedYAMLError, yaml.YAMLError):
        problem = ""
    said = [part for part in (place, " ".join(problem.split())) if part]
    return ": ".join(said) or "it has characters that YAML forbids"
