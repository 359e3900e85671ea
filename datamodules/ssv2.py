"""Something-Something V2: short clips in which hands do something with something."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.captions import read_json
from datamodules.annotations.lists import is_number, read_numbered
from datamodules.base import Sample, VideoDataModule
from datamodules.checks import MAX_CLASSES, Count, check
from datamodules.errors import DataError, some
from datamodules.storage.files import first_file, join, resolve
from datamodules.video.suffixes import VIDEO_SUFFIXES

__all__ = ["SomethingSomethingV2"]

_SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
_LISTS = {
    "train": ("train.json", "something-something-v2-train.json", "train.csv", "train.txt"),
    "val": ("validation.json", "something-something-v2-validation.json", "val.json", "val.csv", "val.txt"),
}
_LABELS = ("labels.json", "something-something-v2-labels.json")
_FOLDERS = ("", "videos", "20bn-something-something-v2", "frames")


class SomethingSomethingV2(VideoDataModule):
    """Something-Something V2: annotations and videos as the usual downloads leave them.

    | file | where |
    |---|---|
    | train.json, validation.json, labels.json | root or root/labels |
    | something-something-v2-{train,validation,labels}.json, the names of the first release | root or root/labels |
    | lists train.csv, val.csv, or .txt | root or root/labels |
    | <id>.webm or <id>.mp4, or folders of frames | root, root/videos, root/20bn-something-something-v2, root/frames |

    What a list is, is seen in its first row:

        train.json, validation.json    [{"id": "78687", "template": "Holding [something] next to [something]", ...}]
        labels.json                    {"Holding something next to something": "19", ...}
        train.csv, val.csv             78687.webm 19       path and number
                                       78687 48 19         folder of frames img_00001.jpg, how many, ..., number

    Names of the classes come from labels.json; beside lists it may be missing. The labels of the test split are not
    public, so testing takes validation.

    Args:
        root: folder of annotations and videos, a path or a URL.
        num_classes: 174, or less for a part.
        train: training annotations; None looks for the names above.
        val: validation annotations; None looks for the names above.
        test: test annotations; None is those of validation.
        labels: numbers of the classes; None looks for the names above.
        videos: folder of the videos; None looks where the files are.
        delimiter: of lists; None finds it out.
        horizontal_flip: left and right are classes, so 0.
        sampling: see `datamodules.video.sampling`; None is the model's.
        common: see `datamodules.base.VideoDataModule`.

    Raises:
        DataError: from `setup`: annotations are missing, or have entries that cannot be understood.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int = 174,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        labels: str | None = None,
        videos: str | None = None,
        delimiter: str | None = None,
        horizontal_flip: float = 0.0,
        sampling: str | None = "ssv2",
        **common: Any,
    ) -> None:
        super().__init__(horizontal_flip=horizontal_flip, sampling=sampling, **common)
        self.root = resolve(root)
        self.lists = {"train": train, "val": val, "test": test}
        self.labels = _LABELS if labels is None else (labels,)
        self.videos = videos
        self.delimiter = delimiter
        check(num_classes=(num_classes, Count(1, MAX_CLASSES)))
        self.num_classes = num_classes

    def list_classes(self) -> list[str] | None:
        """Templates without brackets, in the order of the labels; None for lists without labels.json."""
        path = self._find(*self.labels)
        if path is None:
            return None
        names = _names(path)
        self.expect_classes(len(names), path)
        return names

    @override
    def list_videos(self, split: str) -> list[Sample]:
        source = self.origins[split] = self._source(split)
        if source.endswith(".json"):
            return self._from_annotations(source)
        return self._from_list(source)

    def _find(self, *names: str) -> str | None:
        return first_file(self.folders, self.root, [*names, *(join("labels", name) for name in names)])

    def _source(self, split: str) -> str:
        if split == "test" and self.lists["test"] is None:
            split = "val"
        own = self.lists[split]
        names = _LISTS[split] if own is None else (own,)
        found = self._find(*names)
        if found is None:
            raise DataError(
                f"{self.root} lacks the {split} annotations of Something-Something V2: neither it nor its folder "
                f"labels has {' or '.join(names)}; check data.root, name the file with data.{split}, or get it from "
                f"{_SOURCE}."
            )
        return found

    def _from_annotations(self, source: str) -> list[Sample]:
        entries = read_json(source, list)
        if self.class_names is None:
            raise DataError(
                f"{self.root} has {source} without {self.labels[0]}, which numbers the classes; get it from "
                f"{_SOURCE} or name it with data.labels."
            )
        number_of = {name: label for label, name in enumerate(self.class_names)}
        labels, strange = [], []
        for entry in entries:
            template = entry.get("template") if isinstance(entry, dict) else None
            if not isinstance(template, str) or not template or "id" not in entry:
                raise DataError(
                    f"{source} has an entry without id or template, as the test list, whose labels are not public: "
                    f"{json.dumps(entry)[:80]}; take the validation list, or download it again."
                )
            name = template.replace("[", "").replace("]", "")
            labels.append(number_of.get(name, -1))
            if name not in number_of:
                strange.append(f"{template!r} of video {entry['id']}")
        if strange:
            raise DataError(
                f"{len(strange)} of the {len(entries)} entries of {source} have a template that {self.labels[0]} "
                f"lacks: {some(strange)}; take both files from the same release."
            )
        paths = self._paths([str(entry["id"]) for entry in entries], suffix=".webm")
        return [Sample(path, label) for path, label in zip(paths, labels, strict=True)]

    def _from_list(self, source: str) -> list[Sample]:
        listed = read_numbered(source, self.delimiter, "")
        names, labels = [name for name, _ in listed], [label for _, label in listed]
        fields = _fields(names[0])
        if len(fields) > 1 and is_number(fields[1]) and not fields[-1].lower().endswith(VIDEO_SUFFIXES):
            names = [_fields(name)[0] for name in names]  # folder, number of frames, ...
        return [Sample(*sample) for sample in zip(self._paths(names), labels, strict=True)]

    def _paths(self, names: Sequence[str], suffix: str = "") -> list[str]:
        """Locate the videos, given as ids, file names, folders or paths; `suffix` is that of missing ones."""
        folders = _FOLDERS if self.videos is None else (self.videos,)
        best: list[str] = []
        most = -1
        for folder in folders:
            folder = join(self.root, folder)
            entries = self.folders.entries(folder)
            file_of = {os.path.splitext(name)[0]: name for name in entries if name.lower().endswith(VIDEO_SUFFIXES)}
            found = [name if name in entries else file_of.get(name) for name in names]
            count = sum(name is not None for name in found) or self.folders.has(join(folder, names[0]))
            if count > most:
                best = [join(folder, name or given + suffix) for name, given in zip(found, names, strict=True)]
                most = count
        return best


def _fields(text: str) -> list[str]:
    return re.split(r"[,\s]+", text)


def _names(path: str) -> list[str]:
    """Class names in order, from labels.json: {template without brackets: index as a string}."""
    numbers = read_json(path, dict)
    try:
        names = {int(number): name for name, number in numbers.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not an object of templates and numbers; get it from {_SOURCE}.") from error
    if sorted(names) != list(range(len(numbers))):
        raise DataError(f"{path} does not number its {len(numbers)} classes from 0 on; get it from {_SOURCE}.")
    return [names[number] for number in sorted(names)]
