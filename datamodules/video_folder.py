"""Videos in one folder per class."""

from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.base import Sample, VideoDataModule
from datamodules.errors import DataError
from datamodules.splitting import check_groups, check_split, group_pattern, groups_of, origin_of, set_aside
from datamodules.storage.files import join, resolve
from datamodules.video.suffixes import VIDEO_SUFFIXES

__all__ = ["VideoFolder"]


class VideoFolder(VideoDataModule):
    r"""A folder per class; the folder's name is the class's, and sorted names are numbered from 0.

    | root has | train | val | test |
    |---|---|---|---|
    | train/<class>/, val/<class>/, test/<class>/ | train | val | test |
    | train/<class>/, val/<class>/ | train | val | val |
    | <class>/ | the rest | a seeded `val_fraction` of each class | as val |

    All splits have the same class folders. Hidden files and those without one of `VIDEO_SUFFIXES` are skipped.

    Pieces of one film, or views of one person, look alike: with some of them in training and others in validation, the
    score is too good. `group` finds what belongs together in a file's path below its split (or root):

        running/film12_003.mp4        group: '([^/]+)_\\d+\\.mp4$'    film12, whatever its class

    All files of a group are then set aside, or none; with splits, a group on both sides is an error.

    Args:
        root: the folder; a path or a URL.
        val_fraction: share of each class set aside where the folder has no splits, in (0, 1).
        split_seed: seed of that choice.
        group: regular expression with a capture group that finds the group of a video in its path,
            "<class>/<file>"; None: every video is its own group.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: `group` is not such an expression; from `setup`: the folder is missing, has no classes or no videos,
            splits differ in their classes, or `group` does not fit each video.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        group: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_split(val_fraction, split_seed)
        self.root = resolve(root)
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self._group = group_pattern(group)

    def list_classes(self) -> list[str]:
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

    @override
    def list_videos(self, split: str) -> list[Sample]:
        if not self._has_splits:
            return self._set_aside(split)
        folder = self.origins[split] = self._split_folder(split)
        samples = self._samples(folder, split)
        if self._group is not None and split != "train":
            train = join(self.root, "train")
            trained = self._groups(self._samples(train, "train"), train)
            check_groups(trained, self._groups(samples, folder), f"{train} and {folder}")
        return samples

    def _samples(self, folder: str, split: str) -> list[Sample]:
        """All videos of the class folders."""
        samples = []
        for label, name in enumerate(self.class_names or ()):
            files = self.folders.files(join(folder, name), VIDEO_SUFFIXES)
            samples += [Sample(join(folder, name, file), label) for file in files]
        if not samples:
            raise DataError(
                f"{folder} has no videos for {split}: its class folders hold no file ending in "
                f"{', '.join(VIDEO_SUFFIXES)}; add some or check data.root."
            )
        return samples

    def _set_aside(self, split: str) -> list[Sample]:
        """The train or val part of a folder without splits."""
        samples = self._samples(self.root, split)
        groups = None if self._group is None else self._groups(samples, self.root)
        chosen = set_aside([sample.label for sample in samples], self.val_fraction, self.split_seed, groups)
        in_groups = self._group is not None
        self.origins[split] = origin_of(split, self.root, self.val_fraction, self.split_seed, in_groups)
        if not any(chosen):
            raise DataError(
                f"No class of {self.root} has a second video to set aside for validation; add videos, or put them into "
                "train/<class>/ and val/<class>/."
            )
        return [sample for sample, held in zip(samples, chosen, strict=True) if held == (split != "train")]

    def _groups(self, samples: list[Sample], folder: str) -> list[str]:
        assert self._group is not None
        return groups_of([sample.path.removeprefix(folder).lstrip("/") for sample in samples], self._group)

    def _split_folder(self, split: str) -> str:
        folder = join(self.root, split)
        if split == "test" and not self.folders.is_folder(folder):
            folder = join(self.root, "val")
        if not self.folders.is_folder(folder):
            raise DataError(
                f"{folder} is missing beside {join(self.root, 'train')}; add it, or put the class folders right under "
                f"{self.root} to have {self.val_fraction:.0%} of the videos set aside."
            )
        names, expected = set(self.folders.subfolders(folder)), set(self.class_names or ())
        if names != expected:
            sides = (("lacks", expected - names), ("has the additional", names - expected))
            difference = " and ".join(f"{verb} {', '.join(sorted(some))}" for verb, some in sides if some)
            raise DataError(
                f"{folder} {difference}, compared with the class folders of {join(self.root, 'train')}; "
                "rename, remove or add (empty) folders until they agree."
            )
        return folder
