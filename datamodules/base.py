"""Base of the DataModules of labelled videos: augmentation, views and mixing.

A DataModule says which files and which labels (`list_videos`), this module makes batches of them as docs/batches.md
describes.
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property, partial
from typing import Any, Generic, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from typing_extensions import TypeVar, override

from datamodules.augment import AUTO_AUGMENT_POLICIES, CROPS, TrainTransform
from datamodules.checks import SHARE, Count, Number, OneOf, OrNone, Range, check
from datamodules.clips import ClipDataModule, ClipFormat
from datamodules.errors import DataError, some
from datamodules.loading import Batch, Draw, Item, seeded
from datamodules.mixing import BatchMixer
from datamodules.unreadable import Listed, ListedItems, UnreadableTally
from datamodules.video.resize import to_clip
from datamodules.video.sampling import MAX_FRAMES, frames_of
from datamodules.video.views import load_views

__all__ = ["REPEAT_MODES", "ClipDataset", "Sample", "VideoDataModule", "collate_clips"]

REPEAT_MODES = ("views", "sampler")
"""`views`: a video is decoded once and its clip augmented several times; `sampler`: `datamodules.loading`."""


class Sample(NamedTuple):
    """One video and its class."""

    path: str
    label: int


S = TypeVar("S", bound=Listed, default=Sample)
"""An entry of the listing; classes with another one than `Sample` override what reads its label."""


@dataclass(eq=False, repr=False)
class ClipDataset(ListedItems, Generic[S]):
    """One item per video: random clip and augmentation with `transform`, fixed views without.

    Items have `video` uint8 (3, T, H, W), or (V, 3, T, H, W) for V > 1 views, `label`, `index`, `path`, and in training
    `seed`. An unreadable video becomes zeros with index -1 where no other one takes its place.

    Args:
        samples: the listing.
        clip: frames and pixels.
        transform: training augmentation; None makes fixed views.
        num_clips: clips of the fixed views.
        num_crops: crops of the fixed views, 1 or 3.
        repeats: augmentations of one decoded clip; with more than one, a training item is a list of so many dicts,
            which `collate_clips` puts side by side.
        max_unreadable: see `datamodules.unreadable.UnreadableTally`, which the code that iterates has to `check`.
    """

    samples: Sequence[S]
    clip: ClipFormat
    _: KW_ONLY
    transform: TrainTransform | None = None
    num_clips: int = 1
    num_crops: int = 1
    repeats: int = 1
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        self.training = self.transform is not None
        self.views = self.repeats if self.training else self.num_clips * self.num_crops
        self.tally = UnreadableTally(self.samples, self.max_unreadable)

    @override
    def __getitem__(self, item: int | Draw) -> Item | list[Item]:  # type: ignore[override]  # a list of the repeats
        if not self.training:
            return super().__getitem__(item)
        draw = Draw.of(item)
        number, part = self.place_of(draw.index)
        clips = self.tally.read_or_replace(Draw(number, draw.seed), partial(self._augmented, part=part))
        clips = [{**clip, "seed": draw.seed} for clip in clips or [self._placeholder(number)] * self.repeats]
        return clips if self.repeats > 1 else clips[0]

    @override
    def _read(self, number: int) -> Item:
        options = {field.name: getattr(self.clip, field.name) for field in fields(self.clip)}
        options |= {"num_clips": self.num_clips, "num_crops": self.num_crops, "spans": self.spans_of(number)}
        video = load_views(self.samples[number].path, **options).video
        return self._item(video if len(video) > 1 else video[0], self.samples[number], number)

    def _augmented(self, number: int, part: int) -> list[Item]:
        assert self.transform is not None
        sample, spans = self.samples[number], self.spans_of(number)
        with self.clip.open(sample.path) as reader:
            # A video that replaces an unreadable one may have fewer parts.
            seen = frames_of(spans[part % len(spans)], reader.num_frames, reader.fps)
            frames = reader.read(seen.start + self.clip.indices(len(seen), "train"))
        return [self._item(to_clip(self.transform(frames)), sample, number) for _ in range(self.repeats)]

    @override
    def _placeholder(self, number: int) -> Item:
        return self._item(self.clip.zeros(1 if self.training else self.views), self.samples[number], -1)

    def _item(self, video: Tensor, sample: S, index: int) -> Item:
        label = cast(Sample, sample).label
        return {"video": video.contiguous(), "label": label, "index": index, "path": sample.path}

    def spans_of(self, number: int) -> Sequence[tuple[float, float] | None]:
        """Stretches of a video, in seconds, each of which has the fixed views; None is the whole."""
        return (None,)


def collate_clips(items: Sequence[Item | list[Item]]) -> Batch:
    """Make a batch in which the repeats of a video stand side by side."""
    batch: Batch = default_collate([clip for item in items for clip in (item if isinstance(item, list) else [item])])
    return batch


class VideoDataModule(ClipDataModule[S, ClipDataset[S]], Generic[S]):
    """Abstract base of DataModules of labelled videos. A subclass has `list_classes` and `list_videos`.

    Args:
        num_clips: clips per video for testing and prediction; None is 4, or 2 where sampling is "ssv2".
        num_crops: crops per clip for testing and prediction, 1 or 3. Validation always has one clip and one crop.
        repeats: augmented copies of a video in a training step (repeated augmentation).
        repeat_mode: "views" decodes a video once and augments the same frames `repeats` times, side by side in the
            batch, which then has batch_size * repeats clips; "sampler" draws the video `repeats` times, over all
            processes, while batches and epochs keep their sizes (`datamodules.loading`).
        crop: of training clips: "random_resized", or "multi_scale" as masked pretraining has it, see
            `datamodules.augment`.
        crop_area: range of the share of the frame that a random resized crop covers.
        crop_ratio: range of its width / height.
        horizontal_flip: probability in training; set 0 where left and right matter.
        rand_augment_ops: operations of RandAugment per clip; 0 is off.
        rand_augment_magnitude: their magnitude, 0 .. 10.
        rand_augment_std: standard deviation of the magnitude.
        auto_augment: policy of AutoAugment instead of RandAugment: "v0", see `datamodules.augment.auto_augment`.
        mixup: alpha of mixup; 0 is off, the published recipes have 0.8.
        cutmix: alpha of cutmix; 0 is off, the published recipes have 1.
        random_erasing: probability of random erasing; the published recipes have 0.25.
        common: see `datamodules.clips.ClipDataModule`; without `eval_batch_size` a test batch has as many videos as
            make about `batch_size` views.
    """

    collate = staticmethod(collate_clips)
    entry: type[NamedTuple] = Sample

    augment_after_crop = False
    """Whether RandAugment and AutoAugment see the cropped picture, as image models were trained, or the whole frame."""

    def __init__(
        self,
        *,
        num_clips: int | None = None,
        num_crops: int = 3,
        repeats: int = 1,
        repeat_mode: str = "views",
        crop: str = "random_resized",
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: float = 7.0,
        rand_augment_std: float = 0.5,
        auto_augment: str | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erasing: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check(
            num_clips=(num_clips, OrNone(Count(1, MAX_FRAMES))),
            num_crops=(num_crops, OneOf(1, 3)),
            repeats=(repeats, Count(1, 1000)),
            repeat_mode=(repeat_mode, OneOf(*REPEAT_MODES)),
            crop=(crop, OneOf(*CROPS)),
            crop_area=(crop_area, Range(1)),
            crop_ratio=(crop_ratio, Range(100)),
            horizontal_flip=(horizontal_flip, SHARE),
            rand_augment_ops=(rand_augment_ops, Count(0, 100)),
            rand_augment_magnitude=(rand_augment_magnitude, Number(0, 10)),
            rand_augment_std=(rand_augment_std, Number(0, 10)),
            auto_augment=(auto_augment, OrNone(OneOf(*AUTO_AUGMENT_POLICIES))),
            mixup=(mixup, Number(0, 1000)),
            cutmix=(cutmix, Number(0, 1000)),
            random_erasing=(random_erasing, SHARE),
        )
        if auto_augment is not None and rand_augment_ops:
            raise DataError(
                f"auto_augment is {auto_augment!r} and rand_augment_ops {rand_augment_ops}; set one of them, "
                "auto_augment: null or rand_augment_ops: 0."
            )
        self.num_clips, self.num_crops = num_clips, num_crops
        self.repeats, self.repeat_mode = repeats, repeat_mode
        self.repeats_in_sampler = repeats if repeat_mode == "sampler" else 1
        self.crop = crop
        self.crop_area, self.crop_ratio = (crop_area[0], crop_area[1]), (crop_ratio[0], crop_ratio[1])
        self.horizontal_flip = horizontal_flip
        self.rand_augment = (rand_augment_ops, rand_augment_magnitude, rand_augment_std)
        self.auto_augment = auto_augment
        self.mixer = BatchMixer(mixup=mixup, cutmix=cutmix, erasing=random_erasing)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the labels; None where the files have numbers only."""
        if self.shard_listings is None:
            with self.folders.kept():
                return self.list_classes()
        found = self.shard_listings.class_names
        if found is not None:
            self.expect_classes(len(found), self.shard_listings.sources[0])
        return found

    def expect_classes(self, count: int, source: str, what: str = "classes") -> None:
        """Raise `DataError` where `source` has another number of classes than `num_classes` says."""
        expected = vars(self).get("num_classes")
        if expected not in (None, count):
            raise DataError(
                f"{source} has {count} {what}, but num_classes is {expected}; set data.num_classes, or complete the "
                "data."
            )

    @abstractmethod
    def list_classes(self) -> list[str] | None:
        """Return the `class_names` of videos that are files.

        Raises:
            DataError: there are none, or they cannot be read.
        """

    @cached_property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1; a subclass that is told the number sets it in its constructor."""
        names = self.class_names
        if names is None:
            raise DataError(f"{type(self).__name__} has no names of classes; set num_classes in its constructor.")
        return len(names)

    @property
    def clips_per_batch(self) -> int:
        """Clips of a training batch in one process."""
        return self.batch_size * (self.repeats if self.repeat_mode == "views" else 1)

    @override
    def classes_in(self, dataset: ClipDataset[S]) -> int | None:
        return len({sample.label for sample in cast(Sequence[Sample], dataset.samples)})

    @override
    def check_listings(self, listings: Mapping[str, Sequence[S]]) -> None:
        """Raise `DataError` for labels outside the classes; warn of videos listed twice."""
        num_classes = self.num_classes
        for split, samples in cast(Mapping[str, Sequence[Sample]], listings).items():
            strays = [f"{s.path} ({s.label})" for s in samples if not 0 <= s.label < num_classes]
            if strays:
                raise DataError(
                    f"{len(strays)} of the {len(samples)} {split} videos have labels outside 0 .. "
                    f"{num_classes - 1}: {some(strays)}; correct the list or set the number of classes."
                )
            label_of: dict[str, int] = {}
            doubles, contradictions = [], 0
            for path, label in samples:
                if path in label_of:
                    doubles.append(path)
                    contradictions += label != label_of[path]
                label_of[path] = label
            if doubles:
                warnings.warn(
                    f"{len(doubles)} of the {len(samples)} {split} videos are listed again, {contradictions} of them "
                    f"with another label: {some(doubles)}."
                )

    @override
    def make_dataset(self, split: str, samples: Sequence[S], clip: ClipFormat) -> ClipDataset[S]:
        if split == "train":
            num_ops, magnitude, magnitude_std = self.rand_augment
            transform = TrainTransform(
                clip.image_size,
                area=self.crop_area,
                ratio=self.crop_ratio,
                interpolation=clip.interpolation,
                flip=self.horizontal_flip,
                num_ops=num_ops,
                magnitude=magnitude,
                magnitude_std=magnitude_std,
                policy=self.auto_augment,
                crop_first=self.augment_after_crop,
                crop=self.crop,
            )
            repeats = self.repeats if self.repeat_mode == "views" else 1
            return self.dataset_of(samples, clip, transform=transform, repeats=repeats)
        num_clips, num_crops = (1, 1) if split == "val" else (self._test_clips(clip), self.num_crops)
        return self.dataset_of(samples, clip, num_clips=num_clips, num_crops=num_crops)

    def dataset_of(self, samples: Sequence[S], clip: ClipFormat, **options: Any) -> ClipDataset[S]:
        """Return the items of a listing; `options` are those of `ClipDataset`."""
        return ClipDataset(samples, clip, max_unreadable=self.max_unreadable, **options)

    def _test_clips(self, clip: ClipFormat) -> int:
        if self.num_clips is None:
            return 2 if clip.sampling == "ssv2" else 4
        if clip.sampling == "ssv2" and self.num_clips > 2:
            raise DataError(f"num_clips is {self.num_clips}, but sampling 'ssv2' defines one or two; set it to 2.")
        return self.num_clips

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        """num_clips x num_crops views of each video."""
        return self._loader("test", self.eval_batch_size or max(1, self.batch_size // self.datasets["test"].views))

    @override
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Stop the run if too many videos are unreadable, see `ClipDataModule`."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        seeds = batch.get("seed", torch.randint(2**32, (1,)))
        self._mixing_seed = int(seeds.sum()) % 2**32  # read before the transfer: a GPU would have to be waited for
        return batch

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mix training batches on the device."""
        if self.trainer is not None and self.trainer.training:
            with seeded(self._mixing_seed, batch["video"].device):
                return self.mixer(batch, self.num_classes)
        return batch
