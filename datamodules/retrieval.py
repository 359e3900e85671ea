"""Base of the DataModules of captioned videos: pairs to train on, videos with all their captions to evaluate.

A DataModule says which captions which video has (`entries`), this module finds the files and makes batches as
docs/batches.md describes.
"""

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import default_collate
from typing_extensions import override

from datamodules.annotations.captions import Captions, read_captions
from datamodules.annotations.locate import locate_videos, plain_name
from datamodules.augment import TrainTransform
from datamodules.checks import Number, OrNone, Range, check
from datamodules.clips import ClipDataModule, ClipFormat
from datamodules.errors import DataError, some
from datamodules.loading import Batch, Draw, Item
from datamodules.storage.files import first_file, join, resolve
from datamodules.unreadable import ListedItems, UnreadableTally
from datamodules.video.opening import DecodeError
from datamodules.video.resize import center_crop, to_clip
from datamodules.video.sampling import clip_indices

__all__ = ["CaptionDataset", "CaptionedVideo", "RetrievalDataModule", "collate_captions", "frame_positions"]

_MOST_TIMES = 10**7
"""Frames to choose from in a video of any length; at one a second, four months."""

_SLACK_SECONDS = 1e-6
"""Times come from files as fractions."""


class CaptionedVideo(NamedTuple):
    """One video of a split.

    Attributes:
        path: the file, URL or folder of frames.
        captions: one or more.
        span: first and last second that count; None is the whole video.
    """

    path: str
    captions: tuple[str, ...]
    span: tuple[float, float] | None = None


def frame_positions(
    seconds: NDArray[np.float64],
    clip: ClipFormat,
    *,
    mode: Literal["train", "test"] = "test",
    span: tuple[float, float] | None = None,
    fps: float | None = None,
    path: str = "The video",
) -> NDArray[np.int64]:
    """Choose the frames of a clip.

    Without `fps` they are those of `datamodules.video.sampling`, taken from the frames of the span. With it, one frame
    is kept every 1 / fps seconds, and of these, where they are more than T, T in equal steps with the first and the
    last among them: CLIP4Clip's rule with fps 1 (docs/protocol.md, sections 18 and 19).

        fps 1, T = 4, a video of 7 seconds     0 1 2 3 4 5 6  ->  0 2 4 6
        a video of 3 seconds                   0 1 2          ->  0 1 2, and one frame of padding

    Args:
        seconds: (n,), times of the video's frames, ascending from 0.
        clip: T = num_frames, and the rule.
        mode: "train" draws frames at random, "test" does not.
        span: first and last second that count, both included; the nearest frame if the span has none.
        fps: frames per second.
        path: what an error calls the video.

    Returns:
        int64 (N,), sorted; N = T, or with `fps` N <= T.
    """
    first, last = 0, len(seconds) - 1
    if span is not None:
        first = min(int(np.searchsorted(seconds, span[0] - _SLACK_SECONDS)), last)
        last = max(first, int(np.searchsorted(seconds, span[1] + _SLACK_SECONDS)) - 1)
    if fps is None:
        return first + clip.indices(last - first + 1, mode)
    if not (seconds[last] - seconds[first]) * fps <= _MOST_TIMES:
        raise DecodeError(f"{path} claims to last {seconds[last] - seconds[first]:g} seconds; its times are damaged, "
                          "copy or download it again.")  # fmt: skip
    times = np.arange(seconds[first], seconds[last] + _SLACK_SECONDS, 1 / fps)
    kept = np.unique(np.searchsorted(seconds, times + _SLACK_SECONDS, side="right") - 1)
    if len(kept) <= clip.num_frames:
        return kept
    if mode == "train":
        return kept[clip_indices(len(kept), clip.num_frames, sampling="sparse", mode="train")]
    return kept[np.linspace(0, len(kept) - 1, clip.num_frames).astype(np.int64)]


@dataclass(eq=False, repr=False)
class CaptionDataset(ListedItems):
    """Pairs of a video and a caption for training, videos with all their captions for evaluation.

    Items have `video` uint8 (3, T, H, W), `text`, `index`, `video_index`, `path`, `frame_mask` bool (T,) where `fps` is
    given, and in training `seed`.

    Training: `text` is a caption and `index` the number of the pair, counting the captions of the first video first. An
    unreadable video is replaced together with its caption.
    Evaluation: `text` is a list and `index` is `video_index`. An unreadable video is replaced by zeros with index -1.

    Args:
        videos: the listing.
        clip: frames and pixels.
        training: make pairs.
        every_caption: an epoch has every pair; otherwise every video with one of its captions, drawn at random.
        random_frames: draw the frames of training clips at random.
        transform: of training clips; None makes the same clips as for evaluation.
        fps: see `frame_positions`; shorter videos are padded with zeros.
        max_unreadable: see `datamodules.unreadable.UnreadableTally`, which the code that iterates has to `check`.
    """

    videos: Sequence[CaptionedVideo]
    clip: ClipFormat
    _: KW_ONLY
    training: bool = False
    every_caption: bool = True
    random_frames: bool = False
    transform: TrainTransform | None = None
    fps: float | None = None
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        self.mode: Literal["train", "test"] = "train" if self.training and self.random_frames else "test"
        self.tally = UnreadableTally(self.videos, self.max_unreadable)
        self.first_pairs = np.cumsum([0, *(len(video.captions) for video in self.videos)])
        self.first_items = self.first_pairs if self.every_caption else None

    @override
    def _drawn(self, draw: Draw) -> Item:
        drawn, part = self.place_of(draw.index)

        def read(number: int) -> Item:
            captions = self.videos[number].captions
            is_random = number != drawn or self.first_items is None
            chosen = int(torch.randint(len(captions), ())) if is_random else part
            return self._item(number, captions[chosen], int(self.first_pairs[number]) + chosen)

        item = self.tally.read_or_replace(Draw(drawn, draw.seed), read)
        return item or self._zeros(drawn, self.videos[drawn].captions[part])

    @override
    def _read(self, number: int) -> Item:
        return self._item(number, list(self.videos[number].captions), number)

    @override
    def _placeholder(self, number: int) -> Item:
        return self._zeros(number, list(self.videos[number].captions))

    def _item(self, number: int, text: str | list[str], index: int) -> Item:
        clip, video = self.clip, self.videos[number]
        with clip.open(video.path) as reader:
            positions = frame_positions(
                reader.pts_seconds, clip, mode=self.mode, span=video.span, fps=self.fps, path=video.path
            )
            if self.transform is None:
                frames = clip.read(reader, positions)
                frames = center_crop(frames, clip.image_size)
            else:
                frames = self.transform(reader.read(positions))
        lacking = clip.num_frames - len(frames)
        frames = F.pad(frames, (0, 0) * 3 + (0, lacking)) if lacking else frames
        item = {"video": to_clip(frames), "text": text, "index": index, "video_index": number,
                "path": video.path}  # fmt: skip
        return item if self.fps is None else {**item, "frame_mask": torch.arange(clip.num_frames) < len(positions)}

    def _zeros(self, number: int, text: str | list[str]) -> Item:
        path = self.videos[number].path
        item = {"video": self.clip.zeros(), "text": text, "index": -1, "video_index": -1, "path": path}
        # All frames count: a mean over none of them would not be a number.
        return item if self.fps is None else {**item, "frame_mask": torch.ones(self.clip.num_frames, dtype=torch.bool)}


def collate_captions(items: Sequence[Item]) -> Batch:
    """Make a batch whose `text` is a list, of captions or of lists of captions of any lengths."""
    batch = default_collate([{key: value for key, value in item.items() if key != "text"} for item in items])
    return {**batch, "text": [item["text"] for item in items]}


class RetrievalDataModule(ClipDataModule[CaptionedVideo, CaptionDataset]):
    """Abstract base of DataModules of captioned videos. A subclass has `entries`.

    Args:
        root: folder of annotations and videos, a path or a URL.
        videos: folder of the videos, searched three folders deep; None is root/videos, or root without such a folder.
            With `check_files` off nothing is searched: the files are right in this folder, None being root.
        train: captions of the training videos instead of the official files: a table with the columns video and
            caption, or JSON, see `datamodules.annotations.captions.read_captions`.
        val: the same for validation.
        test: the same for testing.
        every_caption: an epoch has every caption of every video; otherwise every video with one of its captions, drawn
            at random.
        random_frames: draw the frames of training clips at random; published training takes the same as evaluation.
        crop_area: range of the share of the frame that a training crop covers; None takes the middle, as published.
        fps: take one frame every 1 / fps seconds before choosing, and pad shorter videos, see `frame_positions`;
            published training has 1. None fills the clip by the rule of `sampling`.
        common: see `datamodules.clips.ClipDataModule`.

    Raises:
        DataError: from `setup`: a file is missing or has another form, or none of the videos is found.
    """

    title = "The data set"
    """Name for errors."""
    source = ""
    """Address of the download, for errors."""
    paragraphs = False
    """Whether all captions of a video are sentences of one."""
    suffix = ".mp4"
    """Suffix of missing files."""
    span: tuple[float, float] | None = None
    """First and last second that count, of videos whose annotations do not say."""
    annotation_folders: Sequence[str] = ("", "annotations")
    """Folders below root with the official files, in the order in which they are searched."""

    collate = staticmethod(collate_captions)
    entry = CaptionedVideo

    def __init__(
        self,
        root: str | Path,
        *,
        videos: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        every_caption: bool = True,
        random_frames: bool = False,
        crop_area: tuple[float, float] | None = None,
        fps: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check(fps=(fps, OrNone(Number(0, 1000, above=True))), crop_area=(crop_area, OrNone(Range(1))))
        self.root = resolve(root)
        self.videos = videos
        self.lists = {"train": train, "val": val, "test": test}
        self.every_caption, self.random_frames = every_caption, random_frames
        self.crop_area = None if crop_area is None else (crop_area[0], crop_area[1])
        self.fps = fps

    @abstractmethod
    def entries(self, split: str) -> list[Captions]:
        """Captions of the videos of "train", "val" or "test", in a fixed order, by the official files."""

    @property
    def captions(self) -> list[str]:
        """All captions of the training split."""
        videos = self.datasets["train"].videos if "train" in self.datasets else self.listing("train")
        return [caption for video in videos for caption in video.captions]

    @override
    def list_videos(self, split: str) -> Sequence[CaptionedVideo]:
        own = self.lists[split]
        if own is not None:
            self.origins[split] = join(self.root, own)
        entries = self.entries(split) if own is None else read_captions(join(self.root, own))
        if self.paragraphs:
            entries = [e._replace(captions=(" ".join(text.strip() for text in e.captions),)) for e in entries]
        paths = self.locate(entries, split)
        found = zip(paths, entries, strict=True)
        return [CaptionedVideo(path, entry.captions, entry.span or self.span) for path, entry in found]

    def find(self, name: str) -> str | None:
        """Path of an annotation file, in the first of `annotation_folders` that has it; None without one."""
        return first_file(self.folders, self.root, [join(folder, name) for folder in self.annotation_folders])

    def annotation(self, name: str) -> str:
        """Path of an annotation file that is needed.

        Raises:
            DataError: it is not there.
        """
        found = self.find(name)
        if found is None:
            folders = " or ".join(dict.fromkeys(join(self.root, folder) for folder in self.annotation_folders))
            raise DataError(
                f"There is no {name}, annotations of {self.title}, in {folders}; check data.root, or get the file from "
                f"{self.source}."
            )
        return found

    def names_of(self, name: str) -> list[str]:
        """Return possible names of a video's file, with or without suffix, most likely first."""
        return list(dict.fromkeys((name, plain_name(name))))

    def locate(self, entries: Sequence[Captions], split: str) -> list[str]:
        """Return the paths of the videos; for missing ones, where they are expected.

        Raises:
            DataError: all of them are missing.
        """
        names = [entry.name for entry in entries]
        return locate_videos(
            self.folders, self.root, names, candidates=[self.names_of(name) for name in names], videos=self.videos,
            suffix=self.suffix, search=self.check_files, what=f"{split} videos of {self.title}", source=self.source,
        )  # fmt: skip

    @override
    def check_listings(self, listings: Mapping[str, Sequence[CaptionedVideo]]) -> None:
        """Warn of videos listed twice and of empty captions."""
        for split, videos in listings.items():
            counts = Counter(video.path for video in videos)
            doubles = list((counts - Counter(counts.keys())).elements())
            if doubles:
                warnings.warn(
                    f"{len(doubles)} of the {len(videos)} {split} videos are listed again: {some(doubles)}; in the "
                    "evaluation they are rivals of themselves."
                )
            mute = [video.path for video in videos if not all(map(str.strip, video.captions))]
            if mute:
                warnings.warn(f"{len(mute)} of the {len(videos)} {split} videos have an empty caption: {some(mute)}.")

    @override
    def make_dataset(self, split: str, samples: Sequence[CaptionedVideo], clip: ClipFormat) -> CaptionDataset:
        if split != "train":
            return CaptionDataset(samples, clip, fps=self.fps, max_unreadable=self.max_unreadable)
        transform = None
        if self.crop_area is not None:
            # Captions say what is left and right, so pictures are not mirrored.
            transform = TrainTransform(clip.image_size, self.crop_area, interpolation=clip.interpolation, flip=0.0)
        return CaptionDataset(
            samples,
            clip,
            training=True,
            every_caption=self.every_caption,
            random_frames=self.random_frames,
            transform=transform,
            fps=self.fps,
            max_unreadable=self.max_unreadable,
        )
