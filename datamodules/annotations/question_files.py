"""Questions of EPIC-KITCHENS-100: those that MambaVL's authors have for each segment, and two that anyone may ask.

A language model wrote them from a segment's label, for validation too: a model that reads them is told a part of the
answer (docs/protocol.md, section 22).
"""

from typing import NamedTuple

from datamodules.annotations.lists import read_csv
from datamodules.annotations.pandas_pickles import read_frame
from datamodules.errors import DataError, some

__all__ = ["GENERIC", "QuestionPair", "read_questions"]


class QuestionPair(NamedTuple):
    """What is read beside a segment, `<mask>` for masked words.

    Attributes:
        verb: the question that guides the choice of the verb. It may name the object.
        noun: the question that guides the choice of the noun. It may name the action.
    """

    verb: str
    noun: str


GENERIC = QuestionPair("what action do the hands perform?", "which object is it?")
"""The same for every segment, so that they tell nothing about any."""

_COLUMNS = ("narration_id", "verb_question", "noun_question")


def read_questions(path: str) -> dict[str, QuestionPair]:
    """The questions of each segment, as written: nothing is masked.

    Args:
        path: a table with the columns narration_id, verb_question and noun_question (or "verb question" and "noun
            question"): CSV where the name ends in .csv, else a table that pandas pickled with narration_id as a column
            or as the index (`EPIC_100_train_actions_gpt_questions_clean.pkl`), which is read as data.

    Returns:
        narration_id -> questions.

    Raises:
        DataError: the file is missing or damaged, has no rows or lacks a column, or a segment is there twice or lacks a
            question.
    """
    spellings = {spelling: name for name in _COLUMNS for spelling in (name, name.replace("_question", " question"))}
    if path.lower().endswith(".csv"):
        header, rows = read_csv(path)
        found = {name: [row[name] for _, row in rows] for name in header if name in spellings}
    else:
        found = read_frame(path, spellings)
    table = {spellings[name]: values for name, values in found.items()}
    lacking = [name for name in _COLUMNS if name not in table]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]}; it needs {', '.join(_COLUMNS)}.")
    if not table["narration_id"]:
        raise DataError(f"{path} has no rows; give each segment a row of {', '.join(_COLUMNS)}.")
    pairs: dict[str, QuestionPair] = {}
    bare, twice = [], []
    for number, row in enumerate(zip(*(table[name] for name in _COLUMNS), strict=True), start=1):
        narration_id, verb, noun = row
        if not all(isinstance(text, str) and text.strip() for text in row):
            bare.append(narration_id if isinstance(narration_id, str) else f"number {number}")
        elif narration_id in pairs:
            twice.append(narration_id)
        else:
            pairs[narration_id] = QuestionPair(verb.strip(), noun.strip())
    for names, fault in ((bare, "without both questions"), (twice, "with more than one row")):
        if names:
            raise DataError(f"{path} has {len(names)} segments {fault}: {some(names)}; correct or remove their rows.")
    return pairs
