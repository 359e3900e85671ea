"""EPIC-KITCHENS-100: short actions in long videos of kitchens, each a verb and a noun (docs/protocol.md, section 23).

Annotations are the official CSV files. What is seen of a segment is cut out by time: the frame numbers of the
annotations suppose 60 (or 50) frames per second, which the video files do not have.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from datamodules.annotations.epic_kitchens import (
    Segment,
    labels_of,
    number_of,
    observed_span,
    read_table,
    seconds_of,
    sorted_as_text,
)
from datamodules.annotations.features import FeatureTable, is_table
from datamodules.annotations.masking import label_words, mask_words
from datamodules.annotations.question_files import GENERIC, QuestionPair, read_questions
from datamodules.annotations.questions import KINDS, QUESTIONS, draw_question
from datamodules.augment import TrainTransform
from datamodules.checks import SHARE, Count, Number, OneOf, Range, check, fits
from datamodules.clips import ClipFormat
from datamodules.errors import DataError, some
from datamodules.kitchens import KitchenDataModule
from datamodules.loading import Batch, seeded
from datamodules.mixing import BatchMixer
from datamodules.segments import SegmentDataset
from datamodules.storage.files import join, resolve
from datamodules.video.sampling import MAX_FRAMES

__all__ = ["EpicKitchens100"]

_TRAIN, _VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
_UNSEEN = "EPIC_100_unseen_participant_ids_{}.csv"
_TAIL = {"verb": "EPIC_100_tail_verbs.csv", "noun": "EPIC_100_tail_nouns.csv"}
_ACTIONS = "actions.csv"
_AS_TEXT = "as_text"
_TASKS = ("recognition", "anticipation")
_EVALUATED = ("generic", "as_published")


class EpicKitchens100(KitchenDataModule[Segment, SegmentDataset]):
    """Actions of EPIC-KITCHENS-100: the official annotations, and videos, extracted frames or features.

    Files lie as the official downloader leaves them:

    | file | where |
    |---|---|
    | EPIC_100_*.csv | root, root/annotations or root/epic-kitchens-100-annotations, or where `annotations` says |
    | P01/videos/P01_01.MP4 | root or root/EPIC-KITCHENS, or where `videos` says; up to three folders deep |
    | P01/rgb_frames/P01_01.tar, or a folder P01_01 of frame_0000000001.jpg, ... | the same |
    | features.parquet or features.lance, written by `zoo extract`, or a folder of P01_01.safetensors | `features` |
    | EPIC_100_*_actions_gpt_questions_clean.pkl of MambaVL's authors | where `question_files` says |

    Needed are the list of the split, EPIC_100_verb_classes.csv (97) and EPIC_100_noun_classes.csv (300, not the 305 of
    EPIC_100_noun_classes_v2.csv). Rare classes and unseen participants come from the official lists too; without the
    latter, people without training videos are unseen, without the former no class is rare. The list of actions is
    `actions.csv` (id, verb, noun, action) where there is one, else all pairs of the training and validation lists in
    order, which gives the same 3,806. `actions.csv` has them sorted as the texts "verb:noun" (0:1, 0:10, 0:2), and so
    have released classifiers: ``actions: as_text`` gives this order without the file.

    The test split is that of validation, whose labels are public. For a submission name the challenge's list:
    ``lightning predict ... --data.test EPIC_100_test_timestamps.csv``.

    Two families of models read it. One is asked a question drawn at random in training (`question`, `question_kinds`),
    the other reads a question for the verb and one for the noun with every segment (`verb_question`, `noun_question`).
    These are two fixed texts unless there are `question_files`:

    | `question_files` | `questions` | training reads | validation, testing and prediction read |
    |---|---|---|---|
    | none | generic | the two fixed texts | the two fixed texts |
    | given | generic | those of the files | the two fixed texts |
    | given | as_published | those of the files | those of the files, which were written from the label and tell of it |

    Args:
        root: folder of the videos and annotations, a path or a URL.
        annotations: folder of the CSV files; None looks in those above.
        videos: folder in which videos are searched; None is root.
        features: table of extracted features, or a folder with a file of them for each video (`features` float32
            (n, width) and `seconds` float32 (n, 2)); they take the place of the videos.
        num_features: feature vectors of a segment.
        task: "recognition" or "anticipation"; None is the attached model's.
        observed_seconds: what is seen before an action that is to be anticipated.
        gap_seconds: how long before the action that ends; the challenge has 1.
        train: file name of the training list.
        val: of the validation list.
        test: of the test list; None tests on the validation list.
        actions: file with the list of actions, or "as_text": those of the training and validation lists, sorted as
            text; None looks for actions.csv.
        questions: what evaluation reads, "generic" or "as_published". (A list is taken for `question_kinds`.)
        question_files: files of a question pair for each segment, see `datamodules.annotations.question_files`; one, or
            as many as hold all segments that read them, paths or names beside the annotations. The segment's verb is
            masked in the noun's question, its noun in the verb's.
        question_kinds: kinds of questions in training, see `datamodules.annotations.questions`; empty asks none.
        neutral: share of training segments with the neutral question.
        num_clips: clips of a test segment.
        num_crops: crops of each, 1 or 3. Validation has one clip and one crop.
        crop_area: range of the share of the frame that a training crop covers.
        horizontal_flip: probability in training.
        rand_augment_ops: operations of RandAugment per clip; 0 is off.
        rand_augment_magnitude: their magnitude, 0 .. 10.
        mixup: alpha of the Beta distribution of mixup in training, see `datamodules.mixing.BatchMixer`; 0 is off. Mixes
            the clips, both labels and the action, not the questions.
        cutmix: the same of cutmix; where both are on, each has half of the batches.
        common: see `datamodules.clips.ClipDataModule`.

    Raises:
        DataError: from `setup`: a file is missing, lacks a column, or names classes that there are not.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | None = None,
        videos: str | None = None,
        features: str | None = None,
        num_features: int = 16,
        task: str | None = None,
        observed_seconds: float = 4.0,
        gap_seconds: float = 1.0,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        actions: str | None = None,
        questions: str | Sequence[str] = "generic",
        question_files: str | Sequence[str] | None = None,
        question_kinds: Sequence[str] = KINDS,
        neutral: float = 0.5,
        num_clips: int = 1,
        num_crops: int = 1,
        crop_area: tuple[float, float] = (0.25, 1.0),
        horizontal_flip: float = 0.5,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: float = 7.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(root, annotations=annotations, videos=videos, **common)
        if task not in (None, *_TASKS):
            raise DataError(f"task is {task!r}; choose one of {', '.join(_TASKS)}, or null for the model's.")
        if isinstance(questions, list | tuple):
            warnings.warn("questions lists kinds of training questions; name them in question_kinds.")
            questions, question_kinds = _EVALUATED[0], questions
        if isinstance(question_files, str):
            question_files = [question_files]
        if question_files is not None and not (
            question_files and fits(question_files, tuple[str, ...]) and all(question_files)
        ):
            raise DataError(f"question_files is {question_files!r}; name a file, several, or none with null.")
        check(
            num_features=(num_features, Count(1, MAX_FRAMES)),
            observed_seconds=(observed_seconds, Number(0, 1e6, above=True)),
            gap_seconds=(gap_seconds, Number(0, 1e6)),
            neutral=(neutral, SHARE),
            num_clips=(num_clips, Count(1, MAX_FRAMES)),
            num_crops=(num_crops, OneOf(1, 3)),
            crop_area=(crop_area, Range(1)),
            horizontal_flip=(horizontal_flip, SHARE),
            rand_augment_ops=(rand_augment_ops, Count(0, 100)),
            rand_augment_magnitude=(rand_augment_magnitude, Number(0, 10)),
            mixup=(mixup, Number(0, 1000)),
            cutmix=(cutmix, Number(0, 1000)),
            questions=(questions, OneOf(*_EVALUATED)),
        )
        draw_question(question_kinds, 0.0, torch.Generator())  # refuses unknown kinds
        if questions == "as_published" and question_files is None:
            raise DataError("questions is 'as_published' without questions; name their files in question_files.")
        if features is not None and (mixup or cutmix):
            raise DataError("mixup and cutmix mix clips; leave them at 0 with features.")
        self.features = None if features is None else resolve(features)
        self.num_features = num_features
        self._task = task
        self.observed_seconds, self.gap_seconds = observed_seconds, gap_seconds
        self.lists = {"train": train or _TRAIN, "val": val or _VALIDATION, "test": test or _VALIDATION}
        self._actions = actions
        self.questions, self.question_kinds, self.neutral = questions, tuple(question_kinds), neutral
        self.question_files = None if question_files is None else tuple(question_files)
        self.num_clips, self.num_crops = num_clips, num_crops
        self.crop_area, self.horizontal_flip = (crop_area[0], crop_area[1]), horizontal_flip
        self.rand_augment = (rand_augment_ops, rand_augment_magnitude)
        self.mixer = BatchMixer(mixup=mixup, cutmix=cutmix)

    # What the annotations say ----------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """The one given, else the attached model's."""
        hparams = getattr(getattr(self.trainer, "lightning_module", None), "hparams", {})
        return self._task or str(hparams.get("task") or _TASKS[0])

    @cached_property
    def actions(self) -> list[tuple[int, int]]:
        """Verb and noun of each action."""
        as_text = self._actions == _AS_TEXT
        path = None
        if self._actions is None:
            path = self.find(_ACTIONS)
        elif not as_text:
            path = self.annotation(self._actions)
        if path is not None:
            table = [(number_of(path, row, "id"), row) for row in read_table(path, ("id", "verb", "noun"))]
            rows = [row for _, row in sorted(table, key=itemgetter(0))]
            return [(number_of(path, row, "verb"), number_of(path, row, "noun")) for row in rows]
        there = [path for split in ("train", "val") if (path := self.find(self.lists[split]))]
        pairs: set[tuple[int, int]] = set()
        for path in there or [self.annotation(self.lists["train"])]:
            rows = read_table(path, ("verb_class", "noun_class"))
            pairs |= {(number_of(path, row, "verb_class"), number_of(path, row, "noun_class")) for row in rows}
        return sorted_as_text(pairs) if as_text else sorted(pairs)

    @property
    def num_classes(self) -> int:
        """Of actions."""
        return len(self.actions)

    @property
    def class_names(self) -> list[str]:
        """Of the actions, "take plate"."""
        verbs, nouns = len(self.verb_names), len(self.noun_names)
        stray = next((pair for pair in self.actions if not (0 <= pair[0] < verbs and 0 <= pair[1] < nouns)), None)
        if stray is not None:
            raise DataError(
                f"The action of verb {stray[0]} and noun {stray[1]} is outside the tables of {verbs} verbs and {nouns} "
                "nouns; take lists and tables of the same release."
            )
        return [f"{self.verb_names[verb]} {self.noun_names[noun]}" for verb, noun in self.actions]

    @property
    def captions(self) -> list[str]:
        """Texts to learn word pieces from: the questions, the names of the classes, and the training narrations."""
        path = self.find(self.lists["train"])
        rows = [] if path is None else read_table(path, ("narration_id",))
        narrations = [text for row in rows if (text := row.get("narration"))]
        questions = [text for texts in QUESTIONS.values() for text in texts]
        return [*questions, *self.verb_names, *self.noun_names, *narrations]

    @override
    def list_videos(self, split: str) -> list[Segment]:
        name = self.lists[split]
        path = self.origins[split] = self.annotation(name)
        rows = read_table(path, ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp"))
        place = {pair: number for number, pair in enumerate(self.actions)}
        unseen = self._unseen(name, {row["participant_id"] for row in rows})
        rare = {kind: self._rare(kind) for kind in _TAIL}
        where = self.locate({row["video_id"]: row["participant_id"] for row in rows}, split)
        asked = self._asked(path, rows, split)
        segments = []
        for row in rows:
            start, stop = (seconds_of(path, row, f"{end}_timestamp") for end in ("start", "stop"))
            verb, nouns = labels_of(path, row)
            noun = nouns[0] if nouns else -1
            span = observed_span(start, stop, self.task, self.observed_seconds, self.gap_seconds)
            tail = (verb in rare["verb"], noun in rare["noun"])
            path_of, is_unseen = where[row["video_id"]], row["participant_id"] in unseen
            action = place.get((verb, noun), -1)
            pair = asked.get(row["narration_id"], GENERIC)
            known = (verb, nouns, action, is_unseen, tail)
            segments.append(Segment(path_of, row["narration_id"], span, *known, *pair))
        return segments

    @override
    def classes_in(self, dataset: SegmentDataset) -> int:
        return len({segment.action for segment in dataset.samples} - {-1})

    @override
    def check_listings(self, listings: Mapping[str, Sequence[Segment]]) -> None:
        """Raises `DataError` for classes that there are not, and a training list without labels."""
        for split, segments in listings.items():
            self.refuse_strays(split, segments)
            if split == "train" and all(s.verb < 0 for s in segments):
                raise DataError("The training list has no labels; take EPIC_100_train.csv.")

    @override
    def make_dataset(self, split: str, samples: Sequence[Segment], clip: ClipFormat) -> SegmentDataset:
        common: dict[str, Any] = {
            "features": None if self.features is None else self.num_features,
            "table": self._table,
            "ends": self.task == "anticipation",
            "num_verbs": len(self.verb_names),
            "num_nouns": len(self.noun_names),
            "max_unreadable": self.max_unreadable,
        }
        if split != "train":
            if split == "test":
                common |= {"num_clips": self.num_clips, "num_crops": self.num_crops}
            return SegmentDataset(samples, clip, **common)
        operations, magnitude = self.rand_augment
        transform = TrainTransform(
            clip.image_size,
            area=self.crop_area,
            interpolation=clip.interpolation,
            flip=self.horizontal_flip,
            num_ops=operations,
            magnitude=magnitude,
        )
        return SegmentDataset(samples, clip, **common, training=True, transform=transform, kinds=self.question_kinds,
                              neutral=self.neutral)  # fmt: skip

    # Mixing ----------------------------------------------------------------------------------------------------------

    @override
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Stops the run where too many videos turned out to be unreadable, see `ClipDataModule`."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        if self.mixer.active and "seed" in batch:
            self._mixing_seed = int(batch["seed"].sum()) % 2**32  # before the transfer: no waiting for a GPU
        return batch

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mixes training batches on the device: the clips, the verbs, the nouns and the actions."""
        if self.mixer.active and self.trainer is not None and self.trainer.training:
            with seeded(self._mixing_seed, batch["video"].device):
                sizes = {"verb": len(self.verb_names), "noun": len(self.noun_names), "action": self.num_classes}
                return self.mixer(batch, sizes)
        return batch

    # Files -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> FeatureTable | None:
        return FeatureTable(self.features) if self.features is not None and is_table(self.features) else None

    @override
    def _missing(self, split: str, samples: Sequence[Segment]) -> list[int]:
        if self._table is None:
            return super()._missing(split, samples)
        return [number for number, sample in enumerate(samples) if not self._table.has(sample.path)]

    def _asked(self, path: str, rows: list[dict[str, str]], split: str) -> dict[str, QuestionPair]:
        """Masked questions of the segments of a list by narration_id; none where the fixed texts are read."""
        if self.question_files is None or (split != "train" and self.questions == "generic"):
            return {}
        nameless = [row["narration_id"] for row in rows if not (row.get("verb") and row.get("noun"))]
        if nameless:
            raise DataError(
                f"{path} has no verb or noun to mask in the questions of {len(nameless)} segments: "
                f"{some(nameless)}; set data.questions to generic, or take a list with labels."
            )
        written: dict[str, QuestionPair] = {}
        for name in self.question_files:
            file = self.find(name)
            if file is None:
                where = join(self.root, self._annotations or "annotations")
                raise DataError(f"There is no {name} in {where}; give the path in data.question_files.")
            written |= read_questions(file)
        bare = [row["narration_id"] for row in rows if row["narration_id"] not in written]
        if bare:
            raise DataError(
                f"{len(bare)} of the {len(rows)} {split} segments have no questions in "
                f"{', '.join(self.question_files)}: {some(bare)}; add the file that has them to data.question_files."
            )
        asked = {}
        for row in rows:
            pair, verb, noun = written[row["narration_id"]], label_words(row["verb"]), label_words(row["noun"])
            asked[row["narration_id"]] = QuestionPair(mask_words(pair.verb, noun), mask_words(pair.noun, verb))
        return asked

    def _rare(self, kind: str) -> set[int]:
        path = self.find(_TAIL[kind])
        return set() if path is None else {number_of(path, row, kind) for row in read_table(path, (kind,))}

    def _unseen(self, name: str, people: set[str]) -> set[str]:
        """Participants of a list who have no training videos."""
        if name == self.lists["train"]:
            return set()
        path = self.find(_UNSEEN.format("test" if "test" in name else "validation"))
        if path is not None:
            return {row["participant_id"] for row in read_table(path, ("participant_id",))}
        path = self.find(self.lists["train"])
        return people - {row["participant_id"] for row in ([] if path is None else read_table(path, ("video_id",)))}

    @override
    def locate(self, participant_of: dict[str, str], split: str) -> dict[str, str]:
        """video_id -> path of the video or its features; of those that are nowhere, where they would be."""
        if self._table is not None:
            twice = sorted(self._table.twice & participant_of.keys())
            if twice:
                raise DataError(f"{self.features} has rows of several files named {some(twice)}; extract one of each.")
            return {name: self._table.address(name) for name in participant_of}
        if self.features is not None:
            return {name: join(self.features, f"{name}.safetensors") for name in participant_of}
        return super().locate(participant_of, split)
