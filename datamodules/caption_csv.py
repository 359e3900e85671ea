"""One's own videos and captions, listed in tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.captions import Captions, read_captions
from datamodules.errors import DataError
from datamodules.files import join
from datamodules.files import split as folder_and_name
from datamodules.retrieval import RetrievalDataModule

__all__ = ["CaptionCSV"]

_SPLITS = ("train", "val", "test")


class CaptionCSV(RetrievalDataModule):
    """A table with the columns video and caption, a row for each caption; or the JSON of
    `datamodules.captions.read_captions`:

        video,caption
        kitchen/0001.mp4,a woman cuts an onion
        kitchen/0001.mp4,"onions, cut by hand"

    Either one table for each split (`train`, `val`, `test`), or one for all (`captions`). That is divided by the folder
    in which the paths begin, where each begins with train, val or test; otherwise a seeded `val_fraction` of the videos
    is set aside for validation and testing. A missing test split is that of validation.

    Relative paths start at `videos`, or at the table's own folder where its first video exists only there.

    Args:
        root: folder of the tables where these are not absolute, and of the videos; a path or a URL.
        captions: table of all splits.
        videos: folder of the videos; None is root.
        train: table of training videos.
        val: table of validation videos.
        test: table of test videos; None tests on those of validation.
        val_fraction: share of the videos set aside where one table has no splits, in (0, 1).
        split_seed: seed of that choice.
        common: see `datamodules.retrieval.RetrievalDataModule`.

    Raises:
        DataError: from `setup`: a table is missing or has another form, or a split has no videos.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        captions: str = "captions.csv",
        videos: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(root, videos=videos, train=train, val=val, test=test or val, **common)
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction is {val_fraction}; it is a share between 0 and 1, both excluded.")
        self.table = captions
        self.val_fraction, self.split_seed = val_fraction, split_seed

    def entries(self, split: str) -> list[Captions]:
        path = join(self.root, self.table)
        if any(self.lists.values()):
            given = ", ".join(f"data.{name}" for name, table in self.lists.items() if table)
            raise DataError(f"{given} set, but not data.{split}; give a table for each split, or {path} for all alone.")
        entries = read_captions(path)
        folders = {entry.name.split("/")[0] for entry in entries}
        if folders <= set(_SPLITS):
            begin = split if split in folders else "val"
            chosen = [entry for entry in entries if entry.name.split("/")[0] == begin]
        else:
            chosen = self._share(entries, split)
        if not chosen:
            raise DataError(f"{path} has no videos for {split}; add some, or give a table for each split.")
        return chosen

    def _share(self, entries: list[Captions], split: str) -> list[Captions]:
        generator = torch.Generator().manual_seed(self.split_seed)
        order = torch.randperm(len(entries), generator=generator).tolist()
        num_val = min(max(round(self.val_fraction * len(entries)), 1), len(entries) - 1)
        return [entries[i] for i in sorted(order[num_val:] if split == "train" else order[:num_val])]

    def locate(self, entries: Sequence[Captions], split: str) -> list[str]:
        base = join(self.root, self.videos or "")
        beside, _ = folder_and_name(join(self.root, self.lists[split] or self.table))
        first = entries[0].name
        if self.check_files and not self.folders.has(join(base, first)) and self.folders.has(join(beside, first)):
            base = beside
        return [join(base, entry.name) for entry in entries]
