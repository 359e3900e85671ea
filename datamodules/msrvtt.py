"""MSR-VTT: 10,000 web videos of 10 to 30 seconds, each with 20 captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.captions import Captions, captions_of, read_json, read_table, values_of
from datamodules.checks import OneOf, check
from datamodules.errors import DataError
from datamodules.retrieval import RetrievalDataModule

__all__ = ["MSRVTT"]

_SUBSETS = ("9k", "7k", "full")
_OFFICIAL_SPLITS = {"train": "train", "val": "validate", "test": "test"}


class MSRVTT(RetrievalDataModule):
    """MSR-VTT: the official files, as the usual downloads leave them.

    | file | where |
    |---|---|
    | annotations | root, root/annotations or root/msrvtt_data (CLIP4Clip's zip), or where `annotations` says |
    | video<N>.mp4, or another suffix | root/videos, or without it up to three folders below root, such as the |
    |  | MSRVTT/videos/all of the other zip, or where `videos` says |

        MSRVTT_data.json              {"videos": [{"video_id": "video0", "split": "train", ...}, ...],
                                       "sentences": [{"video_id": "video0", "caption": "a man is talking", ...}, ...]}
        MSRVTT_train.9k.csv, .7k.csv  video_id
        MSRVTT_JSFUSION_test.csv      key,vid_key,video_id,sentence

    | subset | training                     | validation              | test                     |
    |--------|------------------------------|-------------------------|--------------------------|
    | 9k     | 9,000 videos, 180,000 pairs  | the test videos         | 1k-A: 1,000 pairs        |
    | 7k     | those of the 7k list         | the test videos         | 1k-A: 1,000 pairs        |
    | full   | split "train" of the JSON    | split "validate"        | split "test", all captions |

    Choosing the epoch on the test videos is how the published 9k numbers were made (docs/protocol.md, section 18).

    Args:
        root: folder of annotations and videos, a path or a URL.
        subset: "9k", "7k" or "full".
        annotations: folder of the official files; None looks in those above.
        common: see `datamodules.retrieval.RetrievalDataModule`.
    """

    title = "MSR-VTT"
    source = "https://github.com/ArrowLuo/CLIP4Clip#data-preparing"

    annotation_folders: Sequence[str] = ("", "annotations", "msrvtt_data")

    def __init__(self, root: str | Path, *, subset: str = "9k", annotations: str | None = None, **common: Any) -> None:
        super().__init__(root, **common)
        check(subset=(subset, OneOf(*_SUBSETS)))
        self.subset = subset
        if annotations is not None:
            self.annotation_folders = (annotations,)

    @override
    def entries(self, split: str) -> list[Captions]:
        if self.subset != "full" and split != "train":
            path = self.origins[split] = self.annotation("MSRVTT_JSFUSION_test.csv")
            return [Captions(row["video_id"], (row["sentence"],)) for row in read_table(path, ("video_id", "sentence"))]
        where = self.annotation("MSRVTT_data.json")
        content = read_json(where, dict, ("videos", "sentences"))
        if not isinstance(content["videos"], list) or not isinstance(content["sentences"], list):
            raise DataError(f"{where} has no lists under the keys videos and sentences; download it again.")
        captions: dict[str, list[str]] = {}
        for sentence in content["sentences"]:
            video, caption = values_of(sentence, {"video_id": str, "caption": str}, where)
            captions.setdefault(video, []).append(caption)
        if self.subset != "full":
            source = self.origins[split] = self.annotation(f"MSRVTT_train.{self.subset}.csv")
            return captions_of([row["video_id"] for row in read_table(source, ("video_id",))], captions, source, where)
        wanted = _OFFICIAL_SPLITS[split]
        self.origins[split] = f"split {wanted} of {where}"
        videos = [values_of(video, {"video_id": str, "split": str}, where) for video in content["videos"]]
        names = [name for name, official_split in videos if official_split == wanted]
        if not names:
            raise DataError(f"{where} has no video of the split {wanted!r}; take the file of the official release.")
        return captions_of(names, captions, where, where)
