"""Base of the DataModules of EPIC-KITCHENS-100: where annotations and videos are found, and the tables of classes."""

import warnings
from abc import ABC
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from datamodules.annotations.epic_kitchens import SOURCE, number_of, read_table
from datamodules.annotations.locate import find_videos
from datamodules.clips import ClipDataModule, Entry, Items
from datamodules.errors import DataError, some
from datamodules.storage.files import first_file, join, resolve

__all__ = ["KitchenDataModule"]

_FOLDERS = ("", "annotations", "epic-kitchens-100-annotations")
# Not EPIC_100_noun_classes_v2.csv, which has 305 nouns: the challenge and the lists have the 300 of this one.
_NAMES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}


class KitchenDataModule(ClipDataModule[Entry, Items], ABC, Generic[Entry, Items]):
    """Abstract base of DataModules of EPIC-KITCHENS-100.

    Args:
        root: folder of the videos and annotations, a path or a URL.
        annotations: folder of the CSV files; None looks in root, root/annotations and
            root/epic-kitchens-100-annotations.
        videos: folder in which videos are searched; None is root.
        common: see `datamodules.clips.ClipDataModule`.
    """

    def __init__(
        self, root: str | Path, *, annotations: str | None = None, videos: str | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.root = resolve(root)
        self._annotations, self._videos = annotations, videos

    @cached_property
    def verb_names(self) -> list[str]:
        """In the order of the classes."""
        return self._class_keys("verb")

    @cached_property
    def noun_names(self) -> list[str]:
        """In the order of the classes."""
        return self._class_keys("noun")

    def refuse_strays(self, split: str, segments: Sequence[Any]) -> None:
        """Raise `DataError` for a `verb` or `nouns` that the tables do not have; -1 is one that is not known."""
        verbs, nouns = len(self.verb_names), len(self.noun_names)
        strays = [
            f"{s.narration_id} (verb {s.verb}, noun {s.nouns[0] if s.nouns else -1})"
            for s in segments
            if s.verb >= verbs or any(noun >= nouns for noun in s.nouns)
        ]
        if strays:
            raise DataError(
                f"{len(strays)} of the {len(segments)} {split} segments have classes outside the tables of {verbs} "
                f"verbs and {nouns} nouns: {some(strays)}; take lists and tables of the same release."
            )

    def find(self, name: str) -> str | None:
        """Path of an annotation file; None without one."""
        folders = _FOLDERS if self._annotations is None else (self._annotations,)
        return first_file(self.folders, self.root, [join(folder, name) for folder in folders])

    def annotation(self, name: str) -> str:
        """Path of an annotation file that is needed; raise `DataError` without one."""
        found = self.find(name)
        if found is None:
            where = join(self.root, self._annotations or "annotations")
            raise DataError(
                f"There is no {name} in {where}; name the folder with data.annotations, or get the annotations from "
                f"{SOURCE}."
            )
        return found

    def locate(self, participant_of: dict[str, str], split: str) -> dict[str, str]:
        """video_id -> path of the video, tar or folder of frames; of those that are nowhere, where they would be.

        Raises:
            DataError: all of them are missing.
        """
        top = self.root if self._videos is None else join(self.root, self._videos)
        expected = {name: join(top, person, "videos", f"{name}.MP4") for name, person in participant_of.items()}
        if not self.check_files:
            return expected
        found = find_videos(self.folders, top, {*participant_of, *(f"{name}.tar" for name in participant_of)})
        where: dict[str, str | None] = {}
        for name in participant_of:
            paths = [*found.get(name, []), *found.get(f"{name}.tar", [])]
            where[name] = next((path for path in paths if "flow_frames" not in path), None)
        if not any(where.values()):
            raise DataError(
                f"None of the {len(where)} {split} videos is below {top} ({some(list(expected.values()))}); name their "
                "folder with data.videos."
            )
        lost = [name for name, path in where.items() if path is None]
        if lost:
            warnings.warn(f"{len(lost)} of the {len(where)} {split} videos are not below {top}: {some(lost)}.")
        return {name: path or expected[name] for name, path in where.items()}

    def _class_keys(self, kind: str) -> list[str]:
        path = self.annotation(_NAMES[kind])
        keys = {number_of(path, row, "id"): row["key"] for row in read_table(path, ("id", "key"))}
        if sorted(keys) != list(range(len(keys))):
            raise DataError(f"{path} does not number its classes from 0 on; take the file of the official release.")
        return [keys[number] for number in range(len(keys))]
