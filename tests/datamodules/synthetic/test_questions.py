"""Questions of the generated kitchen: both forms say the same, and who reads them needs no video."""

from collections import Counter
from pathlib import Path

import pytest

from datamodules import EpicKitchens100
from datamodules.annotations.masking import label_words, mask_words
from datamodules.annotations.pandas_pickles import read_frame
from datamodules.annotations.question_files import GENERIC, read_questions
from datamodules.synthetic.kitchen import VERBS, generate_kitchen
from datamodules.synthetic.motion import SHAPES
from datamodules.synthetic.questions import question_pair


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    return generate_kitchen(tmp_path_factory.mktemp("kitchen") / "data", num_train=24, num_val=6, num_test=1, actions=6,
                            size=(32, 32), num_frames=4, num_workers=0, progress=False)  # fmt: skip


def data(kitchen: Path, **kwargs) -> EpicKitchens100:
    return EpicKitchens100(kitchen, num_frames=2, image_size=16, short_side=16, sampling="middles", frame_stride=1,
                           interpolation="bilinear", num_workers=0, batch_size=4, **kwargs)  # fmt: skip


def test_both_forms_have_the_texts_of_every_segment(kitchen):
    for split in ("train", "validation"):
        pickled = kitchen / "annotations" / f"EPIC_100_{split}_actions_gpt_questions_clean.pkl"
        table = kitchen / "annotations" / f"EPIC_100_{split}_questions.csv"
        pairs = read_questions(str(pickled))
        assert pairs == read_questions(str(table))
        segments = data(kitchen).listing("train" if split == "train" else "val")
        assert list(pairs) == [segment.narration_id for segment in segments]
        for segment in segments:
            assert pairs[segment.narration_id] == question_pair(VERBS[segment.verb], list(SHAPES)[segment.nouns[0]])
        named = read_frame(str(pickled), ["narration_id", "verb", "noun"])
        assert named["verb"] == [VERBS[segment.verb] for segment in segments]


def test_a_question_hides_the_other_half_and_does_not_name_its_answer():
    for verb in VERBS:
        for noun in SHAPES:
            pair = question_pair(verb, noun)
            for question, other, answer in ((pair[0], noun, verb), (pair[1], verb, noun)):
                masked = mask_words(question, label_words(other))
                assert masked.count("<mask>") == 1
                assert mask_words(masked.replace("<mask>", ""), label_words(answer)).count("<mask>") == 0
                assert not any(word in masked.lower().split() for word in label_words(other))


def accuracy(module: EpicKitchens100) -> dict[str, float]:
    """Of a reader that knows which answer each text had most often in training, and sees no video."""
    train, val = module.listing("train"), module.listing("val")
    right = {}
    for name, text, label in (
        ("verb", lambda s: s.verb_question, lambda s: s.verb),
        ("noun", lambda s: s.noun_question, lambda s: s.nouns[0]),
    ):
        answers: dict[str, Counter] = {}
        for segment in train:
            answers.setdefault(text(segment), Counter())[label(segment)] += 1
        guesses = [answers[text(s)].most_common(1)[0][0] if text(s) in answers else -1 for s in val]
        right[name] = sum(guess == label(s) for guess, s in zip(guesses, val, strict=True)) / len(val)
    return right


def test_the_leak_is_visible(kitchen):
    files = [f"EPIC_100_{split}_actions_gpt_questions_clean.pkl" for split in ("train", "validation")]
    leaking = data(kitchen, question_files=files, questions="as_published")
    assert accuracy(leaking) == {"verb": 1.0, "noun": 1.0}
    assert max(accuracy(data(kitchen)).values()) < 0.5
    assert max(accuracy(data(kitchen, question_files=files)).values()) == 0.0  # no text of training in evaluation
    assert {(s.verb_question, s.noun_question) for s in data(kitchen).listing("val")} == {tuple(GENERIC)}


def test_training_and_evaluation_of_a_real_kitchen_read_what_is_asked(kitchen):
    files = ["EPIC_100_train_questions.csv", "EPIC_100_validation_questions.csv"]
    module = data(kitchen, question_files=files, questions="as_published", mixup=0.8)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert all("<mask>" in text for key in ("verb_question", "noun_question") for text in batch[key])
    assert all("<mask>" in text for text in next(iter(module.val_dataloader()))["verb_question"])
