"""DiDeMo: personal videos of half a minute, whose moments are described."""

from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.annotations.captions import Captions, captions_of, read_json, read_lines, values_of
from datamodules.annotations.locate import plain_name
from datamodules.errors import DataError
from datamodules.retrieval import RetrievalDataModule

__all__ = ["DiDeMo"]


class DiDeMo(RetrievalDataModule):
    """DiDeMo: the official files, as the usual downloads leave them.

    | file | where |
    |---|---|
    | annotations of train, val and test | root or root/annotations |
    | <id>, <id>.mp4, or the id with another suffix in its place | root/videos, or up to three folders below root |

        train_data.json     [{"video": "26292851@N04_4253489686_265c3c8051.m4v",
                              "description": "someone kicks the bug towards some rocks.", ...}, ...]
        train_list.txt      26292851@N04_4253489686_265c3c8051.m4v    the videos that count; without it all do

    The caption of a video is one paragraph, its descriptions in the order of the file. Only its beginning counts, which
    is what was annotated.

    Ids keep the suffix of the upload.

    Args:
        root: folder of annotations and videos, a path or a URL.
        seconds: of each video that count; CLIP4Clip has 31, VideoMamba 30 (docs/protocol.md, section 21, and
            videomamba_multimodal.md, section 5).
        common: see `datamodules.retrieval.RetrievalDataModule`.
    """

    title = "DiDeMo"
    source = "https://github.com/ArrowLuo/CLIP4Clip#data-preparing"
    paragraphs = True

    def __init__(self, root: str | Path, *, seconds: float = 31.0, **common: Any) -> None:
        super().__init__(root, **common)
        if not seconds > 0:
            raise DataError(f"seconds is {seconds}; it has to be above 0.")
        self.span = (0.0, seconds)

    @override
    def entries(self, split: str) -> list[Captions]:
        where = self.annotation(f"{split}_data.json")
        names: dict[str, str] = {}  # without suffix -> as it stands
        captions: dict[str, list[str]] = {}
        for moment in read_json(where, list):
            video, text = values_of(moment, {"video": str, "description": str}, where)
            names.setdefault(plain_name(video), video)
            captions.setdefault(plain_name(video), []).append(text)
        source = self.find(f"{split}_list.txt")
        self.origins[split] = source or where
        wanted = list(names) if source is None else [plain_name(line) for line in read_lines(source)]
        entries = captions_of(wanted, captions, source or where, where)
        return [entry._replace(name=names[entry.name]) for entry in entries]
