"""What every DataModule of labelled videos shares: clips, loaders, augmentation, and what to do about broken files.

A DataModule says which files and which labels (`listing`), this module makes batches of them as docs/batches.md
describes.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.decode import DecodeError
from datamodules.errors import DataError
from datamodules.files import Folders
from datamodules.frames import open_video
from datamodules.mixing import BatchMixer
from datamodules.repeats import RepeatedSampler
from datamodules.sampling import SAMPLINGS, clip_indices
from datamodules.transforms import INTERPOLATIONS, TrainTransform
from datamodules.views import load_views

__all__ = ["REPEAT_MODES", "ClipDataset", "ClipFormat", "DataError", "Sample", "UnreadableTally", "VideoDataModule"]

REPEAT_MODES = ("views", "sampler")
"""`views`: a video is decoded once and its clip augmented several times; `sampler`: `datamodules.repeats`."""


class Sample(NamedTuple):
    """One video and its class."""

    path: str
    label: int


@dataclass(frozen=True)
class ClipFormat:
    """What the model wants to see: num_frames x image_size x image_size pixels, and how they are taken.

    Attributes are those of `datamodules.views.load_views`.
    """

    num_frames: int
    image_size: int
    short_side: int
    sampling: str
    frame_stride: int
    interpolation: str

    def __post_init__(self) -> None:
        for name in ("num_frames", "image_size", "short_side", "frame_stride"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        for name, allowed in (("sampling", SAMPLINGS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(allowed)}.")
        if self.short_side < self.image_size:
            raise DataError(
                f"short_side is {self.short_side}, too small to crop image_size {self.image_size} from; "
                "make it at least as large."
            )


class UnreadableTally:
    """Which videos of a listing could not be read, in memory that the loader's workers share.

    Args:
        samples: the listing.
        max_share: share of the listing above which `check` raises. A single broken video is always forgiven, unless
            the share is 0.
    """

    def __init__(self, samples: Sequence[Sample], max_share: float) -> None:
        self.samples = samples
        self.max_count = max(max_share * len(samples), 1) if max_share > 0 else 0
        self.flags = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    @property
    def exceeded(self) -> bool:
        """Whether more videos are broken than accepted, or all of them."""
        count = int(self.flags.sum(dtype=torch.int64))
        return count > self.max_count or count == len(self.samples)

    def report_missing(self, indices: Sequence[int], split: str) -> None:
        """Notes files that are known not to exist, with one warning for all."""
        if indices:
            self.flags[indices] = 1
            shown = _some([self.samples[index].path for index in indices])
            warnings.warn(f"{len(indices)} of the {len(self.samples)} {split} videos do not exist: {shown}.")

    def report(self, index: int, error: DecodeError, consequence: str) -> None:
        """Notes a broken video, with one warning per video."""
        if not self.flags[index]:
            self.flags[index] = 1
            warnings.warn(f"{error} ({consequence})", stacklevel=2)

    def check(self) -> None:
        """Raises `DataError` with counts and the first culprits where too many videos are broken."""
        if not self.exceeded:
            return
        broken = self.flags.nonzero().flatten().tolist()
        shown = _some([self.samples[index].path for index in broken])
        raise DataError(
            f"{len(broken)} of {len(self.samples)} videos cannot be read, more than max_unreadable allows "
            f"({int(self.max_count)}): {shown}; mend or remove them, or raise max_unreadable."
        )


class ClipDataset(Dataset):
    """One item per video: random clip and augmentation with `transform`, fixed views without.

    An unreadable video is replaced by another one, drawn at random, where there is a `transform`; elsewhere by zeros
    with index -1. Items have `video` uint8 (3, T, H, W), or (V, 3, T, H, W) for V > 1 views, `label`, `index`, `path`.

    Args:
        samples: the listing.
        clip: frames and pixels.
        transform: training augmentation; None makes fixed views.
        num_clips: clips of the fixed views.
        num_crops: crops of the fixed views, 1 or 3.
        repeats: augmentations of one decoded clip; with more than one, a training item is a list of so many dicts,
            which `collate_clips` puts side by side.
        max_unreadable: see `UnreadableTally`, which whoever iterates has to `check`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        clip: ClipFormat,
        *,
        transform: TrainTransform | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        repeats: int = 1,
        max_unreadable: float = 0.1,
    ) -> None:
        self.samples = samples
        self.clip = clip
        self.transform = transform
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.repeats = repeats
        self.tally = UnreadableTally(samples, max_unreadable)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict | list[dict]:
        if self.transform is None:
            return self._fixed(index)
        clips = self._random(index)
        return clips if self.repeats > 1 else clips[0]

    def _fixed(self, index: int) -> dict:
        sample = self.samples[index]
        options = {field.name: getattr(self.clip, field.name) for field in fields(self.clip)}
        try:
            video = load_views(sample.path, num_clips=self.num_clips, num_crops=self.num_crops, **options).video
        except DecodeError as error:
            self.tally.report(index, error, "left out of the evaluation")
            return self._placeholder(sample)
        return _item(video if len(video) > 1 else video[0], sample, index)

    def _random(self, index: int) -> list[dict]:
        while not self.tally.exceeded:
            sample = self.samples[index]
            try:
                with open_video(sample.path) as reader:
                    frames = reader.read(self._random_indices(reader.num_frames))
                return [_item(self.transform(frames).transpose(0, 1), sample, index) for _ in range(self.repeats)]
            except DecodeError as error:
                self.tally.report(index, error, "replaced by another video")
                readable = (self.tally.flags == 0).nonzero().flatten()
                index = int(readable[torch.randint(len(readable), ())]) if len(readable) else index
        return [self._placeholder(self.samples[index])] * self.repeats

    def _random_indices(self, num_video_frames: int) -> np.ndarray:
        clip = self.clip
        return clip_indices(
            num_video_frames, clip.num_frames, sampling=clip.sampling, mode="train", frame_stride=clip.frame_stride
        )

    def _placeholder(self, sample: Sample) -> dict:
        views = self.num_clips * self.num_crops if self.transform is None else 1
        shape = (3, self.clip.num_frames, self.clip.image_size, self.clip.image_size)
        video = torch.zeros((views, *shape) if views > 1 else shape, dtype=torch.uint8)
        return _item(video, sample, -1)


def _item(video: Tensor, sample: Sample, index: int) -> dict:
    return {"video": video.contiguous(), "label": sample.label, "index": index, "path": sample.path}


def collate_clips(items: Sequence[dict | list[dict]]) -> dict:
    """A batch in which the repeats of a video stand side by side."""
    return default_collate([clip for item in items for clip in (item if isinstance(item, list) else [item])])


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class VideoDataModule(L.LightningDataModule, ABC):
    """Abstract base of DataModules of labelled videos. A subclass has `class_names` and `listing`.

    Clip arguments that are None are taken from the attached model's `preprocessing`.

    Args:
        num_frames: frames of a clip.
        image_size: side in pixels of the square that the model sees.
        short_side: length in pixels of the shorter side before evaluation crops.
        sampling: "sparse", "dense" or "ssv2", see `datamodules.sampling`.
        frame_stride: distance of frames where sampling is "dense".
        interpolation: "bilinear" or "bicubic", see `datamodules.transforms`.
        num_clips: clips per video for testing and prediction; None is 4, or 2 where sampling is "ssv2".
        num_crops: crops per clip for testing and prediction, 1 or 3. Validation always has one clip and one crop.
        batch_size: videos per training and validation batch, per process.
        eval_batch_size: videos per validation, test and prediction batch; None is `batch_size` for validation and as
            many as make about `batch_size` views for testing.
        repeats: augmented copies of a video in a training step (repeated augmentation).
        repeat_mode: "views" decodes a video once and augments the same frames `repeats` times, side by side in the
            batch, which then has batch_size * repeats clips; "sampler" draws the video `repeats` times, over all
            processes, while batches and epochs keep their sizes (`datamodules.repeats`).
        num_workers: loader processes; 0 reads in the main one.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None is the system's default.
        crop_area: range of the share of the frame that a training crop covers.
        crop_ratio: range of its width / height.
        horizontal_flip: probability in training; set 0 where left and right matter.
        rand_augment_ops: operations of RandAugment per clip; 0 is off.
        rand_augment_magnitude: their magnitude, 0 .. 10.
        rand_augment_std: standard deviation of the magnitude.
        mixup: alpha of mixup; 0 is off, the published recipes have 0.8.
        cutmix: alpha of cutmix; 0 is off, the published recipes have 1.
        random_erasing: probability of random erasing; the published recipes have 0.25.
        max_unreadable: share of a split's videos that may be unreadable (missing, cut off, damaged) before the run
            stops; a single one is always forgiven, unless the share is 0.
        check_files: list the folders before the run to find missing files; a store that cannot list (plain http) needs
            False.
    """

    augment_after_crop = False
    """Whether RandAugment sees the cropped picture, as image models were trained, or the whole frame."""

    def __init__(
        self,
        *,
        num_frames: int | None = None,
        image_size: int | None = None,
        short_side: int | None = None,
        sampling: str | None = None,
        frame_stride: int | None = None,
        interpolation: str | None = None,
        num_clips: int | None = None,
        num_crops: int = 3,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        repeats: int = 1,
        repeat_mode: str = "views",
        num_workers: int = 4,
        multiprocessing_context: str | None = None,
        crop_area: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: float = 7.0,
        rand_augment_std: float = 0.5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erasing: float = 0.0,
        max_unreadable: float = 0.1,
        check_files: bool = True,
    ) -> None:
        super().__init__()
        self._clip_arguments = {
            "num_frames": num_frames,
            "image_size": image_size,
            "short_side": short_side,
            "sampling": sampling,
            "frame_stride": frame_stride,
            "interpolation": interpolation,
        }
        if num_crops not in (1, 3):
            raise DataError(f"num_crops is {num_crops}; it has to be 1 or 3.")
        if num_clips is not None and num_clips < 1:
            raise DataError(f"num_clips is {num_clips}; it has to be at least 1.")
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise DataError(f"batch_size {batch_size} and eval_batch_size {eval_batch_size} have to be at least 1.")
        if repeats < 1 or repeat_mode not in REPEAT_MODES:
            raise DataError(
                f"repeats is {repeats} and repeat_mode {repeat_mode!r}; they have to be at least 1 and one of "
                f"{', '.join(REPEAT_MODES)}."
            )
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is {max_unreadable}; it is a share between 0 and 1.")
        self.num_clips, self.num_crops = num_clips, num_crops
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.repeats, self.repeat_mode = repeats, repeat_mode
        self.num_workers, self.multiprocessing_context = num_workers, multiprocessing_context
        self.crop_area, self.crop_ratio, self.horizontal_flip = tuple(crop_area), tuple(crop_ratio), horizontal_flip
        self.rand_augment = (rand_augment_ops, rand_augment_magnitude, rand_augment_std)
        self.mixer = BatchMixer(mixup=mixup, cutmix=cutmix, erasing=random_erasing)
        self.max_unreadable, self.check_files = max_unreadable, check_files
        self.folders = Folders()
        self.datasets: dict[str, ClipDataset] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the labels; None where the files have numbers only."""

    @abstractmethod
    def listing(self, split: str) -> list[Sample]:
        """The videos of "train", "val" or "test", in a fixed order; raises `DataError` where that fails."""

    @cached_property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1; a subclass that is told the number sets it in its constructor."""
        return len(self.class_names)

    @property
    def clips_per_batch(self) -> int:
        """Clips of a training batch in one process."""
        return self.batch_size * (self.repeats if self.repeat_mode == "views" else 1)

    @property
    def clip(self) -> ClipFormat:
        """The arguments given, completed by the attached model's `preprocessing`."""
        given = {name: value for name, value in self._clip_arguments.items() if value is not None}
        values = dict(getattr(getattr(self.trainer, "lightning_module", None), "preprocessing", {}))
        if "image_size" in given and "short_side" not in given:
            # The crop keeps the share of the frame that the model was made for.
            share = values["short_side"] / values["image_size"] if values else 1
            given["short_side"] = round(share * given["image_size"])
        values |= given
        missing = [name for name in self._clip_arguments if name not in values]
        if missing:
            raise DataError(f"{', '.join(missing)} not set and no model attached to take it from; set it on the data.")
        return ClipFormat(**{name: values[name] for name in self._clip_arguments})

    def setup(self, stage: str | None = None) -> None:
        """Lists the videos that `stage` needs; every mistake in the listing is raised here, before any long work."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        clip = self.clip
        with self.folders.kept():
            wanted = ("train", "val", "test") if stage is None else splits[stage]
            listings = {split: self.listing(split) for split in wanted}
            self._check_listings(listings)
            for split, samples in listings.items():
                dataset = self.datasets[split] = self._dataset(split, samples, clip)
                if self.check_files:
                    missing = [i for i, sample in enumerate(samples) if not self.folders.has(sample.path)]
                    dataset.tally.report_missing(missing, split)
                    dataset.tally.check()

    def _check_listings(self, listings: dict[str, list[Sample]]) -> None:
        """Raises `DataError` for labels that are no class; warns of videos listed twice, within a split or as training
        videos that are also evaluated."""
        num_classes = self.num_classes
        for split, samples in listings.items():
            strays = [f"{s.path} ({s.label})" for s in samples if not 0 <= s.label < num_classes]
            if strays:
                raise DataError(
                    f"{len(strays)} of the {len(samples)} {split} videos have labels outside 0 .. "
                    f"{num_classes - 1}: {_some(strays)}; mend the list or set the number of classes."
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
                    f"with another label: {_some(doubles)}."
                )
            if split == "train":
                trained = label_of.keys()
            elif "train" in listings and (leaks := [path for path in label_of if path in trained]):
                warnings.warn(f"{len(leaks)} of the {len(samples)} {split} videos are trained on too: {_some(leaks)}.")

    def _dataset(self, split: str, samples: list[Sample], clip: ClipFormat) -> ClipDataset:
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
                crop_first=self.augment_after_crop,
            )
            repeats = self.repeats if self.repeat_mode == "views" else 1
            return ClipDataset(samples, clip, transform=transform, repeats=repeats, max_unreadable=self.max_unreadable)
        num_clips, num_crops = (1, 1) if split == "val" else (self._test_clips(clip), self.num_crops)
        return ClipDataset(samples, clip, num_clips=num_clips, num_crops=num_crops, max_unreadable=self.max_unreadable)

    def _test_clips(self, clip: ClipFormat) -> int:
        if self.num_clips is None:
            return 2 if clip.sampling == "ssv2" else 4
        if clip.sampling == "ssv2" and self.num_clips > 2:
            raise DataError(f"num_clips is {self.num_clips}, but sampling 'ssv2' defines one or two; set it to 2.")
        return self.num_clips

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        dataset, train = self.datasets[split], split == "train"
        sampler = self._repeated_sampler(dataset) if train and self.repeats > 1 else None
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=train and sampler is None,
            sampler=sampler,
            collate_fn=collate_clips,
            # Mixing and batch statistics want full batches, but a set smaller than one batch should train too.
            drop_last=train and len(dataset if sampler is None else sampler) >= batch_size,
            num_workers=self.num_workers,
            multiprocessing_context=self.multiprocessing_context if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _repeated_sampler(self, dataset: ClipDataset) -> RepeatedSampler | None:
        if self.repeat_mode != "sampler":
            return None
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # as Lightning seeds the samplers that it makes
        return RepeatedSampler(dataset, self.repeats, num_replicas=world_size, rank=rank, seed=seed)

    def train_dataloader(self) -> DataLoader:
        """Random clips, shuffled."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """The middle clip and crop of each video."""
        return self._loader("val", self.eval_batch_size or self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """num_clips x num_crops views of each video."""
        views = self.datasets["test"].num_clips * self.num_crops
        return self._loader("test", self.eval_batch_size or max(1, self.batch_size // views))

    def predict_dataloader(self) -> DataLoader:
        """The same as for testing."""
        return self.test_dataloader()

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Stops the run, from the main process, where too many videos turned out to be unreadable."""
        for dataset in self.datasets.values():
            dataset.tally.check()
        return batch

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Mixes training batches on the device."""
        if self.trainer is not None and self.trainer.training:
            return self.mixer(batch, self.num_classes)
        return batch
