"""MSVD: short web videos, each described by some 40 people."""

from typing_extensions import override

from datamodules.annotations.captions import Captions, are_texts, captions_of, read_lines
from datamodules.annotations.pickles import read_pickle
from datamodules.errors import DataError
from datamodules.retrieval import RetrievalDataModule

__all__ = ["MSVD"]


class MSVD(RetrievalDataModule):
    """MSVD: the official files, as the usual downloads leave them.

    | file | where |
    |---|---|
    | annotations | root or root/annotations |
    | <id>.avi, or another suffix | root/videos, or without it up to three folders below root |

        train_list.txt, val_list.txt, test_list.txt    eyhzDC936uk_15_27
        raw-captions.pkl                               {"eyhzDC936uk_15_27": [["a", "man", "is", ...], ...], ...}

    The words of a caption are joined by blanks. In the evaluation every caption is a query, and a video has many right
    ones.

    Raises:
        DataError: from `setup`: a file is missing, has another form or is an unsafe pickle, or all videos are
            missing.
    """

    title = "MSVD"
    source = "https://github.com/ArrowLuo/CLIP4Clip#data-preparing"
    suffix = ".avi"

    @override
    def entries(self, split: str) -> list[Captions]:
        source, where = self.annotation(f"{split}_list.txt"), self.annotation("raw-captions.pkl")
        self.origins[split] = source
        content = read_pickle(where)
        if not isinstance(content, dict) or not all(
            isinstance(texts, list) and all(map(are_texts, texts)) for texts in content.values()
        ):
            raise DataError(f"{where} is not a dict of lists of lists of words; download it again from {self.source}.")
        captions = {name: [" ".join(words) for words in texts] for name, texts in content.items()}
        return captions_of(read_lines(source), captions, source, where)
