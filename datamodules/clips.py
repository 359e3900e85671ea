"""Base of all DataModules of videos: clips, listings and loaders.

A DataModule says which files there are (`list_videos`) and what an item of them is (`make_dataset`); this module finds
mistakes before the run, deals the items out, and resumes in the middle of an epoch.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_all_start_methods
from typing import Any, Generic, Literal, NamedTuple, cast

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from typing_extensions import TypeVar, override

from datamodules.checks import SHARE, Count, OneOf, OrNone, check, fits
from datamodules.errors import DataError, some
from datamodules.loading import (
    Batch,
    ClipLoader,
    EvaluationLoader,
    TrainSampler,
    ignore_interrupts,
    suitable_workers,
    worker_context,
)
from datamodules.overview import SplitOverview, print_overview
from datamodules.shards.reading import ShardListings, has_index, shard_order
from datamodules.storage.files import Folders, join
from datamodules.unreadable import Listed, ListedItems
from datamodules.video.frames import DECODERS, check_decoder, open_video
from datamodules.video.reader import Reader
from datamodules.video.resize import INTERPOLATIONS, MAX_SIDE, RESIZES, read_resized
from datamodules.video.sampling import MAX_FRAMES, SAMPLINGS, clip_indices

__all__ = ["CLIP_RULES", "ClipDataModule", "ClipFormat", "warn_of_leaks"]

CLIP_RULES = {
    "num_frames": Count(1, MAX_FRAMES),
    "image_size": Count(1, MAX_SIDE),
    "short_side": Count(1, MAX_SIDE),
    "sampling": OneOf(*SAMPLINGS),
    "frame_stride": Count(1, 100_000),
    "interpolation": OneOf(*INTERPOLATIONS),
    "resize": OneOf(*RESIZES),
    "decoder": OneOf(*DECODERS),
}
"""Rules for the arguments of a `ClipFormat`."""


@dataclass(frozen=True)
class ClipFormat:
    """The model's input: num_frames x image_size x image_size pixels, and how they are taken.

    Attributes are those of `datamodules.video.views.load_views`.
    """

    num_frames: int
    image_size: int
    short_side: int
    sampling: str
    frame_stride: int
    interpolation: str
    resize: str = "crop"
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        check(**{name: (getattr(self, name), rule) for name, rule in CLIP_RULES.items()})
        check_decoder(self.decoder)
        if self.short_side < self.image_size:
            raise DataError(
                f"short_side is {self.short_side}, too small to crop image_size {self.image_size} from; "
                "make it at least as large."
            )

    def open(self, path: str) -> Reader:
        """The reader of a file or folder, with the decoder chosen."""
        return open_video(path, decoder=self.decoder)

    def indices(
        self, length: int, mode: Literal["train", "test"], clip: int = 0, num_clips: int = 1
    ) -> NDArray[np.int64]:
        """Positions of a clip's frames in so many frames, see `datamodules.video.sampling.clip_indices`."""
        return clip_indices(
            length,
            self.num_frames,
            sampling=self.sampling,
            mode=mode,
            clip=clip,
            num_clips=num_clips,
            frame_stride=self.frame_stride,
        )

    def zeros(self, views: int = 1) -> Tensor:
        """What takes the place of clips that cannot be read: uint8 (3, T, H, W), or (V, 3, T, H, W) for V > 1 views."""
        shape = (3, self.num_frames, self.image_size, self.image_size)
        return torch.zeros((views, *shape) if views > 1 else shape, dtype=torch.uint8)

    def read(self, reader: Reader, indices: NDArray[np.int64]) -> Tensor:
        """Frames for evaluation, to be cropped, see `datamodules.video.resize.read_resized`."""
        return read_resized(
            reader,
            indices,
            image_size=self.image_size,
            short_side=self.short_side,
            interpolation=self.interpolation,
            resize=self.resize,
        )


def warn_of_leaks(listings: Mapping[str, Sequence[Listed]]) -> None:
    """Warn of training videos that are also evaluated."""
    trained = {sample.path for sample in listings.get("train", ())}
    for split, samples in listings.items():
        leaks = list(dict.fromkeys(sample.path for sample in samples if sample.path in trained))
        if split != "train" and leaks:
            warnings.warn(f"{len(leaks)} of the {len(samples)} {split} videos are trained on too: {some(leaks)}.")


Entry = TypeVar("Entry", bound=Listed, default=Any)
"""An entry of a listing; anything where a subclass does not say."""
Items = TypeVar("Items", bound=ListedItems, default=Any)
"""The data set that is made of a listing; anything where a subclass does not say."""


class ClipDataModule(L.LightningDataModule, ABC, Generic[Entry, Items]):
    """Abstract base of DataModules of videos. A subclass has `list_videos`, `check_listings` and `make_dataset`.

    Clip arguments that are None are taken from the attached model's `preprocessing`.

    Every DataModule reads tar shards too, which `zoo shard` writes (docs/shards.md): where `shards` is given, or root
    has an index of shards, this is the listing, and files, lists and annotations are not looked for.

    Args:
        num_frames: frames of a clip.
        image_size: side in pixels of the square that the model sees.
        short_side: length in pixels of the shorter side before evaluation crops.
        sampling: "sparse", "dense", "ssv2", "intervals" or "middles", see `datamodules.video.sampling`.
        frame_stride: distance of frames where sampling is "dense".
        interpolation: "bilinear", "bicubic" or "bicubic-plain", see `datamodules.augment`.
        resize: "crop" or "squeeze", how frames become squares in evaluation.
        batch_size: items per training and evaluation batch, per process.
        eval_batch_size: items per validation, test and prediction batch; None is `batch_size`.
        num_workers: loader processes; 0 reads in the main one, None is one for each core that is left beside the
            training process, at most 4.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None is the system's default.
        drop_incomplete_step: leave out the batches at the end of an epoch that do not fill an optimiser step where
            gradients are accumulated, as the official video training does; Lightning makes a smaller step of them.
        max_unreadable: share of a split's videos that may be unreadable (missing, cut off, damaged) before the run
            stops; a single one is always forgiven, unless the share is 0. Each process counts what it has met.
        check_files: list the folders before the run to find missing files; a store that cannot list (plain http) needs
            False. Of shards, the local ones are looked at.
        shards: folder of tar shards, or shards by name (`train-{000000..000099}.tar`), or a list of these; paths, which
            start at root, or URLs.
        shuffle_buffer: how far a training sample may move from its shard's place in the random order of shards; larger
            mixes better, smaller reads fewer shards at a time.
        decoder: "pyav", or the extra "torchcodec" or "torchcodec-cuda" (on the GPU; with multiprocessing_context
            "spawn"), see docs/data.md.
    """

    collate = staticmethod(default_collate)
    """Makes a batch of items."""

    entry: type[NamedTuple]
    """Type of the listing's entries, which begin with `path`."""

    repeats_in_sampler = 1
    """Number of times a training item is drawn, see `datamodules.loading.TrainSampler`."""

    def __init__(
        self,
        *,
        num_frames: int | None = None,
        image_size: int | None = None,
        short_side: int | None = None,
        sampling: str | None = None,
        frame_stride: int | None = None,
        interpolation: str | None = None,
        resize: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        multiprocessing_context: str | None = None,
        drop_incomplete_step: bool = False,
        max_unreadable: float = 0.1,
        check_files: bool = True,
        shards: str | list[str] | None = None,
        shuffle_buffer: int = 5000,
        decoder: str = "pyav",
    ) -> None:
        super().__init__()
        self._clip_arguments: dict[str, int | str | None] = {
            "num_frames": num_frames,
            "image_size": image_size,
            "short_side": short_side,
            "sampling": sampling,
            "frame_stride": frame_stride,
            "interpolation": interpolation,
            "resize": resize,
            "decoder": decoder,
        }
        check(**{name: (value, OrNone(CLIP_RULES[name])) for name, value in self._clip_arguments.items()})
        check(
            batch_size=(batch_size, Count(1, 65_536)),
            eval_batch_size=(eval_batch_size, OrNone(Count(1, 65_536))),
            num_workers=(num_workers, OrNone(Count(0, 1024))),
            multiprocessing_context=(multiprocessing_context, OrNone(OneOf(*get_all_start_methods()))),
            max_unreadable=(max_unreadable, SHARE),
            shuffle_buffer=(shuffle_buffer, Count(0, 10**9)),
        )
        if shards is not None and (not shards or not (isinstance(shards, str) or fits(shards, tuple[str, ...]))):
            raise DataError(f"shards is {shards!r}; it has to be a folder or a name of shards, or a list of these.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self._num_workers, self.multiprocessing_context = num_workers, multiprocessing_context
        self.drop_incomplete_step = drop_incomplete_step
        self.max_unreadable, self.check_files = max_unreadable, check_files
        self.shards, self.shuffle_buffer = [shards] if isinstance(shards, str) else shards, shuffle_buffer
        self.folders = Folders()
        self.origins: dict[str, str] = {}
        """Split -> the list or folder of its videos, or how they were chosen."""
        self.skipped: dict[str, list[str]] = {}
        """Split -> videos that its list names and `list_videos` leaves out."""
        self.datasets: dict[str, Items] = {}
        self._missing_paths: dict[str, list[str]] = {}
        self._tests_validation = False
        self._train_loader: ClipLoader | None = None
        self._loader_state: dict[str, Any] | None = None

    @property
    def num_workers(self) -> int:
        """Loader processes of this process, those given or as many as suit the machine."""
        if self._num_workers is not None:
            return self._num_workers
        return suitable_workers(self.trainer.num_devices if self.trainer else 1)

    @cached_property
    def shard_listings(self) -> ShardListings | None:
        """The shards' listings; None if the videos are files."""
        root = getattr(self, "root", "")
        if not hasattr(self, "entry"):
            if self.shards is not None:
                raise DataError(f"{type(self).__name__} reads no shards; leave data.shards out.")
            return None
        if self.shards is not None:
            return ShardListings([join(root, source) for source in self.shards], self.entry)
        found = root and any(has_index(root, split) for split in ("train", "val", "test"))
        return ShardListings([root], self.entry) if found else None

    def listing(self, split: str) -> Sequence[Entry]:
        """The videos of "train", "val" or "test", in a fixed order: those of the shards, or else `list_videos`."""
        if self.shard_listings is None:
            with self.folders.kept():
                return self.list_videos(split)
        self.origins[split] = f"shards of {', '.join(self.shard_listings.sources)}"
        return cast("list[Entry]", self.shard_listings.split(split).entries)

    @abstractmethod
    def list_videos(self, split: str) -> Sequence[Entry]:
        """Return the videos of "train", "val" or "test" where they are files, in a fixed order.

        Raises:
            DataError: they cannot be listed.
        """

    @abstractmethod
    def check_listings(self, listings: Mapping[str, Sequence[Entry]]) -> None:
        """Raise `DataError` for mistakes in the listings of the splits asked for, and warn of odd ones."""

    @abstractmethod
    def make_dataset(self, split: str, samples: Sequence[Entry], clip: ClipFormat) -> Items:
        """Return the items of a split; their `tally` is an `UnreadableTally` over `samples`."""

    @property
    def clip(self) -> ClipFormat:
        """The arguments given, completed by the attached model's `preprocessing`."""
        given = {name: value for name, value in self._clip_arguments.items() if value is not None}
        values: dict[str, Any] = dict(getattr(getattr(self.trainer, "lightning_module", None), "preprocessing", {}))
        if "image_size" in given and "short_side" not in given:
            # The crop keeps the share of the frame that the model was made for.
            share = values["short_side"] / values["image_size"] if values else 1
            given["short_side"] = round(share * cast(int, given["image_size"]))
        values = {"resize": "crop"} | values | given
        missing = [name for name in self._clip_arguments if name not in values]
        if missing:
            raise DataError(f"{', '.join(missing)} not set and no model attached to take it from; set it on the data.")
        return ClipFormat(**{name: values[name] for name in self._clip_arguments})

    @override
    def setup(self, stage: str | None = None) -> None:
        """List the videos that `stage` needs; every mistake in the listing is raised here, before any long work."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        clip = self.clip
        with self.folders.kept():
            wanted = ("train", "val", "test") if stage is None else splits[stage]
            listings = {split: self.listing(split) for split in wanted}
            self.check_listings(listings)
            warn_of_leaks(listings)
            for split, samples in listings.items():
                dataset = self.datasets[split] = self.make_dataset(split, samples, clip)
                if self.check_files:
                    missing = self._missing(split, samples)
                    self._missing_paths[split] = [samples[i].path for i in missing]
                    dataset.tally.report_missing(missing, split)
                    dataset.tally.check(at_start=True)
            self._tests_validation = stage == "test" and self._is_validation(listings["test"])
        if stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            print_overview(f"Data of {type(self).__name__}", self.describe())

    @override
    def teardown(self, stage: str) -> None:
        """Print below the results of a test if they are those of the validation videos."""
        if stage == "test" and self._tests_validation and (self.trainer is None or self.trainer.is_global_zero):
            print(
                f"Scored on the {len(self.datasets['test'].tally.samples):,} validation videos: the data has no other "
                "test split, and checkpoints were chosen on them."
            )

    def _is_validation(self, samples: Sequence[Entry]) -> bool:
        """Whether the test split is that of validation."""
        origins, skipped = dict(self.origins), dict(self.skipped)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return bool(self.listing("val") == samples)
        except DataError:
            return False
        finally:
            self.origins, self.skipped = origins, skipped

    def describe(self) -> list[SplitOverview]:
        """Describe each split that was set up, in the order of `setup`; a fit prints this before its first step."""
        found = []
        for split, dataset in self.datasets.items():
            classes = self.classes_in(dataset)
            num_classes = None if classes is None else getattr(self, "num_classes", None)
            left_out = [*self.skipped.get(split, ()), *self._missing_paths.get(split, ())]
            sizes = (self.videos_in(dataset), self.clips_in(dataset), classes, num_classes)
            found.append(SplitOverview(split, *sizes, self.origins.get(split, ""), left_out))
        return found

    def videos_in(self, dataset: Items) -> int:
        """Different files of a split."""
        return len({sample.path for sample in dataset.tally.samples})

    def classes_in(self, dataset: Items) -> int | None:
        """Count the classes that have a video in a split; None without classes."""
        return None

    def clips_in(self, dataset: Items) -> int:
        """Clips of an epoch of a split, with all views or repeats."""
        return len(dataset) * dataset.views

    def _missing(self, split: str, samples: Sequence[Entry]) -> list[int]:
        """Numbers of the entries whose files are not there."""
        if self.shard_listings is None:
            return [i for i, sample in enumerate(samples) if not self.folders.has(sample.path)]
        return self.shard_listings.split(split).missing

    def _loader(self, split: str, batch_size: int) -> DataLoader[Batch]:
        options: dict[str, Any] = {
            "dataset": self.datasets[split],
            "batch_size": batch_size,
            "collate_fn": self.collate,
            "num_workers": self.num_workers,
            "multiprocessing_context": worker_context(self.multiprocessing_context) if self.num_workers else None,
            "worker_init_fn": ignore_interrupts,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if split != "train":
            return EvaluationLoader(**options)
        sampler = self._train_sampler()
        # Mixing and batch statistics want full batches, but a set smaller than one batch should train too.
        loader = ClipLoader(**options, sampler=sampler, drop_last=len(sampler) >= batch_size)
        if self._loader_state is not None:
            self._check_order(self._loader_state.get("shards"))
            loader.load_state_dict(self._loader_state["train_loader"])
        self._train_loader, self._loader_state = loader, None
        return loader

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training epoch.

        Lightning keeps this too, but does not give it back to a loader that was made before the checkpoint was read,
        which is what asking for the number of steps does.
        """
        if self._train_loader is None:
            return {}
        return {"train_loader": self._train_loader.state_dict(), "shards": self._order_of_shards}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the next training loader resume where that one stood."""
        self._loader_state = state_dict if "train_loader" in state_dict else None

    @property
    def _order_of_shards(self) -> str | None:
        """Digest of what the order of training samples depends on besides the seed; None for files."""
        listings = self.shard_listings
        return None if listings is None else f"{listings.split('train').digest} {self.shuffle_buffer}"

    def _check_order(self, interrupted: str | None) -> None:
        if interrupted != self._order_of_shards:
            raise DataError(
                "The interrupted epoch was read in another order, with other shards or another data.shuffle_buffer; "
                "restore them to resume."
            )

    def _train_sampler(self) -> TrainSampler:
        trainer = self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        accumulated = trainer.accumulate_grad_batches if trainer and self.drop_incomplete_step else 1
        dataset, order = self.datasets["train"], None
        if self.shard_listings is not None:
            sizes = self.shard_listings.split("train").sizes
            if dataset.first_items is not None:
                sizes = np.diff(dataset.first_items[np.cumsum([0, *sizes])]).tolist()
            order = partial(shard_order, sizes, self.shuffle_buffer)
        return TrainSampler(
            dataset,
            self.repeats_in_sampler,
            num_replicas=world_size,
            rank=rank,
            # Set by Lightning's seed_everything; without it several processes still have to agree.
            seed=int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed() % 2**32 if world_size == 1 else 0)),
            order=order,
            multiple=self.batch_size * accumulated if accumulated > 1 else 1,
        )

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Random clips, shuffled; in a loop of your own call `loader.sampler.set_epoch`, as Lightning does."""
        return self._loader("train", self.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        """The videos in the order of the listing."""
        return self._loader("val", self.eval_batch_size or self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        """The videos in the order of the listing."""
        return self._loader("test", self.eval_batch_size or self.batch_size)

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same as for testing."""
        return self.test_dataloader()

    @override
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Stop the run, from the main process, if too many videos are unreadable."""
        for dataset in self.datasets.values():
            dataset.tally.check()
        return batch
