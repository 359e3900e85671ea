"""ActivityNet Captions: web videos of about two minutes, told from beginning to end."""

import math
import warnings

from typing_extensions import override

from datamodules.annotations.captions import Captions, are_texts, captions_of, read_json, values_of
from datamodules.errors import DataError, some
from datamodules.retrieval import RetrievalDataModule

__all__ = ["ActivityNet"]

_MAX_SECONDS = 1e9
_FILES = {"train": ("train.json", "train_ids.json"), "val": ("val_1.json", "val_ids.json")}


class ActivityNet(RetrievalDataModule):
    """ActivityNet Captions: the official files, as the usual downloads leave them.

    | file | where |
    |---|---|
    | annotations | root or root/annotations |
    | <id>.mp4 with or without its "v_", or another suffix | root/videos, or without it up to three folders below root |

        train.json, val_1.json          {"v_bXdq2zI1Ms0": {"duration": 73.1, "timestamps": [[6.66, 13.16], ...],
                                         "sentences": ["...", ...]}, ...}
        train_ids.json, val_ids.json    ["v_bXdq2zI1Ms0", ...]    the videos that count; without it all do,
                                                                  and those without a caption are left out

    The caption of a video is one paragraph, its sentences, and the whole video counts. The test captions are not
    public: validation and testing both take val_1, as published (docs/protocol.md, section 21).
    """

    title = "ActivityNet Captions"
    source = "https://cs.stanford.edu/people/ranjaykrishna/densevid"
    paragraphs = True

    @override
    def names_of(self, name: str) -> list[str]:
        bare = [other.removeprefix("v_") for other in super().names_of(name)]
        return [*super().names_of(name), *bare, *(f"v_{other}" for other in bare)]

    @override
    def entries(self, split: str) -> list[Captions]:
        data, ids = _FILES["train" if split == "train" else "val"]
        where = self.annotation(data)
        captions, ends = {}, {}
        for name, video in read_json(where, dict).items():
            sentences, seconds = values_of(video, {"sentences": list, "duration": (int, float)}, where)
            if not are_texts(sentences) or not 0 < seconds < _MAX_SECONDS:
                raise DataError(f"{where}: the sentences or the duration of {name} are none; download it again.")
            captions[name], ends[name] = sentences, float(math.ceil(seconds))  # rounded up as published
        source = self.find(ids)
        names = list(captions) if source is None else read_json(source, list)
        if not are_texts(names):
            raise DataError(f"{source} is not a list of ids; download it again.")
        self.origins[split] = source or where
        silent = self.skipped[split] = [name for name in names if name not in captions]
        if silent and len(silent) < len(names):
            warnings.warn(
                f"{len(silent)} of the {len(names)} videos of {source} have no caption in {where} and are left out: "
                f"{some(silent)}."
            )
            names = [name for name in names if name in captions]
        entries = captions_of(names, captions, source or where, where)
        return [entry._replace(span=(0.0, ends[entry.name])) for entry in entries]
