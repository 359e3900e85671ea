"""COIN: instructional videos of 180 tasks, some minutes each; one label for a whole video."""

from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.captions import read_json, values_of
from datamodules.annotations.lists import find_list, read_numbered
from datamodules.annotations.locate import locate_videos
from datamodules.base import Sample, VideoDataModule
from datamodules.checks import MAX_CLASSES, Count, check
from datamodules.errors import DataError
from datamodules.storage.files import first_file, join, resolve

__all__ = ["COIN"]

_SOURCE = "https://github.com/coin-dataset/annotations"
_SUBSETS = {"training": "train", "testing": "test", "validation": "test"}
"""Subsets of COIN.json; its description says validation where the file says testing."""


class COIN(VideoDataModule):
    """COIN: annotations and videos as the official script leaves them, or lists.

    | file | where |
    |---|---|
    | COIN.json | root or root/annotations |
    | lists {train,val,test}.csv, taken where there are some | root |
    | <YouTube id>.mp4, or another suffix | root/videos, or without it root; up to three folders deep, such as |
    |  | videos/<task>/<id>.mp4 |

        COIN.json    {"database": {"LtRSn-ntcLY": {"class": "ReplaceCDDriveWithSSD", "recipe_type": 131,
                                                   "subset": "training", ...}, ...}}
        train.csv    131/LtRSn-ntcLY.mp4,131         path and number, VideoMamba's

    Labels are the recipe_type, the class names those of COIN.json. A label belongs to the whole file, not to the part
    between start and end (docs/protocol.md, section 10).
    Validation and testing have the same videos.

    Args:
        root: folder of annotations and videos, a path or a URL.
        num_classes: 180, or less for a part.
        annotations: the JSON file.
        videos: folder of the videos; None looks where the class says.
        train: list of training videos.
        val: list of validation videos.
        test: list of test videos.
        delimiter: of lists; None finds it out.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: annotations or all videos are missing, or an entry is invalid.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int = 180,
        annotations: str = "COIN.json",
        videos: str | None = None,
        train: str = "train.csv",
        val: str = "val.csv",
        test: str = "test.csv",
        delimiter: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = resolve(root)
        check(num_classes=(num_classes, Count(1, MAX_CLASSES)))
        self.num_classes = num_classes
        self.annotations = annotations
        self.videos = videos
        self.lists = {"train": train, "val": val, "test": test}
        self.delimiter = delimiter

    def list_classes(self) -> list[str] | None:
        """Tasks in the order of their recipe_type; None for lists without COIN.json."""
        path = self._annotations
        if path is None:
            return None
        names: dict[int, str] = {}
        for video, (name, number, _) in self._entries.items():
            if names.setdefault(number, name) != name:
                raise DataError(
                    f"{path} calls recipe_type {number} {names[number]!r}, and {name!r} for the video {video}; "
                    f"download it again from {_SOURCE}."
                )
        if sorted(names) != list(range(self.num_classes)):
            raise DataError(
                f"{path} has {len(names)} tasks, numbered {min(names)} to {max(names)}, but num_classes is "
                f"{self.num_classes}; set data.num_classes or take the complete file."
            )
        return [names[number] for number in sorted(names)]

    @property
    def _annotations(self) -> str | None:
        return first_file(self.folders, self.root, (self.annotations, join("annotations", self.annotations)))

    @cached_property
    def _entries(self) -> dict[str, tuple[str, int, str]]:
        """YouTube id -> task, its number and the subset, in the order of COIN.json."""
        path = self._annotations
        assert path is not None  # asked for where it is there
        database = read_json(path, dict, ["database"])["database"]
        if not isinstance(database, dict) or not database:
            raise DataError(f"{path} has no videos under the key database; download it again from {_SOURCE}.")
        kinds = {"class": str, "recipe_type": int, "subset": str}
        return {video: tuple(values_of(entry, kinds, path)) for video, entry in database.items()}

    @override
    def list_videos(self, split: str) -> list[Sample]:
        source = find_list(self.folders, self.root, self.lists, split)
        self.origins[split] = source or self._annotations or ""
        if source is not None:
            return [Sample(*row) for row in read_numbered(source, self.delimiter, self.root)]
        if self.class_names is None:
            raise DataError(
                f"{self.root} has no annotations of COIN: there is neither {self.annotations} (nor in its folder "
                f"annotations) nor the list {self.lists[split]}; check data.root, or get the file from {_SOURCE}."
            )
        kept = "train" if split == "train" else "test"
        labels = {video: number for video, (_, number, subset) in self._entries.items()
                  if _SUBSETS.get(subset) == kept}  # fmt: skip
        if not labels:
            raise DataError(
                f"{self._annotations} has no video for the {split} split: no subset is "
                f"{' or '.join(name for name in _SUBSETS if _SUBSETS[name] == kept)}; download it again."
            )
        paths = locate_videos(
            self.folders, self.root, list(labels), videos=self.videos, search=self.check_files,
            what=f"{split} videos of COIN", source=_SOURCE,
        )  # fmt: skip
        return [Sample(path, label) for path, label in zip(paths, labels.values(), strict=True)]
