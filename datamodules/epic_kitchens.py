"""EPIC-KITCHENS-100: short actions in long videos of kitchens, each a verb and a noun (docs/protocol.md, section 23).

Annotations are the official CSV files. What is seen of a segment is cut out by time: the frame numbers of the
annotations suppose 60 (or 50) frames per second, which the video files do not have.
"""

import io
import re
import tarfile
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.annotations.lists import is_number, read_csv
from datamodules.annotations.locate import find_videos
from datamodules.annotations.questions import KINDS, QUESTIONS, Question, answer_number, draw_question
from datamodules.augment import TrainTransform
from datamodules.checks import SHARE, Count, Number, OneOf, Range, check
from datamodules.clips import ClipDataModule, ClipFormat, UnreadableTally
from datamodules.errors import DataError, some
from datamodules.loading import Draw
from datamodules.storage.files import RemoteFile, first_file, is_url, join, resolve
from datamodules.storage.members import open_tar
from datamodules.video.decode import DecodeError, check_size, open_container
from datamodules.video.frames import FrameFolder, gather_pictures, open_video
from datamodules.video.pixels import Painter
from datamodules.video.resize import Reader, crop_views, to_clip
from datamodules.video.sampling import MAX_FRAMES, clip_indices

__all__ = [
    "EpicKitchens100",
    "FrameTar",
    "Segment",
    "SegmentDataset",
    "frame_rate",
    "observed_span",
    "open_frames",
    "range_in",
]

_SOURCE = "https://github.com/epic-kitchens/epic-kitchens-100-annotations"
_LISTS = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
_FOLDERS = ("", "annotations", "epic-kitchens-100-annotations")
_UNSEEN = "EPIC_100_unseen_participant_ids_{}.csv"
_TAIL = {"verb": "EPIC_100_tail_verbs.csv", "noun": "EPIC_100_tail_nouns.csv"}
# Not EPIC_100_noun_classes_v2.csv, which has 305 nouns: the challenge and the lists have the 300 of this one.
_NAMES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}
_ACTIONS = "actions.csv"
_SLACK_SECONDS = 1e-6
_TASKS = ("recognition", "anticipation")


class Segment(NamedTuple):
    """One annotated action.

    Attributes:
        path: of the video: a file, a folder or tar of its frames, or the file of its features.
        narration_id: the annotation's name.
        span: first and last second that may be seen.
        verb: class, -1 where it is not known.
        nouns: classes of all nouns of the narration, the object first; empty where not known.
        action: position in the list of actions; -1 where it is not in it.
        unseen: whether the person has no videos in the training set.
        tail: whether verb and noun are rare.
    """

    path: str
    narration_id: str
    span: tuple[float, float]
    verb: int
    nouns: tuple[int, ...]
    action: int
    unseen: bool
    tail: tuple[bool, bool]


def frame_rate(video_id: str) -> int:
    """Frames per second of the annotations and the extracted frames: 60, or 50 for the videos added later, whose
    number has three digits (P01_101)."""
    return 50 if re.fullmatch(r"P\d+_\d{3}", video_id) else 60


def observed_span(start: float, stop: float, task: str, observed: float, gap: float) -> tuple[float, float]:
    """What may be seen of an action from `start` to `stop`, in seconds.

    Recognition: all of it. Anticipation: `observed` seconds that end `gap` seconds before it begins. They may begin
    before the video does, or, of actions within its first `gap` seconds, even end before it.
    """
    return (start, stop) if task == "recognition" else (start - gap - observed, start - gap)


def range_in(seconds: np.ndarray, span: tuple[float, float], displayed: bool = True) -> tuple[int, int] | None:
    """First and last of what lies in a span; never anything that comes after its end.

    Args:
        seconds: (n,), ascending times.
        span: first and last second, both included; without anything in between it is the last one before.
        displayed: whether the frame that is on display where the span begins counts, as in the annotations' frame
            numbers.

    Returns:
        None where everything comes after the span.
    """
    last = int(np.searchsorted(seconds, span[1] + _SLACK_SECONDS)) - 1
    if last < 0:
        return None
    if displayed:
        first = max(int(np.searchsorted(seconds, span[0] + _SLACK_SECONDS)) - 1, 0)
    else:
        first = int(np.searchsorted(seconds, span[0] - _SLACK_SECONDS))
    return min(first, last), last


class FrameTar:
    """Frames of one video as pictures in a tar, as EPIC-KITCHENS ships them; `VideoReader`'s interface.

    Position i is the picture with the i-th smallest number. The list of the tar's members is kept for the next reader.

    Args:
        path: the tar, not compressed; local or a URL.
        fps: frames per second, which the pictures do not tell.

    Raises:
        DecodeError: the file is missing, is not such a tar, or has no numbered pictures.
    """

    def __init__(self, path: str, *, fps: float) -> None:
        self.path = path
        self._places = _tar_index(path)
        self.num_frames = len(self._places)
        self.fps = fps
        self.pts_seconds = np.arange(self.num_frames) / fps

    def __enter__(self) -> "FrameTar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(
        self, indices: Sequence[int] | np.ndarray, *, short_side: int | None = None, interpolation: str = "bilinear"
    ) -> Tensor:
        """Frames at the given positions, uint8 (T, 3, H, W), as `VideoReader.read` gives them.

        Raises:
            DecodeError: a picture cannot be read.
        """
        wanted, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        pictures = []
        with _open_binary(self.path) as file:
            for offset, size in self._places[wanted].tolist():
                file.seek(offset)
                try:
                    with open_container(io.BytesIO(file.read(size))) as container:
                        frame = next(container.decode(video=0))
                    painter = Painter(frame.width, frame.height, short_side=short_side, interpolation=interpolation)
                    check_size(self.path, *painter.size[::-1])
                    pictures.append(painter.paint(frame).permute(2, 0, 1))
                except (av.FFmpegError, StopIteration, IndexError, OSError) as error:
                    raise DecodeError(f"{self.path} has a frame that cannot be decoded; download it again.") from error
        return gather_pictures(pictures, inverse)


def _open_binary(path: str) -> Any:
    try:
        return RemoteFile(path) if is_url(path) else open(path, "rb")
    except OSError as error:
        raise DecodeError(f"{path} cannot be read ({error.strerror}); check the path.") from error


@lru_cache(maxsize=32)
def _tar_index(path: str) -> np.ndarray:
    """Where the numbered pictures lie: int64 (n, 2), offset and size, by their numbers."""
    found = []
    with _open_binary(path) as file:
        try:
            with open_tar(file) as archive:
                for member in archive:
                    match = re.fullmatch(r"(?:.*/)?\D*(\d+)\.(?:jpe?g|png)", member.name, re.IGNORECASE)
                    if match and member.isreg() and not member.issparse():
                        found.append((int(match[1]), member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise DecodeError(f"{path} is not a tar of frames ({error}); download it again.") from error
    if not found:
        raise DecodeError(f"{path} has no numbered frames (frame_0000000001.jpg, ...); take another file.")
    return np.array(sorted(found), dtype=np.int64)[:, 1:]


def open_frames(path: str, *, decoder: str = "pyav") -> Reader:
    """The reader of a video's frames, with their times; `decoder` as for `datamodules.video.frames.open_video`."""
    video_id, suffix = Path(path).stem, Path(path).suffix
    if suffix.lower() == ".tar":
        reader = FrameTar(path, fps=frame_rate(video_id))
    elif suffix:
        return open_video(path, decoder=decoder)
    else:
        reader = FrameFolder(path, fps=frame_rate(Path(path).name))
    # The annotations' frame numbers are floor(t * fps), at least 1, and the first picture is number 1.
    reader.pts_seconds = reader.pts_seconds + 1 / reader.fps
    return reader


class SegmentDataset(Dataset):
    """One item per action: `video` or `features`, labels, and in training a question.

    An unreadable one is replaced in training by another one, drawn at random; elsewhere by zeros with index -1. Of an
    action that begins so early that there is nothing to see before it, zeros are seen.

    Args:
        samples: the listing.
        clip: frames and pixels.
        features: take `num_features` vectors out of files of features, in place of clips.
        ends: a feature counts where its window ends within the span, and not where its middle lies: nothing of what
            comes behind the span may be seen.
        transform: of training clips; None makes items for evaluation.
        kinds: of questions in training.
        neutral: share of training items with the neutral question.
        num_verbs: size of the vocabulary of verbs.
        num_nouns: of nouns.
        num_clips: clips of a segment in evaluation.
        num_crops: crops of each.
        max_unreadable: see `datamodules.clips.UnreadableTally`.
    """

    def __init__(
        self,
        samples: Sequence[Segment],
        clip: ClipFormat | None,
        *,
        features: int | None = None,
        ends: bool = False,
        training: bool = False,
        transform: TrainTransform | None = None,
        kinds: Sequence[str] = KINDS,
        neutral: float = 0.5,
        num_verbs: int = 97,
        num_nouns: int = 300,
        num_clips: int = 1,
        num_crops: int = 1,
        max_unreadable: float = 0.1,
    ) -> None:
        self.samples = samples
        self.clip = clip
        self.features = features
        self.ends = ends
        self.training = training
        self.transform = transform
        self.kinds, self.neutral = tuple(kinds), neutral
        self.num_verbs, self.num_nouns = num_verbs, num_nouns
        self.num_clips, self.num_crops = num_clips, num_crops
        self.tally = UnreadableTally(samples, max_unreadable)
        self._width: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | Draw) -> dict:
        if not self.training:
            try:
                return self._item(item)
            except DecodeError as error:
                self.tally.report(item, error, "left out of the evaluation")
                return self._placeholder(item)
        draw = item if isinstance(item, Draw) else Draw(item, int(torch.randint(2**32, ())))
        found = self.tally.read_or_replace(draw, self._item)
        return {**(found or self._placeholder(draw.index)), "seed": draw.seed}

    def _item(self, index: int) -> dict:
        sample = self.samples[index]
        # First of all, so that the random numbers of a question do not depend on what it is about.
        question = draw_question(self.kinds, self.neutral) if self.training else None
        seen = {"video": self._clips(sample)} if self.features is None else {"features": self._features(sample)}
        return self._labelled(seen, sample, index, question)

    def _labelled(self, seen: dict, sample: Segment, index: int, question: Question | None) -> dict:
        item = {
            **seen,
            "verb": sample.verb,
            "noun": sample.nouns[0] if sample.nouns else -1,
            "action": sample.action,
            "unseen": sample.unseen,
            "tail": torch.tensor(sample.tail),
            "index": index,
            "path": sample.path,
            "narration_id": sample.narration_id,
        }
        if question is None:
            return item
        labels = (sample.verb, sample.nouns, sample.action, self.num_verbs, self.num_nouns)
        return {**item, "question": question.text, "answer": answer_number(question.kind, *labels)}

    def _clips(self, sample: Segment) -> Tensor:
        """uint8 (3, T, H, W), or (V, 3, T, H, W) for several views."""
        clip, count = self.clip, 1 if self.training else self.num_clips
        with open_frames(sample.path, decoder=clip.decoder) as reader:
            seen = range_in(reader.pts_seconds, sample.span)
            if seen is None:
                return self._zeros()
            options = {"sampling": clip.sampling, "frame_stride": clip.frame_stride, "num_clips": count,
                       "mode": "train" if self.training else "test"}  # fmt: skip
            length = seen[1] - seen[0] + 1
            found = [seen[0] + clip_indices(length, clip.num_frames, clip=number, **options) for number in range(count)]
            positions = np.concatenate(found)
            frames = reader.read(positions) if self.training else clip.read(reader, positions)
        if self.training:
            return to_clip(self.transform(frames))
        # (crops, clips, T, 3, H, W)
        crops = crop_views(frames.unflatten(0, (count, clip.num_frames)), clip.image_size, self.num_crops)
        views = crops.permute(1, 0, 3, 2, 4, 5).flatten(0, 1)
        return views if len(views) > 1 else views[0]

    def _features(self, sample: Segment) -> Tensor:
        """float32 (features, width)."""
        try:
            with safe_open(sample.path, "pt") as file:
                seconds, rows = file.get_tensor("seconds").double().numpy(), file.get_slice("features")
                self._width = rows.get_shape()[1]
                times = seconds[:, 1] if self.ends else seconds.mean(axis=1)
                seen = range_in(times, sample.span, displayed=False)
                if seen is None:
                    return self._zeros()
                found = rows[seen[0] : seen[1] + 1].float()
                # One of each of so many equal parts: at random, or in its middle.
                place = torch.rand(self.features) if self.training else 0.5
                return found[((torch.arange(self.features) + place) / self.features * len(found)).long()]
        except (SafetensorError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DecodeError(f"{sample.path} cannot be read as features ({reason}); extract them again.") from error

    def _zeros(self) -> Tensor:
        if self.features is not None:
            return torch.zeros(self.features, self._feature_width())
        views = 1 if self.training else self.num_clips * self.num_crops
        shape = (3, self.clip.num_frames, self.clip.image_size, self.clip.image_size)
        return torch.zeros((views, *shape) if views > 1 else shape, dtype=torch.uint8)

    def _feature_width(self) -> int:
        """Of the first file that can be read, where no other was read before."""
        for path in dict.fromkeys(sample.path for sample in self.samples):
            if self._width is not None:
                break
            try:
                with safe_open(path, "pt") as file:
                    self._width = file.get_slice("features").get_shape()[1]
            except (SafetensorError, OSError, KeyError):
                continue
        return self._width or 1

    def _placeholder(self, index: int) -> dict:
        kind = "video" if self.features is None else "features"
        question = Question("", "") if self.training else None
        return self._labelled({kind: self._zeros()}, self.samples[index], -1, question)


class EpicKitchens100(ClipDataModule):
    """The official annotations, and videos, extracted frames or features, as the official downloader leaves them:

    | file | where |
    |---|---|
    | EPIC_100_*.csv | root, root/annotations or root/epic-kitchens-100-annotations, or where `annotations` says |
    | P01/videos/P01_01.MP4 | root or root/EPIC-KITCHENS, or where `videos` says; up to three folders deep |
    | P01/rgb_frames/P01_01.tar, or a folder P01_01 of frame_0000000001.jpg, ... | the same |
    | P01_01.safetensors, written by `zoo extract` | where `features` says |

    Needed are the list of the split, EPIC_100_verb_classes.csv (97) and EPIC_100_noun_classes.csv (300, not the 305 of
    EPIC_100_noun_classes_v2.csv). Rare classes and unseen participants come from the official lists too; without the
    latter, people without training videos are unseen, without the former no class is rare. The list of actions is
    `actions.csv` (id, verb, noun, action) where there is one, else all pairs of the training and validation lists in
    order, which gives the same 3,806.

    The test split is that of validation, whose labels are public. For a submission name the challenge's list:
    ``lightning predict ... --data.test EPIC_100_test_timestamps.csv``.

    Args:
        root: folder of the videos and annotations, a path or a URL.
        annotations: folder of the CSV files; None looks in those above.
        videos: folder in which videos are searched; None is root.
        features: folder of extracted features, which take the place of the videos.
        num_features: feature vectors of a segment.
        task: "recognition" or "anticipation"; None is the attached model's.
        observed_seconds: what is seen before an action that is to be anticipated.
        gap_seconds: how long before the action that ends; the challenge has 1.
        train: file name of the training list.
        val: of the validation list.
        test: of the test list; None tests on the validation list.
        actions: file with the list of actions; None looks for actions.csv.
        questions: kinds of questions in training, see `datamodules.annotations.questions`; empty asks none.
        neutral: share of training segments with the neutral question.
        num_clips: clips of a test segment.
        num_crops: crops of each, 1 or 3. Validation has one clip and one crop.
        crop_area: range of the share of the frame that a training crop covers.
        horizontal_flip: probability in training.
        rand_augment_ops: operations of RandAugment per clip; 0 is off.
        rand_augment_magnitude: their magnitude, 0 .. 10.
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
        questions: Sequence[str] = KINDS,
        neutral: float = 0.5,
        num_clips: int = 1,
        num_crops: int = 1,
        crop_area: tuple[float, float] = (0.25, 1.0),
        horizontal_flip: float = 0.5,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: float = 7.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if task not in (None, *_TASKS):
            raise DataError(f"task is {task!r}; choose one of {', '.join(_TASKS)}, or null for the model's.")
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
        )
        draw_question(questions, 0.0, torch.Generator())  # refuses unknown kinds
        self.root = resolve(root)
        self._annotations, self._videos = annotations, videos
        self.features = None if features is None else resolve(features)
        self.num_features = num_features
        self._task = task
        self.observed_seconds, self.gap_seconds = observed_seconds, gap_seconds
        self.lists = {"train": train, "val": val, "test": test}
        self._actions = actions
        self.questions, self.neutral = tuple(questions), neutral
        self.num_clips, self.num_crops = num_clips, num_crops
        self.crop_area, self.horizontal_flip = tuple(crop_area), horizontal_flip
        self.rand_augment = (rand_augment_ops, rand_augment_magnitude)

    # What the annotations say ----------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """The one given, else the attached model's."""
        hparams = getattr(getattr(self.trainer, "lightning_module", None), "hparams", {})
        return self._task or hparams.get("task") or _TASKS[0]

    @cached_property
    def verb_names(self) -> list[str]:
        """In the order of the classes."""
        return self._class_keys("verb")

    @cached_property
    def noun_names(self) -> list[str]:
        """In the order of the classes."""
        return self._class_keys("noun")

    @cached_property
    def actions(self) -> list[tuple[int, int]]:
        """Verb and noun of each action."""
        path = self._find(self._actions or _ACTIONS)
        if path is not None:
            rows = sorted(self._table(path, ("id", "verb", "noun")), key=lambda row: self._number(path, row, "id"))
            return [(self._number(path, row, "verb"), self._number(path, row, "noun")) for row in rows]
        if self._actions is not None:
            raise self._no_file(self._actions)
        pairs = set()
        for split in ("train", "val"):
            path = self._find(self.lists[split] or _LISTS[split])
            for row in [] if path is None else self._table(path, ("verb_class", "noun_class")):
                pairs.add((self._number(path, row, "verb_class"), self._number(path, row, "noun_class")))
        if not pairs:
            raise self._no_file(_LISTS["train"])
        return sorted(pairs)

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
        path = self._find(self.lists["train"] or _LISTS["train"])
        rows = [] if path is None else self._table(path, ("narration_id",))
        narrations = [text for row in rows if (text := row.get("narration"))]
        questions = [text for texts in QUESTIONS.values() for text in texts]
        return [*questions, *self.verb_names, *self.noun_names, *narrations]

    def listing(self, split: str) -> list[Segment]:
        with self.folders.kept():
            name = self.lists[split] or _LISTS["val" if split == "test" else split]
            path = self._find(name)
            if path is None:
                raise self._no_file(name)
            self.origins[split] = path
            rows = self._table(
                path, ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
            )
            place = {pair: number for number, pair in enumerate(self.actions)}
            unseen = self._unseen(name, {row["participant_id"] for row in rows})
            rare = {kind: self._rare(kind) for kind in _TAIL}
            where = self._locate({row["video_id"]: row["participant_id"] for row in rows}, split)
            segments = []
            for row in rows:
                start, stop = (self._seconds(path, row, f"{end}_timestamp") for end in ("start", "stop"))
                verb, nouns = self._labels(path, row)
                noun = nouns[0] if nouns else -1
                span = observed_span(start, stop, self.task, self.observed_seconds, self.gap_seconds)
                tail = (verb in rare["verb"], noun in rare["noun"])
                path_of, is_unseen = where[row["video_id"]], row["participant_id"] in unseen
                action = place.get((verb, noun), -1)
                segments.append(Segment(path_of, row["narration_id"], span, verb, nouns, action, is_unseen, tail))
            return segments

    def classes_in(self, dataset: SegmentDataset) -> int:
        return len({segment.action for segment in dataset.samples} - {-1})

    def clips_in(self, split: str, dataset: SegmentDataset) -> int:
        return len(dataset) * (1 if split == "train" else dataset.num_clips * dataset.num_crops)

    def check_listings(self, listings: dict[str, list[Segment]]) -> None:
        """Raises `DataError` for classes that there are not, and a training list without labels."""
        for split, segments in listings.items():
            strays = [
                f"{s.narration_id} (verb {s.verb}, noun {s.nouns[0] if s.nouns else -1})"
                for s in segments
                if s.verb >= len(self.verb_names) or any(noun >= len(self.noun_names) for noun in s.nouns)
            ]
            if strays:
                raise DataError(
                    f"{len(strays)} of the {len(segments)} {split} segments have classes outside the tables of "
                    f"{len(self.verb_names)} verbs and {len(self.noun_names)} nouns: {some(strays)}; take lists and "
                    "tables of the same release."
                )
            if split == "train" and all(s.verb < 0 for s in segments):
                raise DataError("The training list has no labels; take EPIC_100_train.csv.")

    def make_dataset(self, split: str, samples: list[Segment], clip: ClipFormat) -> SegmentDataset:
        common = {
            "features": None if self.features is None else self.num_features,
            "ends": self.task == "anticipation",
            "num_verbs": len(self.verb_names),
            "num_nouns": len(self.noun_names),
            "max_unreadable": self.max_unreadable,
        }
        if split != "train":
            views = {"num_clips": self.num_clips, "num_crops": self.num_crops} if split == "test" else {}
            return SegmentDataset(samples, clip, **common, **views)
        operations, magnitude = self.rand_augment
        transform = TrainTransform(
            clip.image_size,
            area=self.crop_area,
            interpolation=clip.interpolation,
            flip=self.horizontal_flip,
            num_ops=operations,
            magnitude=magnitude,
        )
        return SegmentDataset(samples, clip, **common, training=True, transform=transform, kinds=self.questions,
                              neutral=self.neutral)  # fmt: skip

    # Files -----------------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> str | None:
        folders = _FOLDERS if self._annotations is None else (self._annotations,)
        return first_file(self.folders, self.root, [join(folder, name) for folder in folders])

    def _no_file(self, name: str) -> DataError:
        where = join(self.root, self._annotations or "annotations")
        return DataError(
            f"There is no {name} in {where}; name the folder with data.annotations, or get the annotations from "
            f"{_SOURCE}."
        )

    def _table(self, path: str, columns: Sequence[str]) -> list[dict[str, str]]:
        header, rows = read_csv(path)
        lacking = next((name for name in columns if name not in header), None)
        short = next(((line, name) for line, row in rows for name in columns if not row.get(name)), None)
        if lacking or short or not rows:
            fault = f"has no column {lacking}" if lacking else "has no rows"
            if rows and not lacking:
                fault = f"has no {short[1]} in line {short[0]}"
            raise DataError(f"{path} {fault}; take the file of the official release ({_SOURCE}).")
        return [row for _, row in rows]

    @staticmethod
    def _number(path: str, row: dict[str, str], column: str) -> int:
        value = row.get(column, "")
        if not is_number(value):
            raise DataError(f"{path} has {value[:40]!r} as {column}, which is not a whole number; take the file of the "
                            "official release.")  # fmt: skip
        return int(value)

    @staticmethod
    def _seconds(path: str, row: dict[str, str], column: str) -> float:
        """Of HH:MM:SS.ff."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d+)?)", row[column])
        if match is None:
            raise DataError(f"{path}, segment {row['narration_id']}: {column} is {row[column]!r} and not of the form "
                            "HH:MM:SS.ff; take the file of the official release.")  # fmt: skip
        return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])

    def _labels(self, path: str, row: dict[str, str]) -> tuple[int, tuple[int, ...]]:
        """Verb, and nouns with the object first; -1 and none for lists without labels."""
        if "verb_class" not in row:
            return -1, ()
        noun = self._number(path, row, "noun_class")
        others = map(int, re.findall(r"\d{1,9}", row.get("all_noun_classes", "")))
        return self._number(path, row, "verb_class"), tuple(dict.fromkeys((noun, *others)))

    def _class_keys(self, kind: str) -> list[str]:
        path = self._find(_NAMES[kind])
        if path is None:
            raise self._no_file(_NAMES[kind])
        keys = {self._number(path, row, "id"): row["key"] for row in self._table(path, ("id", "key"))}
        if sorted(keys) != list(range(len(keys))):
            raise DataError(f"{path} does not number its classes from 0 on; take the file of the official release.")
        return [keys[number] for number in range(len(keys))]

    def _rare(self, kind: str) -> set[int]:
        path = self._find(_TAIL[kind])
        return set() if path is None else {self._number(path, row, kind) for row in self._table(path, (kind,))}

    def _unseen(self, name: str, people: set[str]) -> set[str]:
        """Participants of a list who have no training videos."""
        if name == (self.lists["train"] or _LISTS["train"]):
            return set()
        path = self._find(_UNSEEN.format("test" if "test" in name else "validation"))
        if path is not None:
            return {row["participant_id"] for row in self._table(path, ("participant_id",))}
        path = self._find(self.lists["train"] or _LISTS["train"])
        return people - {row["participant_id"] for row in ([] if path is None else self._table(path, ("video_id",)))}

    def _locate(self, participant_of: dict[str, str], split: str) -> dict[str, str]:
        """video_id -> path; of those that are nowhere, where they would be."""
        if self.features is not None:
            return {name: join(self.features, f"{name}.safetensors") for name in participant_of}
        top = self.root if self._videos is None else join(self.root, self._videos)
        expected = {name: join(top, person, "videos", f"{name}.MP4") for name, person in participant_of.items()}
        if not self.check_files:
            return expected
        found = find_videos(self.folders, top, {*participant_of, *(f"{name}.tar" for name in participant_of)})
        where = {}
        for name in participant_of:
            paths = [*found.get(name, []), *found.get(f"{name}.tar", [])]
            where[name] = next((path for path in paths if "flow_frames" not in path), None)
        if not any(where.values()):
            raise DataError(
                f"None of the {len(where)} {split} videos is below {top} ({some(list(expected.values()))}); name their "
                "folder with data.videos."
            )
        lost = [name for name, path in where.items() if path is None]
        if lost:
            warnings.warn(f"{len(lost)} of the {len(where)} {split} videos are not below {top}: {some(lost)}.")
        return {name: path or expected[name] for name, path in where.items()}
