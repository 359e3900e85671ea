"""Questions about a generated kitchen, as MambaVL's authors have them for EPIC-KITCHENS-100: written from the label.

Each question hints at its answer without naming it, so that a model that reads them need not look at the video; the
reader masks the other half of the action (`datamodules.annotations.masking`). Files come in both forms that
`datamodules.annotations.question_files` reads.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.synthetic.writing import _write_csv

__all__ = ["question_pair", "write_questions"]

_VERB_HINTS = {
    "move-left": "on its way west",
    "move-right": "on its way east",
    "move-up": "on its way to the ceiling",
    "move-down": "on its way to the floor",
    "grow": "to look as if it came nearer",
    "shrink": "to look as if it went away",
    "turn-clockwise": "as the hands of a watch do",
    "turn-counterclockwise": "against the hands of a watch",
}
_NOUN_HINTS = {
    "arrow": "with a tip and a tail",
    "corner": "with one bend",
    "disc": "without any edge",
    "triangle": "with three sides",
    "hammer": "for nails",
    "moon": "of the night",
    "drop": "of rain",
    "flag": "of a country",
}


def question_pair(verb: str, noun: str) -> tuple[str, str]:
    """The question for the verb and that for the noun of an action, nothing masked."""
    return (
        f"What does the {noun} do {_VERB_HINTS[verb]}?",
        f"Which thing {_NOUN_HINTS[noun]} is seen to {verb.replace('-', ' ')}?",
    )


def write_questions(folder: Path, split: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes EPIC_100_<split>_actions_gpt_questions_clean.pkl, and EPIC_100_<split>_questions.csv with the same texts.

    Args:
        folder: where to.
        split: "train" or "validation".
        header: columns of the split's list, narration_id first, with verb and noun.
        rows: of the list.
    """
    verb, noun = header.index("verb"), header.index("noun")
    pairs = [question_pair(row[verb], row[noun]) for row in rows]
    named = [(row[0], *pair) for row, pair in zip(rows, pairs, strict=True)]
    _write_csv(folder / f"EPIC_100_{split}_questions.csv", ("narration_id", "verb_question", "noun_question"), named)
    table = [
        [*row[1:], noun_question, verb_question]
        for row, (verb_question, noun_question) in zip(rows, pairs, strict=True)
    ]
    columns = [*header[1:], "noun question", "verb question"]
    data = _pickled_frame(header[0], [row[0] for row in rows], columns, table)
    (folder / f"EPIC_100_{split}_actions_gpt_questions_clean.pkl").write_bytes(data)


# A table as `DataFrame.to_pickle` writes it, without pandas, which nothing else here needs ----------------------------


class _Named(NamedTuple):
    """A class or function of pandas or numpy, what it is called with, and the state of what it makes."""

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None


def _pickled_frame(
    index_name: str, index: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> bytes:
    """One block of objects, in protocol 3; pandas 1.3 and later read it."""

    def array(shape: tuple[int, ...], entries: list[Any]) -> _Named:
        kind = _Named("numpy dtype", ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
        made = ("numpy.core.multiarray _reconstruct", (_Named("numpy ndarray"), (0,), b"b"))
        return _Named(*made, (1, shape, kind, False, entries))

    def labels(name: str | None, entries: Sequence[str]) -> _Named:
        data = {"data": array((len(entries),), list(entries)), "name": name}
        return _Named("pandas.core.indexes.base _new_Index", (_Named("pandas.core.indexes.base Index"), data))

    values = array((len(columns), len(rows)), [row[number] for number in range(len(columns)) for row in rows])
    place = _Named("builtins slice", (0, len(columns), 1))
    block = _Named("pandas._libs.internals _unpickle_block", (values, place, 2))
    axes = [labels(None, columns), labels(index_name, index)]
    manager = _Named("pandas.core.internals.managers BlockManager", ((block,), axes))
    frame = _Named(
        "pandas.core.frame DataFrame", (), {"_mgr": manager, "_typ": "dataframe", "_metadata": [], "attrs": {}}
    )
    return b"\x80\x03" + _pickled(frame) + b"."


def _pickled(value: object) -> bytes:
    if isinstance(value, _Named):
        code = b"c" + value.name.replace(" ", "\n").encode() + b"\n"
        code += b"" if value.args is None else _pickled(value.args) + b"R"
        return code + (b"" if value.state is None else _pickled(value.state) + b"b")
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return (b"X" if isinstance(value, str) else b"B") + struct.pack("<I", len(raw)) + raw
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(part) for pair in value.items() for part in pair) + b"u"
    assert isinstance(value, list | tuple)
    parts = b"".join(map(_pickled, value))
    return b"(" + parts + b"t" if isinstance(value, tuple) else b"](" + parts + b"e"
