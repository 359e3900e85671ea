"""Hides the answer in a question: words of a label become `<mask>`, in whatever form they stand there."""

import re
from collections.abc import Sequence
from functools import cache

__all__ = ["MASK", "label_words", "mask_words"]

MASK = "<mask>"
"""RoBERTa's mask token."""

_TOKEN = re.compile(r"\w+(?=n['\u2019]t\b)|n['\u2019]t\b|['\u2019](?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]", re.IGNORECASE)
"""Words, the "n't" and "'s" of contracted ones, and each punctuation mark, as spaCy splits English."""


def label_words(label: str) -> list[str]:
    """The words of a verb or noun of EPIC-KITCHENS: "put-down" has two, "board:chopping" is one."""
    return label.lower().replace("-", " ").split()


def mask_words(question: str, words: Sequence[str]) -> str:
    """The question with the words replaced by one `<mask>` wherever they follow each other in any of their forms.

    The rule of MambaVL's authors (docs/protocol.md, section 22), who take lemmas from spaCy. Here a word counts where
    it, or its lemma as any part of speech, is the wanted one: "cutting" as a noun too is masked for "cut", where spaCy
    may leave it. What their rule does not catch stays as it is: words torn apart ("put it down"), and compound nouns in
    EPIC's spelling, which no sentence has.

    Args:
        question: English.
        words: lower case, see `label_words`; none mask nothing.

    Returns:
        Words and punctuation marks with a space between any two of them, as the authors join spaCy's tokens.
    """
    tokens = _TOKEN.findall(question)
    masked, place = [], 0
    while place < len(tokens):
        found = tokens[place : place + len(words)]
        if words and len(found) == len(words) and all(w in _forms(t) for w, t in zip(words, found, strict=True)):
            masked.append(MASK)
            place += len(words)
        else:
            masked.append(tokens[place])
            place += 1
    return " ".join(masked)


@cache  # the questions of EPIC-KITCHENS have a few thousand words
def _forms(token: str) -> frozenset[str]:
    """The word itself and its lemmas, lower case."""
    from lemminflect import getAllLemmas, getAllLemmasOOV

    word = token.lower()
    if not word.isalpha():
        return frozenset([word])
    # Of a word that is in no dictionary, what the rules make of it: "airfryers" -> "airfryer".
    known = getAllLemmas(word) or {**getAllLemmasOOV(word, "NOUN"), **getAllLemmasOOV(word, "VERB")}
    return frozenset([word, *(lemma.lower() for lemmas in known.values() for lemma in lemmas)])
