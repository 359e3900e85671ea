"""The answer cannot be read off the question."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from datamodules.annotations.questions import KINDS, QUESTIONS, answer_number, draw_question
from datamodules.errors import DataError

VERBS, NOUNS = 5, 7
ACTIONS = list(itertools.product(range(VERBS), range(NOUNS)))


def draw(n, seed=0, neutral=0.2):
    generator = torch.Generator().manual_seed(seed)
    return [draw_question(KINDS, neutral, generator) for _ in range(n)]


def answers(question, action):
    verb, noun = ACTIONS[action]
    nouns = (noun, (noun + 3) % NOUNS) if action % 3 else (noun,)
    return answer_number(question.kind, verb, nouns, action, VERBS, NOUNS)


def test_a_question_is_a_function_of_random_numbers_alone():
    """Nothing about the action goes in: equal generators ask equal things, and later draws do not depend on earlier."""
    assert draw(50) == draw(50) != draw(50, seed=1)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for neutral, generator in zip((0.0, 1.0), generators, strict=True):
        draw_question(KINDS, neutral, generator)
    assert generators[0].get_state().equal(generators[1].get_state())


def test_all_kinds_and_wordings_come_equally_often():
    drawn = draw(8000)
    kinds = [question.kind for question in drawn]
    assert abs(kinds.count("") / 8000 - 0.2) < 0.02
    assert all(abs(kinds.count(kind) / 8000 - 0.2) < 0.02 for kind in KINDS)
    for kind, texts in QUESTIONS.items():
        found = [question.text for question in drawn if question.kind == kind]
        assert len(set(texts)) == len(texts) >= 4
        assert all(abs(found.count(text) / len(found) - 1 / len(texts)) < 0.06 for text in texts)
    everything = [text for texts in QUESTIONS.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_a_model_that_reads_the_question_alone_is_at_chance():
    """Features of all words and of the whole text: after training, as often right as always saying the most frequent
    verb; and of the answers, given the kind, as often as the most frequent answer of that kind."""
    n = 6000
    generator = torch.Generator().manual_seed(5)
    actions = torch.randint(len(ACTIONS), (n,), generator=generator)
    drawn = draw(n, seed=7, neutral=0.0)
    words = sorted({word for q in drawn for word in q.text.split()} | {q.text for q in drawn})
    x = torch.zeros(n, len(words))
    for row, question in enumerate(drawn):
        for word in (*question.text.split(), question.text):
            x[row, words.index(word)] = 1
    verb = torch.tensor([ACTIONS[action][0] for action in actions])
    answer = torch.tensor([answers(q, a) for q, a in zip(drawn, actions.tolist(), strict=True)])
    for target, classes in ((verb, VERBS), (answer, VERBS + NOUNS + len(ACTIONS))):
        weight = torch.zeros(len(words), classes, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(x[: n // 2] @ weight, target[: n // 2], ignore_index=-1).backward()
            optimizer.step()
        held, guess = target[n // 2 :], (x[n // 2 :] @ weight).argmax(1)
        counted = held >= 0
        right = float((guess == held)[counted].float().mean())
        if classes == VERBS:
            chance = 1 / VERBS
        else:
            # Knowing the kind is all there is: the best constant answer of each, on the held-out half itself.
            chance = 0.0
            for kind in KINDS:
                of_kind = torch.tensor([question.kind == kind for question in drawn[n // 2 :]]) & counted
                chance += float(torch.bincount(held[of_kind]).max() / counted.sum())
        assert right < chance + 0.02


def test_the_kind_says_nothing_about_the_action_either():
    """A place is asked of actions without a place too; its answer then does not count."""
    drawn = [q for q in draw(3000, neutral=0.0) if q.kind == "place"]
    assert drawn and all(answers(q, 0) == -1 and answers(q, 1) == VERBS + (ACTIONS[1][1] + 3) % NOUNS for q in drawn)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("verb", (2, (4,), 9), 2),
        ("noun", (2, (4, 6), 9), VERBS + 4),
        ("place", (2, (4, 6), 9), VERBS + 6),
        ("place", (2, (4,), 9), -1),
        ("action", (2, (4,), 9), VERBS + NOUNS + 9),
        ("action", (2, (4,), -1), -1),  # not in the list of actions
        ("", (2, (4,), 9), -1),
        ("noun", (-1, (), -1), -1),  # a list without labels
        ("verb", (-1, (), -1), -1),
    ],
)
def test_answers_are_numbered_verbs_nouns_actions(kind, arguments, expected):
    assert answer_number(kind, *arguments, VERBS, NOUNS) == expected


def test_unknown_kinds_and_no_kinds():
    with pytest.raises(DataError, match="no questions about 'time'; choose from verb, noun, action, place"):
        draw_question(("verb", "time"), 0.5)
    assert draw_question((), 0.0) == ("", "")
