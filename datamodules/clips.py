"""What every DataModule of videos shares, whatever else an item has: clips, loaders, and what to do about broken files.

A DataModule says which files there are (`listing`) and what an item of them is (`make_dataset`); this module finds
mistakes before the run, deals the items out, and goes on in the middle of an epoch.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.decode import DecodeError
from datamodules.errors import DataError
from datamodules.files import Folders
from datamodules.loading import ClipLoader, Draw, TrainSampler, seeded
from datamodules.sampling import SAMPLINGS
from datamodules.transforms import INTERPOLATIONS

__all__ = ["ClipDataModule", "ClipFormat", "UnreadableTally", "some"]

T = TypeVar("T")


class Listed(Protocol):
    """An entry of a listing: a video, with what is known of it."""

    path: str


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

    def __init__(self, samples: Sequence[Listed], max_share: float) -> None:
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
            shown = some([self.samples[index].path for index in indices])
            warnings.warn(f"{len(indices)} of the {len(self.samples)} {split} videos do not exist: {shown}.")

    def report(self, index: int, error: DecodeError, consequence: str) -> None:
        """Notes a broken video, with one warning per video."""
        if not self.flags[index]:
            self.flags[index] = 1
            warnings.warn(f"{error} ({consequence})", stacklevel=2)

    def read_or_replace(self, draw: Draw, read: Callable[[int], T]) -> T | None:
        """`read(draw.index)` or, where that video is broken, `read` of another one drawn at random; None where too many
        are broken.

        Substitutes are tried in an order of their own and each starts with fresh random numbers: the result does not
        depend on which broken videos have been met before.
        """
        order = torch.Generator().manual_seed(draw.seed)
        index = draw.index
        while not self.exceeded:
            if not self.flags[index]:
                try:
                    with seeded(draw.seed):
                        return read(index)
                except DecodeError as error:
                    self.report(index, error, "replaced by another video")
            index = int(torch.randint(len(self.samples), (), generator=order))
        return None

    def check(self) -> None:
        """Raises `DataError` with counts and the first culprits where too many videos are broken."""
        if not self.exceeded:
            return
        broken = self.flags.nonzero().flatten().tolist()
        shown = some([self.samples[index].path for index in broken])
        raise DataError(
            f"{len(broken)} of {len(self.samples)} videos cannot be read, more than max_unreadable allows "
            f"({int(self.max_count)}): {shown}; mend or remove them, or raise max_unreadable."
        )


def _warn_of_leaks(listings: dict[str, Sequence[Listed]]) -> None:
    """Warns of training videos that are also evaluated."""
    trained = {sample.path for sample in listings.get("train", ())}
    for split, samples in listings.items():
        leaks = list(dict.fromkeys(sample.path for sample in samples if sample.path in trained))
        if split != "train" and leaks:
            warnings.warn(f"{len(leaks)} of the {len(samples)} {split} videos are trained on too: {some(leaks)}.")


def some(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class ClipDataModule(L.LightningDataModule, ABC):
    """Abstract base of DataModules of videos. A subclass has `listing`, `check_listings` and `make_dataset`.

    Clip arguments that are None are taken from the attached model's `preprocessing`.

    Args:
        num_frames: frames of a clip.
        image_size: side in pixels of the square that the model sees.
        short_side: length in pixels of the shorter side before evaluation crops.
        sampling: "sparse", "dense" or "ssv2", see `datamodules.sampling`.
        frame_stride: distance of frames where sampling is "dense".
        interpolation: "bilinear" or "bicubic", see `datamodules.transforms`.
        batch_size: items per training and evaluation batch, per process.
        eval_batch_size: items per validation, test and prediction batch; None is `batch_size`.
        num_workers: loader processes; 0 reads in the main one.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None is the system's default.
        drop_incomplete_step: leave out the batches at the end of an epoch that do not fill an optimiser step where
            gradients are accumulated, as the official video training does; Lightning makes a smaller step of them.
        max_unreadable: share of a split's videos that may be unreadable (missing, cut off, damaged) before the run
            stops; a single one is always forgiven, unless the share is 0. Each process counts what it has met.
        check_files: list the folders before the run to find missing files; a store that cannot list (plain http) needs
            False.
    """

    collate = staticmethod(default_collate)
    """Makes a batch of items."""

    repeats_in_sampler = 1
    """How often a training item is drawn, see `datamodules.loading.TrainSampler`."""

    def __init__(
        self,
        *,
        num_frames: int | None = None,
        image_size: int | None = None,
        short_side: int | None = None,
        sampling: str | None = None,
        frame_stride: int | None = None,
        interpolation: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 4,
        multiprocessing_context: str | None = None,
        drop_incomplete_step: bool = False,
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
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise DataError(f"batch_size {batch_size} and eval_batch_size {eval_batch_size} have to be at least 1.")
        if not 0 <= max_unreadable <= 1:
            raise DataError(f"max_unreadable is {max_unreadable}; it is a share between 0 and 1.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.multiprocessing_context = num_workers, multiprocessing_context
        self.drop_incomplete_step = drop_incomplete_step
        self.max_unreadable, self.check_files = max_unreadable, check_files
        self.folders = Folders()
        self.datasets: dict[str, Dataset] = {}
        self._train_loader: ClipLoader | None = None
        self._loader_state: dict | None = None

    @abstractmethod
    def listing(self, split: str) -> list:
        """The videos of "train", "val" or "test", in a fixed order; raises `DataError` where that fails."""

    @abstractmethod
    def check_listings(self, listings: dict[str, list]) -> None:
        """Raises `DataError` for mistakes in the listings of the splits asked for, and warns of what looks odd."""

    @abstractmethod
    def make_dataset(self, split: str, samples: list, clip: ClipFormat) -> Dataset:
        """Items of a split; its `tally` is an `UnreadableTally` over `samples`."""

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
            self.check_listings(listings)
            _warn_of_leaks(listings)
            for split, samples in listings.items():
                dataset = self.datasets[split] = self.make_dataset(split, samples, clip)
                if self.check_files:
                    missing = [i for i, sample in enumerate(samples) if not self.folders.has(sample.path)]
                    dataset.tally.report_missing(missing, split)
                    dataset.tally.check()

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        options = {
            "dataset": self.datasets[split],
            "batch_size": batch_size,
            "collate_fn": self.collate,
            "num_workers": self.num_workers,
            "multiprocessing_context": self.multiprocessing_context if self.num_workers else None,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if split != "train":
            return DataLoader(**options)
        sampler = self._train_sampler()
        # Mixing and batch statistics want full batches, but a set smaller than one batch should train too.
        loader = ClipLoader(**options, sampler=sampler, drop_last=len(sampler) >= batch_size)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        self._train_loader, self._loader_state = loader, None
        return loader

    def state_dict(self) -> dict:
        """Where the training epoch stands. Lightning keeps this too, but does not give it back to a loader that was
        made before the checkpoint was read, which is what asking for the number of steps does."""
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Makes the next training loader go on where that one stood."""
        self._loader_state = state_dict.get("train_loader")

    def _train_sampler(self) -> TrainSampler:
        trainer = self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        accumulated = trainer.accumulate_grad_batches if trainer and self.drop_incomplete_step else 1
        return TrainSampler(
            self.datasets["train"],
            self.repeats_in_sampler,
            num_replicas=world_size,
            rank=rank,
            # Set by Lightning's seed_everything; without it several processes still have to agree.
            seed=int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed() % 2**32 if world_size == 1 else 0)),
            multiple=self.batch_size * accumulated if accumulated > 1 else 1,
        )

    def train_dataloader(self) -> DataLoader:
        """Random clips, shuffled; in a loop of your own call `loader.sampler.set_epoch`, as Lightning does."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """The videos in the order of the listing."""
        return self._loader("val", self.eval_batch_size or self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """The videos in the order of the listing."""
        return self._loader("test", self.eval_batch_size or self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        """The same as for testing."""
        return self.test_dataloader()

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Stops the run, from the main process, where too many videos turned out to be unreadable."""
        for dataset in self.datasets.values():
            dataset.tally.check()
        return batch
