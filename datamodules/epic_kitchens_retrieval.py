"""Multi-instance retrieval of EPIC-KITCHENS-100: segments, and sentences that fit them more or less.

The protocol is in docs/protocol.md, section 24.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from datamodules.annotations.epic_kitchens import SOURCE, labels_of, read_table, seconds_of
from datamodules.augment import TrainTransform
from datamodules.checks import Range, check
from datamodules.clips import ClipFormat
from datamodules.errors import DataError, some
from datamodules.kitchens import KitchenDataModule
from datamodules.loading import Item
from datamodules.retrieval import collate_captions
from datamodules.segments import read_segment
from datamodules.storage.files import join
from datamodules.unreadable import ListedItems, UnreadableTally

__all__ = ["EpicKitchensRetrieval", "NarratedDataset", "NarratedSegment", "Sentences"]

_FOLDER = "retrieval_annotations"
_LISTS = {"train": "EPIC_100_retrieval_train", "val": "EPIC_100_retrieval_test", "test": "EPIC_100_retrieval_test"}
_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration",
            "verb_class", "noun_class", "all_noun_classes")  # fmt: skip
_RELEVANT = 0.1
"""A sentence of higher relevance may be the text of a training segment."""


class NarratedSegment(NamedTuple):
    """One segment, and the sentences that were written about it.

    Attributes:
        path: of the video: a file, or a folder or tar of its frames.
        narration_id: the annotation's name.
        span: first and last second.
        verb: class.
        nouns: classes of all nouns of the narration, the object first.
        texts: its sentences, often none.
    """

    path: str
    narration_id: str
    span: tuple[float, float]
    verb: int
    nouns: tuple[int, ...]
    texts: tuple[str, ...]


class Sentences:
    """The sentences of a split, each with the classes of its segment.

    Args:
        segments: the listing.
        num_nouns: size of the vocabulary of nouns.
    """

    def __init__(self, segments: Sequence[NarratedSegment], num_nouns: int) -> None:
        owners = [segment for segment in segments for _ in segment.texts]
        self.texts = [text for segment in segments for text in segment.texts]
        self.verbs = torch.tensor([owner.verb for owner in owners], dtype=torch.int64)
        self.nouns = torch.zeros(num_nouns, len(owners), dtype=torch.bool)
        for column, owner in enumerate(owners):
            self.nouns[list(owner.nouns), column] = True
        self.counts = self.nouns.sum(dim=0)

    def relevance(self, segment: NarratedSegment) -> torch.Tensor:
        """Of all sentences to a segment, float64 (M,): half for the verb, half for the share of common nouns."""
        common = self.nouns[list(segment.nouns)].sum(dim=0)
        union = len(segment.nouns) + self.counts - common
        return ((self.verbs == segment.verb).double() + common.double() / union) / 2

    def relevant(self, segment: NarratedSegment) -> torch.Tensor:
        """Numbers of the sentences that a segment may be trained with, int64, ascending."""
        return (self.relevance(segment) > _RELEVANT).nonzero().flatten()

    def draw(self, segment: NarratedSegment) -> str:
        """One of these, with torch's generator."""
        found = self.relevant(segment)
        return self.texts[found[torch.randint(len(found), ())]]


@dataclass(eq=False, repr=False)
class NarratedDataset(ListedItems):
    """A segment with a sentence that fits it for training, with all of its own sentences for evaluation.

    Training items have `video` uint8 (3, T, H, W), `text`, `index` and `video_index` (both the number of the segment),
    `path`, `narration_id` and `seed`. An unreadable video is replaced together with its text.
    Evaluation items have `text`, a list, `verb`, `nouns` bool (N,) and `segment`, the number of the segment, in
    addition. An unreadable video is replaced by zeros with index -1, and keeps the rest.

    Args:
        segments: the listing.
        clip: frames and pixels.
        num_nouns: N, size of the vocabulary of nouns.
        transform: of training clips; None makes items for evaluation.
        max_unreadable: see `datamodules.unreadable.UnreadableTally`, which the code that iterates has to `check`.
    """

    segments: Sequence[NarratedSegment]
    clip: ClipFormat
    num_nouns: int
    _: KW_ONLY
    transform: TrainTransform | None = None
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        self.training = self.transform is not None
        self.sentences = Sentences(self.segments, self.num_nouns) if self.training else None
        self.tally = UnreadableTally(self.segments, self.max_unreadable)

    @override
    def _read(self, number: int) -> Item:
        segment = self.segments[number]
        # First of all, so that the random numbers of a text do not depend on the video.
        text = list(segment.texts) if self.sentences is None else self.sentences.draw(segment)
        found = read_segment(segment.path, segment.span, self.clip, transform=self.transform)
        return self._item(number, self.clip.zeros() if found is None else found, text, number)

    @override
    def _placeholder(self, number: int) -> Item:
        text = "" if self.training else list(self.segments[number].texts)
        return self._item(number, self.clip.zeros(), text, -1)

    def _item(self, number: int, video: torch.Tensor, text: str | list[str], index: int) -> Item:
        segment = self.segments[number]
        item = {"video": video, "text": text, "index": index, "video_index": index, "path": segment.path,
                "narration_id": segment.narration_id}  # fmt: skip
        if self.training:
            return item
        nouns = torch.zeros(self.num_nouns, dtype=torch.bool)
        nouns[list(segment.nouns)] = True
        return {**item, "verb": segment.verb, "nouns": nouns, "segment": number}


class EpicKitchensRetrieval(KitchenDataModule[NarratedSegment, NarratedDataset]):
    """Multi-instance retrieval of EPIC-KITCHENS-100: the official annotations for it, and the videos.

    Videos are found as by `datamodules.EpicKitchens100`.

    | file | where |
    |---|---|
    | EPIC_100_retrieval_train.csv, EPIC_100_retrieval_test.csv: the segments | retrieval_annotations in root, root/annotations or root/epic-kitchens-100-annotations, or where `annotations` says |
    | EPIC_100_retrieval_train_sentence.csv, EPIC_100_retrieval_test_sentence.csv: the sentences | the same |
    | EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv: the classes | the folder above |
    | P01/videos/P01_01.MP4, or frames in rgb_frames | root or root/EPIC-KITCHENS, or where `videos` says |

    A sentence is the narration of the segment whose narration_id it has, and has the verb and nouns of that segment;
    the text in the file of sentences is not read, which differs for 6 of the official ones. Validation, testing and
    prediction read the test list, which has the segments of EPIC-KITCHENS' validation split. Their batches have the
    classes from which a model computes relevance, mean average precision and nDCG (docs/batches.md): the files of
    relevance that others pass on as pickles are not needed.

    A training segment gets, each time it is drawn, one of the sentences of relevance above 0.1.

    Args:
        root: folder of the videos and annotations, a path or a URL.
        annotations: folder of the CSV files, with or without a folder retrieval_annotations; None looks in those above.
        videos: folder in which videos are searched; None is root.
        crop_area: range of the share of the frame that a training crop covers.
        common: see `datamodules.clips.ClipDataModule`.

    Raises:
        DataError: from `setup`: a file is missing, lacks a column or a value, names classes that there are not, or a
            sentence names no segment.
    """  # noqa: E501

    collate = staticmethod(collate_captions)

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | None = None,
        videos: str | None = None,
        crop_area: tuple[float, float] = (0.5, 1.0),
        **common: Any,
    ) -> None:
        super().__init__(root, annotations=annotations, videos=videos, **common)
        check(crop_area=(crop_area, Range(1)))
        self.crop_area = (crop_area[0], crop_area[1])

    @property
    def captions(self) -> list[str]:
        """All sentences of the training split, to learn word pieces from."""
        segments = self.datasets["train"].segments if "train" in self.datasets else self.listing("train")
        return [text for segment in segments for text in segment.texts]

    @override
    def list_videos(self, split: str) -> list[NarratedSegment]:
        path, written = (self._needed(f"{_LISTS[split]}{end}.csv") for end in ("", "_sentence"))
        self.origins[split] = path
        rows = read_table(path, _COLUMNS)
        counts = Counter(row["narration_id"] for row in rows)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(f"{path} has {len(twice)} narration_ids twice: {some(twice)}; take the file of the "
                            f"official release ({SOURCE}).")  # fmt: skip
        sentences = Counter(row["narration_id"] for row in read_table(written, ("narration_id",)))
        strange = [name for name in sentences if name not in counts]
        if strange:
            raise DataError(f"{written} has {len(strange)} sentences of segments that {path} does not list: "
                            f"{some(strange)}; take both files of the same release.")  # fmt: skip
        where = self.locate({row["video_id"]: row["participant_id"] for row in rows}, split)
        segments = []
        for row in rows:
            span = (seconds_of(path, row, "start_timestamp"), seconds_of(path, row, "stop_timestamp"))
            texts = (row["narration"],) * sentences[row["narration_id"]]
            known = labels_of(path, row)
            segments.append(NarratedSegment(where[row["video_id"]], row["narration_id"], span, *known, texts))
        return segments

    @override
    def check_listings(self, listings: Mapping[str, Sequence[NarratedSegment]]) -> None:
        """Raises `DataError` for classes that there are not, and training segments that no sentence fits."""
        for split, segments in listings.items():
            self.refuse_strays(split, segments)
            unknown = [s.narration_id for s in segments if s.verb < 0 or min(s.nouns) < 0]
            if unknown:
                raise DataError(f"{len(unknown)} of the {len(segments)} {split} segments have a class below 0: "
                                f"{some(unknown)}; take the lists of the official release ({SOURCE}).")  # fmt: skip
        train = listings.get("train", ())
        verbs = {segment.verb for segment in train if segment.texts}
        # The same verb is half of relevance, so the others only have to be looked at.
        others = [segment for segment in train if segment.verb not in verbs]
        if others:
            sentences = Sentences(train, len(self.noun_names))
            bare = [segment.narration_id for segment in others if not len(sentences.relevant(segment))]
            if bare:
                raise DataError(f"{len(bare)} of the {len(train)} train segments have no sentence of relevance above "
                                f"{_RELEVANT}: {some(bare)}; take both files of the same release.")  # fmt: skip

    @override
    def make_dataset(self, split: str, samples: Sequence[NarratedSegment], clip: ClipFormat) -> NarratedDataset:
        transform = None
        if split == "train":
            # Narrations say what is left and right, so pictures are not mirrored.
            transform = TrainTransform(clip.image_size, self.crop_area, interpolation=clip.interpolation, flip=0.0)
        return NarratedDataset(samples, clip, len(self.noun_names), transform=transform,
                               max_unreadable=self.max_unreadable)  # fmt: skip

    def _needed(self, name: str) -> str:
        return self.find(join(_FOLDER, name)) or self.find(name) or self.annotation(join(_FOLDER, name))
