"""EPIC-KITCHENS-100 retrieval in its real layout: segments, sentences of their ids, relevance, training texts."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules import DataError, EpicKitchens100, EpicKitchensRetrieval
from datamodules.epic_kitchens_retrieval import NarratedSegment, Sentences
from datamodules.loading import Draw
from datamodules.synthetic.kitchen import generate_kitchen
from datamodules.video.sampling import clip_indices

CLIP = dict(num_frames=4, image_size=32, short_side=32, sampling="middles", frame_stride=2, interpolation="bicubic",
            num_workers=0, batch_size=4)  # fmt: skip
HEADER = ("narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
          "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes")  # fmt: skip


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    return generate_kitchen(tmp_path_factory.mktemp("kitchen") / "data", num_train=4, num_val=3, num_test=1, actions=4,
                            size=(48, 40), num_frames=12, num_workers=0, progress=False)  # fmt: skip


def data(root, **kwargs):
    return EpicKitchensRetrieval(root, **{**CLIP, **kwargs})


def row(name, verb, nouns, text, seconds=(0, 1)):
    times = ",".join(f"00:00:{second:05.2f}" for second in seconds)
    return f"{name},P01,P01_01,,{times},1,2,{text},v,{verb},n,{nouns[0]},['n'],\"{nouns}\""


@pytest.fixture
def lists(kitchen, tmp_path):
    """`lists(split, rows, ids)` writes other lists; gives the root, whose videos are the generated ones."""
    root = tmp_path / "root"
    shutil.copytree(kitchen, root, copy_function=lambda a, b: Path(b).symlink_to(a))
    folder = root / "annotations" / "retrieval_annotations"

    def write(split, rows, sentences):
        for end, lines in (("", [HEADER, *rows]), ("_sentence", ["narration_id,narration", *sentences])):
            path = folder / f"EPIC_100_retrieval_{split}{end}.csv"
            path.unlink()
            path.write_text("\n".join(lines))
        return root

    return write


# Listings ------------------------------------------------------------------------------------------------------------


def test_segments_are_those_of_recognition_and_sentences_those_of_their_ids(kitchen):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = data(kitchen)
        module.setup()
    actions = EpicKitchens100(kitchen, **CLIP)
    for split in ("train", "val"):
        ours, theirs = module.listing(split), actions.listing(split)
        for name in ("path", "narration_id", "span", "verb", "nouns"):
            assert [getattr(s, name) for s in ours] == [getattr(s, name) for s in theirs]
        texts = [text for segment in ours for text in segment.texts]
        assert len(texts) == len(set(texts)) <= len(ours) and texts[0] == ours[0].texts[0]
    assert module.listing("test") == module.listing("val")
    assert module.captions == [text for segment in module.listing("train") for text in segment.texts]


def test_the_text_of_a_sentence_is_that_of_its_id(lists):
    """As in the official file, the text beside an id may be another one's, and an id may come twice."""
    rows = [row("P01_01_0", 1, [2], "take cup"), row("P01_01_1", 2, [2, 9], "wash cup in sink"),
            row("P01_01_2", 1, [2], "take cup")]  # fmt: skip
    root = lists("test", rows, ["P01_01_0,take cup", "P01_01_1,wash cup in sink", "P01_01_1,wash the pan"])
    found = data(root).listing("val")
    assert [segment.texts for segment in found] == [("take cup",), ("wash cup in sink",) * 2, ()]
    assert [segment.nouns for segment in found] == [(2,), (2, 9), (2,)]


def test_annotations_anywhere(kitchen, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(kitchen / "annotations", other)
    assert data(kitchen, annotations=str(other)).listing("val") == data(kitchen).listing("val")
    for file in (other / "retrieval_annotations").iterdir():
        file.rename(other / file.name)
    assert data(kitchen, annotations=str(other)).listing("val") == data(kitchen).listing("val")


# Items ---------------------------------------------------------------------------------------------------------------


def slow_relevance(one, other):
    nouns, others = set(one.nouns), set(other.nouns)
    return ((one.verb == other.verb) + len(nouns & others) / len(nouns | others)) / 2


def test_relevance_and_what_a_segment_is_trained_with(kitchen):
    module = data(kitchen)
    segments = module.listing("train")
    sentences = Sentences(segments, len(module.noun_names))
    owners = [segment for segment in segments for _ in segment.texts]
    for segment in segments:
        expected = torch.tensor([slow_relevance(segment, owner) for owner in owners], dtype=torch.float64)
        torch.testing.assert_close(sentences.relevance(segment), expected)
        wanted = {text for text, value in zip(sentences.texts, expected, strict=True) if value > 0.1}
        assert {sentences.texts[i] for i in sentences.relevant(segment)} == wanted
        torch.manual_seed(0)
        drawn = {sentences.draw(segment) for _ in range(300)}
        assert drawn == wanted and 1 < len(wanted) < len(owners)


def test_relevance_equals_the_official_one(golden):
    tensors, _ = golden("vim_suite_ek100")
    nouns = [tuple(row.nonzero().flatten().tolist()) for row in tensors["mir.noun_sets"]]
    owner = tensors["mir.sentence_of_video"].tolist()
    segments = [NarratedSegment("", str(i), (0, 1), int(verb), nouns[i], ("x",) * owner.count(i))
                for i, verb in enumerate(tensors["mir.verb_class"])]  # fmt: skip
    sentences = Sentences(segments, tensors["mir.noun_sets"].shape[1])
    by_segment = sorted(range(len(owner)), key=owner.__getitem__)
    found = torch.stack([sentences.relevance(segment) for segment in segments])
    torch.testing.assert_close(found.float(), tensors["mir.relevance"][:, by_segment])


def test_frames_are_the_middles_of_equal_parts(golden):
    """Of a video of 30 frames a second, as the official code has them."""
    tensors, _ = golden("vim_suite_ek100")
    numbers = tensors["sampling.seconds_and_frames"].tolist()
    for (start, end, frames), expected in zip(numbers, tensors["sampling.frame_ids"], strict=True):
        first, last = round(30 * start), round(30 * end)
        found = first + clip_indices(last - first, int(frames), sampling="middles", mode="test")
        assert found.tolist() == expected[expected >= 0].tolist()


def test_batches(kitchen):
    seed_everything(0)
    module = data(kitchen, batch_size=3)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (3, 3, 4, 32, 32) and batch["video"].dtype == torch.uint8
    assert torch.equal(batch["index"], batch["video_index"]) and batch["seed"].shape == (3,)
    assert all(isinstance(text, str) and text for text in batch["text"]) and "nouns" not in batch
    transform = module.datasets["train"].transform
    assert (transform.area, transform.flip, transform.num_ops) == ((0.5, 1.0), 0.0, 0)
    segments, seen = module.listing("val"), []
    for loader in (module.val_dataloader(), module.test_dataloader()):
        for batch in loader:
            seen += batch["segment"].tolist()
            for i, number in enumerate(batch["segment"].tolist()):
                segment = segments[number]
                assert batch["text"][i] == list(segment.texts) and batch["verb"][i] == segment.verb
                assert batch["nouns"][i].nonzero().flatten().tolist() == sorted(segment.nouns)
                assert batch["narration_id"][i] == segment.narration_id
            assert torch.equal(batch["segment"], batch["video_index"]) and batch["nouns"].dtype == torch.bool
    assert seen == [*range(len(segments))] * 2


def test_a_draw_gives_the_same_item_again_and_its_text_does_not_depend_on_the_video(kitchen, tmp_path):
    module = data(kitchen)
    module.setup("fit")
    dataset = module.datasets["train"]
    first, again, other = dataset[Draw(1, 5)], dataset[Draw(1, 5)], [dataset[Draw(1, seed)] for seed in range(6, 12)]
    assert first["text"] == again["text"] and torch.equal(first["video"], again["video"])
    assert len({item["text"] for item in other}) > 1
    assert not all(torch.equal(item["video"], first["video"]) for item in other)
    # Of a video of another length the frames are others, and the text the same.
    longer = dataset.segments[1]._replace(span=(0.0, 5.0))
    dataset.segments[1] = longer
    assert dataset[Draw(1, 5)]["text"] == first["text"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_reads_the_same_sentences(kitchen, num_workers):
    def loader(state=None):
        module = data(kitchen, batch_size=3, num_workers=num_workers)
        seed_everything(1)
        module.setup("fit")
        module.load_state_dict(state or {})
        return module, iter(module.train_dataloader())

    _, whole = loader()
    expected = [(batch["text"], batch["index"].tolist()) for batch in whole]
    module, started = loader()
    next(started), next(started)
    _, resumed = loader(module.state_dict())
    assert [(batch["text"], batch["index"].tolist()) for batch in resumed] == expected[2:]


def test_broken_videos_are_replaced_in_training_and_keep_their_sentences_in_evaluation(kitchen, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(kitchen, root)
    module = data(root, max_unreadable=0.9)
    for split in ("train", "val"):
        Path(module.listing(split)[0].path).write_bytes(b"not a video")
    module.setup("fit")
    with pytest.warns(UserWarning, match="replaced by another video"):
        item = module.datasets["train"][Draw(0, 3)]
    assert item["index"] == item["video_index"] >= 4 and item["video"].any()
    sentences, segment = module.datasets["train"].sentences, module.listing("train")[item["index"]]
    assert item["text"] in {sentences.texts[i] for i in sentences.relevant(segment)}
    with pytest.warns(UserWarning, match="left out of the evaluation"):
        item = module.datasets["val"][0]
    assert item["index"] == item["video_index"] == -1 and not item["video"].any()
    assert item["segment"] == 0 and item["text"] == list(module.listing("val")[0].texts) and item["nouns"].any()


# Mistakes ------------------------------------------------------------------------------------------------------------


GOOD = [row("P01_01_0", 1, [2], "take cup"), row("P01_01_1", 2, [2, 9], "wash cup in sink")]


@pytest.mark.parametrize(
    ("rows", "sentences", "sentence"),
    [
        (GOOD, ["P01_01_7,take pan"], r"has 1 sentences of segments that .*train\.csv does not list: P01_01_7; take"),
        ([*GOOD, GOOD[0]], ["P01_01_0,x"], r"train\.csv has 1 narration_ids twice: P01_01_0; take"),
        ([GOOD[0], row("P01_01_1", 2, [99], "x")], ["P01_01_0,x"], r"outside the tables of 8 verbs and 14 nouns"),
        ([GOOD[0], row("P01_01_1", -4, [1], "x")], ["P01_01_0,x"], r"1 of the 2 train segments have a class below 0"),
        ([GOOD[0], row("P01_01_1", 1, [-3], "x")], ["P01_01_0,x"], r"1 of the 2 train segments have a class below 0"),
        ([*GOOD, row("P01_01_2", 5, [7], "x")], ["P01_01_0,x"], r"1 of the 3 train segments have no sentence of relev"),
        ([*GOOD, row("P01_01_2", 5, [7], "")], ["P01_01_0,x"], r"train\.csv has no narration in line 4"),
        (GOOD, ["P01_01_0," + "x" * 200_000], r"field larger than field limit.*; download the file again"),
        (GOOD, [], r"train_sentence\.csv has no rows"),
    ],
    ids=["strange id", "twice", "outside", "negative verb", "negative noun", "bare", "mute", "huge", "empty"],
)  # fmt: skip
def test_malformed_lists_are_one_sentence(lists, rows, sentences, sentence):
    root = lists("train", rows, sentences)
    with pytest.raises(DataError, match=sentence) as refused:
        data(root).setup("fit")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_missing_files_are_named(kitchen, tmp_path):
    with pytest.raises(DataError, match=r"no retrieval_annotations/EPIC_100_retrieval_train\.csv in .*; name"):
        data(tmp_path).setup("fit")
    root = tmp_path / "root"
    shutil.copytree(kitchen / "annotations", root / "annotations")
    with pytest.raises(DataError, match=r"None of the \d+ train videos is below"):
        data(root).setup("fit")
    (root / "annotations/retrieval_annotations/EPIC_100_retrieval_test_sentence.csv").unlink()
    with pytest.raises(DataError, match=r"no retrieval_annotations/EPIC_100_retrieval_test_sentence\.csv"):
        data(root).setup("test")
    with pytest.raises(DataError, match="reads no shards"):
        data(root, shards="x").setup("test")
