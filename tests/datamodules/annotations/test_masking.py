"""Answers in questions are hidden in every form that the published rule hides, and only they."""

import pytest

from datamodules.annotations.masking import label_words, mask_words


def masked(question: str, label: str) -> str:
    return mask_words(question, label_words(label))


@pytest.mark.parametrize(
    ("question", "label", "expected"),
    [
        ("What is the person taking from the shelf?", "take", "What is the person <mask> from the shelf ?"),
        ("What was taken?", "take", "What was <mask> ?"),
        ("How are the plates moved?", "plate", "How are the <mask> moved ?"),
        ("Where do the knives and loaves go?", "knife", "Where do the <mask> and loaves go ?"),
        ("Where do the knives and loaves go?", "loaf", "Where do the knives and <mask> go ?"),
        # A word of a label that spaCy keeps whole: the lemma is the word itself.
        ("Where are the scissors?", "scissors", "Where are the <mask> ?"),
        # Nouns made of verbs, irregular forms, capitals.
        ("What is the cutting for?", "cut", "What is the <mask> for ?"),
        ("Mixing what? It broke.", "mix", "<mask> what ? It broke ."),
        ("Mixing what? It broke.", "break", "Mixing what ? It <mask> ."),
        # Words after each other become one mask, torn apart they stay.
        ("What is being put down on the table?", "put-down", "What is being <mask> on the table ?"),
        ("What does she put slowly down?", "put-down", "What does she put slowly down ?"),
        ("Who puts? Down it goes.", "put-down", "Who puts ? Down it goes ."),
        ("What is put", "put-down", "What is put"),
        ("open, opened, opening", "open", "<mask> , <mask> , <mask>"),
        # Compound nouns of EPIC are one word, which no sentence has.
        ("Where is the chopping board?", "board:chopping", "Where is the chopping board ?"),
        # Words that no dictionary has.
        ("Which hobs and airfryers?", "airfryer", "Which hobs and <mask> ?"),
        ("Which hobs and airfryers?", "hob", "Which <mask> and airfryers ?"),
        # Contractions and punctuation as spaCy takes them apart.
        ("Isn't the pan's lid washed-up?", "pan", "Is n't the <mask> 's lid washed - up ?"),
        ("Isn't the pan\u2019s lid washed-up?", "wash", "Is n't the pan \u2019s lid <mask> - up ?"),
        ("What (or who)?", "", "What ( or who ) ?"),
    ],
)  # fmt: skip
def test_masks(question, label, expected):
    assert masked(question, label) == expected


def test_a_label_masks_itself_in_any_inflection():
    forms = {
        "wash": "wash washes washing washed", "put": "put puts putting", "cut": "cut cuts cutting",
        "dry": "dry dries drying dried", "throw": "throw throws throwing threw thrown",
        "fill": "fill fills filling filled", "flip": "flip flips flipping flipped",
        "knead": "knead kneads kneading kneaded", "lift": "lift lifts lifting lifted",
        "season": "season seasons seasoning seasoned", "unroll": "unroll unrolls unrolling unrolled",
        "potato": "potato potatoes", "leaf": "leaf leaves", "glass": "glass glasses", "mouse": "mouse mice",
        "tongs": "tongs", "cheese": "cheese cheeses", "dish": "dish dishes", "berry": "berry berries",
    }  # fmt: skip
    for label, words in forms.items():
        assert set(masked(words, label).split()) == {"<mask>"}, (label, masked(words, label))
