"""ImageNet-1K as videos of one frame, for the image model."""

from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.lists import read_numbered
from datamodules.base import Sample, VideoDataModule
from datamodules.checks import MAX_CLASSES, Count, check
from datamodules.errors import DataError
from datamodules.storage.files import first_file, join, resolve
from datamodules.video.suffixes import IMAGE_SUFFIXES

__all__ = ["ImageNet"]

_SOURCE = "https://image-net.org/download.php"


class ImageNet(VideoDataModule):
    """ImageNet: pictures as the usual downloads leave them.

    A split may have either form, and testing takes val:

    | root has | what is read |
    |---|---|
    | {train,val}/<wnid>/*.JPEG | a folder per class; sorted wnids are numbered from 0 |
    | {train,val}.txt or meta/{train,val}.txt | rows "n01440764/n01440764_10026.JPEG 0"; paths start at root/train or |
    |  | root/val, whose files may lie flat |
    | val/ILSVRC2012_val_*.JPEG alone | nothing, since their classes are not known: such a list is needed |

    In training, a picture is cropped and flipped before RandAugment, as in the published image recipes.

    Args:
        root: the folder, a path or a URL.
        num_classes: 1000, or less for a part.
        repeats: how often a picture is augmented in a step; the published recipes of S, M and B have 3.
        repeat_mode: see `datamodules.base.VideoDataModule`; the published recipes have "sampler".
        num_clips: a picture has only one.
        num_crops: 1 tests on the middle of the picture.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: neither folders nor lists, or another number of classes.
    """

    augment_after_crop = True

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int = 1000,
        repeats: int = 1,
        repeat_mode: str = "sampler",
        num_clips: int = 1,
        num_crops: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(repeats=repeats, repeat_mode=repeat_mode, num_clips=num_clips, num_crops=num_crops, **common)
        self.root = resolve(root)
        check(num_classes=(num_classes, Count(1, MAX_CLASSES)))
        self.num_classes = num_classes

    def list_classes(self) -> list[str] | None:
        """English names of the 1000 classes; for fewer classes the wnids, or None without class folders."""
        wnids = self._wnids
        if self.num_classes != 1000:
            return wnids or None
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.DEFAULT.meta["categories"])  # in the order of the sorted wnids

    @cached_property
    def _wnids(self) -> list[str]:
        """The class folders, sorted; empty where pictures lie flat."""
        for folder in (join(self.root, "train"), join(self.root, "val")):
            names = self.folders.subfolders(folder)
            if names:
                self.expect_classes(len(names), folder, "class folders")
                return names
        return []

    @override
    def list_videos(self, split: str) -> list[Sample]:
        split = "val" if split == "test" else split
        folder = join(self.root, split)
        source = first_file(self.folders, self.root, (f"{split}.txt", f"meta/{split}.txt"))
        self.origins[split] = source or folder
        if source is not None:
            return [Sample(*row) for row in read_numbered(source, " ", folder)]
        if self.folders.subfolders(folder):
            return self._from_folders(folder)
        flat = self.folders.files(folder, IMAGE_SUFFIXES)
        if flat:
            raise DataError(
                f"{folder} has {len(flat)} pictures without a folder per class, and no list says which class they "
                f"have; write {join(self.root, 'meta', split)}.txt with a row such as '{flat[0]} 0' for each, or "
                "move each picture into the folder of its class."
            )
        raise DataError(
            f"{self.root} has no ImageNet {split} split: there is neither a folder {folder} with a folder per class "
            f"nor a list {split}.txt or meta/{split}.txt; check data.root, or get the data from {_SOURCE}."
        )

    def _from_folders(self, folder: str) -> list[Sample]:
        number_of = {wnid: label for label, wnid in enumerate(self._wnids)}
        samples = []
        for wnid in self.folders.subfolders(folder):
            if wnid not in number_of:
                raise DataError(f"{join(folder, wnid)} is not a class of {join(self.root, 'train')}; remove it.")
            names = self.folders.files(join(folder, wnid), IMAGE_SUFFIXES)
            samples += [Sample(join(folder, wnid, name), number_of[wnid]) for name in names]
        if not samples:
            raise DataError(f"{folder} has class folders but no pictures in them; check data.root.")
        return samples
