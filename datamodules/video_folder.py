"""Videos in one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from datamodules.base import Sample, VideoDataModule
from datamodules.errors import DataError
from datamodules.files import join, resolve

__all__ = ["VIDEO_SUFFIXES", "VideoFolder"]

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
                  ".ts", ".webm", ".wmv")  # fmt: skip


class VideoFolder(VideoDataModule):
    """A folder per class; the folder's name is the class's, and sorted names are numbered from 0.

    Either of these, where `test` may be missing (then `val` is tested on) and all splits have the same class folders:

        root/train/<class>/*.mp4         root/<class>/*.mp4
        root/val/<class>/*.mp4           a seeded `val_fraction` of each class is set aside for
        root/test/<class>/*.mp4          validation and testing

    Hidden files and those without one of `VIDEO_SUFFIXES` are passed over.

    Args:
        root: the folder; a path or a URL.
        val_fraction: share of each class set aside where the folder has no splits, in (0, 1).
        split_seed: seed of that choice.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: the folder is missing, has no classes or no videos, or splits differ in their classes.
    """

    def __init__(self, root: str | Path, *, val_fraction: float = 0.2, split_seed: int = 0, **common: Any) -> None:
        super().__init__(**common)
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction is {val_fraction}; it is a share between 0 and 1, both excluded.")
        self.root = resolve(root)
        self.val_fraction, self.split_seed = val_fraction, split_seed

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the class folders, sorted."""
        folder = join(self.root, "train") if self._has_splits else self.root
        names = self.folders.subfolders(folder)
        if not names:
            raise DataError(
                f"{folder} has no class folders; put the videos of each class into a folder named after it."
            )
        return names

    @property
    def _has_splits(self) -> bool:
        if not self.folders.is_folder(self.root):
            raise DataError(f"{self.root} is not a folder; check data.root.")
        return self.folders.is_folder(join(self.root, "train"))

    def listing(self, split: str) -> list[Sample]:
        if not self._has_splits:
            folder = self.root
            files = [self._share(self._videos(join(folder, name)), split) for name in self.class_names]
        else:
            folder = self._split_folder(split)
            files = [self._videos(join(folder, name)) for name in self.class_names]
        samples = [Sample(path, label) for label, paths in enumerate(files) for path in paths]
        if not samples:
            raise DataError(
                f"{folder} has no videos for {split}: its class folders hold no file ending in "
                f"{', '.join(VIDEO_SUFFIXES)}; add some or check data.root."
            )
        return samples

    def _split_folder(self, split: str) -> str:
        folder = join(self.root, split)
        if split == "test" and not self.folders.is_folder(folder):
            folder = join(self.root, "val")
        if not self.folders.is_folder(folder):
            raise DataError(
                f"{folder} is missing beside {join(self.root, 'train')}; add it, or put the class folders right under "
                f"{self.root} to have {self.val_fraction:.0%} of the videos set aside."
            )
        names, expected = set(self.folders.subfolders(folder)), set(self.class_names)
        if names != expected:
            sides = (("lacks", expected - names), ("has the additional", names - expected))
            difference = " and ".join(f"{verb} {', '.join(sorted(some))}" for verb, some in sides if some)
            raise DataError(
                f"{folder} {difference}, compared with the class folders of {join(self.root, 'train')}; "
                "rename, remove or add (empty) folders until they agree."
            )
        return folder

    def _share(self, videos: list[str], split: str) -> list[str]:
        """The train or val part of one class; a class of two or more videos has at least one in each."""
        generator = torch.Generator().manual_seed(self.split_seed)
        order = torch.randperm(len(videos), generator=generator).tolist()
        num_val = min(max(round(self.val_fraction * len(videos)), 1), len(videos) - 1)
        chosen = order[num_val:] if split == "train" else order[:num_val]
        return [videos[i] for i in sorted(chosen)]

    def _videos(self, folder: str) -> list[str]:
        return [join(folder, name) for name in self.folders.files(folder, VIDEO_SUFFIXES)]
