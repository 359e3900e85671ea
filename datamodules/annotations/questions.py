"""Questions about actions, and what their answers are.

A question is drawn without a look at the action: its kind and its wording are functions of the random numbers alone. So
nothing about the answer can be read off it. Where an action has no answer to a question (no second object for "where"),
the question is asked all the same and its answer does not count: not to ask it would tell something about the action.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from datamodules.errors import DataError

__all__ = ["KINDS", "QUESTIONS", "Question", "answer_number", "draw_question"]

QUESTIONS = {
    "verb": (
        "what is the person doing?",
        "what is being done?",
        "which movement is made?",
        "what happens to the object?",
        "what do the hands do?",
        "how is the object handled?",
    ),
    "noun": (
        "which object is in the hand?",
        "what is being used?",
        "which thing is this about?",
        "what is the object?",
        "what does the person touch?",
        "what is handled?",
    ),
    "action": (
        "which action is performed, and on what?",
        "what is done with which object?",
        "what is the person doing, and with what?",
        "describe the action and its object.",
    ),
    "place": (
        "where does this take place?",
        "where is it taken from or put?",
        "what is the surrounding of the object?",
        "at which place is the object?",
    ),
}
"""Wordings of each kind. The answer to "verb" is a verb, to "noun" a noun, to "action" a pair of both, to "place" the
second noun of the narration: the cupboard in "take plate from cupboard"."""

KINDS = tuple(QUESTIONS)


class Question(NamedTuple):
    """What is asked: one of `KINDS` and a text, both empty for the neutral question."""

    kind: str
    text: str


def draw_question(kinds: Sequence[str], neutral: float, generator: torch.Generator | None = None) -> Question:
    """A question at random.

    Args:
        kinds: of which to draw, all alike.
        neutral: probability that nothing particular is asked.
        generator: source of randomness; None is torch's own.

    Raises:
        DataError: there is no such kind.
    """
    for kind in kinds:
        if kind not in QUESTIONS:
            raise DataError(f"There are no questions about {kind!r}; choose from {', '.join(KINDS)}.")
    # The same numbers are drawn whatever comes out, so that what follows in a stream does not depend on it.
    asked, kind, wording = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    if not kinds or asked < neutral:
        return Question("", "")
    name = kinds[int(kind * len(kinds))]
    return Question(name, QUESTIONS[name][int(wording * len(QUESTIONS[name]))])


def answer_number(kind: str, verb: int, nouns: Sequence[int], action: int, num_verbs: int, num_nouns: int) -> int:
    """The answer's place in the vocabulary [verbs, nouns, actions]; -1 for one that is not there.

    Args:
        kind: of the question, "" for the neutral one, which has no answer.
        verb: class of the verb, -1 where it is not known.
        nouns: classes of the narration's nouns, the object first.
        action: position in the list of actions, -1 where it is not in it.
        num_verbs: size of the vocabulary's first part.
        num_nouns: of its second.
    """
    if kind == "verb":
        return verb
    if kind == "action":
        return num_verbs + num_nouns + action if action >= 0 else -1
    place = {"noun": 0, "place": 1}.get(kind)
    if place is None or len(nouns) <= place:
        return -1
    return num_verbs + nouns[place] if nouns[place] >= 0 else -1
