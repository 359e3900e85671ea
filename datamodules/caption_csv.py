"""Your own videos and captions in tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.captions import Captions, read_captions
from datamodules.errors import DataError
from datamodules.retrieval import RetrievalDataModule
from datamodules.splitting import check_split, set_aside
from datamodules.storage.files import join
from datamodules.storage.files import split as folder_and_name

__all__ = ["CaptionCSV"]

_SPLITS = ("train", "val", "test")


class CaptionCSV(RetrievalDataModule):
    """Captioned videos of your own: a table with the columns video and caption, a row for each caption.

    Or the JSON of `datamodules.annotations.captions.read_captions`.

        video,caption
        kitchen/0001.mp4,a woman cuts an onion
        kitchen/0001.mp4,"onions, cut by hand"

    | given | train | val | test |
    |---|---|---|---|
    | `train`, `val`, `test` | the table | the table | the table, or as val |
    | `captions`, each path below train/, val/ or test/ | train/ | val/ | test/, or as val |
    | `captions` otherwise | the rest | a seeded `val_fraction` of the videos | as val |

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
        check_split(val_fraction, split_seed)
        self.table = captions
        self.val_fraction, self.split_seed = val_fraction, split_seed

    @override
    def entries(self, split: str) -> list[Captions]:
        path = join(self.root, self.table)
        if any(self.lists.values()):
            given = ", ".join(f"data.{name}" for name, table in self.lists.items() if table)
            raise DataError(f"{given} set, but not data.{split}; give a table for each split, or {path} for all alone.")
        entries = read_captions(path)
        folders = {entry.name.split("/")[0] for entry in entries}
        if folders <= set(_SPLITS):
            begin = split if split == "train" or split in folders else "val"
            self.origins[split] = f"{begin}/... of {path}"
            chosen = [entry for entry in entries if entry.name.split("/")[0] == begin]
        else:
            held = set_aside([0] * len(entries), self.val_fraction, self.split_seed)
            share = f"{self.val_fraction:.0%} of {path}, seed {self.split_seed}"
            self.origins[split] = f"the rest of {path}" if split == "train" else share
            chosen = [entry for entry, kept in zip(entries, held, strict=True) if kept == (split != "train")]
        if not chosen:
            raise DataError(f"{path} has no videos for {split}; add some, or give a table for each split.")
        return chosen

    @override
    def locate(self, entries: Sequence[Captions], split: str) -> list[str]:
        base = join(self.root, self.videos or "")
        beside, _ = folder_and_name(join(self.root, self.lists[split] or self.table))
        first = entries[0].name
        if self.check_files and not self.folders.has(join(base, first)) and self.folders.has(join(beside, first)):
            base = beside
        return [join(base, entry.name) for entry in entries]
