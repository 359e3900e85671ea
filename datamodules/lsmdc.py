"""LSMDC: clips of films with what their audio description says."""

from typing_extensions import override

from datamodules.annotations.captions import Captions
from datamodules.errors import DataError
from datamodules.retrieval import RetrievalDataModule
from datamodules.storage.files import read_text

__all__ = ["LSMDC"]

_FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_COLUMNS = 6


class LSMDC(RetrievalDataModule):
    """LSMDC: the official files, as the usual downloads leave them.

    | file | where |
    |---|---|
    | annotations | root or root/annotations |
    | <film>/<clip>.avi, or another suffix | root/videos, or without it up to three folders below root |

    Annotations have no header and are separated by tabs: clip, its first and last time in the film as aligned and as
    extracted, and the sentence, in which people are SOMEONE:

        0001_American_Beauty_00.00.51.926-00.00.54.129 <tab> 00.00.51.926 <tab> ... <tab> SOMEONE sits.

    The files are LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and LSMDC16_challenge_1000_publictect.csv. A clip
    may have several rows, which are its captions. The clips are files of their own and count as a whole: the times are
    those in the film.
    """

    title = "LSMDC"
    source = "https://sites.google.com/site/describingmovies/download"
    suffix = ".avi"

    @override
    def entries(self, split: str) -> list[Captions]:
        path = self.origins[split] = self.annotation(_FILES[split])
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            # Not the csv module: sentences hold single quotation marks.
            columns = [column.strip() for column in line.split("\t")]
            if not line.strip():
                continue
            if len(columns) != _COLUMNS or not columns[0]:
                raise DataError(
                    f"{path}, line {number} has {len(columns)} columns, not clip, four times and sentence separated by "
                    "tabs; correct the line, or download the file again."
                )
            captions.setdefault(columns[0], []).append(columns[-1])
        if not captions:
            raise DataError(f"{path} is empty; download it again from {self.source}.")
        return [Captions(name, tuple(texts)) for name, texts in captions.items()]
