"""The report of a text-video retrieval: what is collected of each video, and what is written of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_modules.report import figures
from lightning_modules.report.answers import table
from lightning_modules.report.page import Picture, Section, Shown, Tile
from lightning_modules.training.metrics import distinct, rank_statistics, retrieval_ranks, similarities

__all__ = ["MatchRows", "Matches"]

BEST = 5
RECALL = 50  # ranks of a recall curve
BLOCK = 2**24  # similarities at once
RANGES = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, None))
DIRECTIONS = {"t2v": "captions find videos", "v2t": "videos find captions"}


class MatchRows:
    """Collects one process's videos and captions: vectors, 2 kB each at 512 dimensions, paths and texts."""

    def __init__(self) -> None:
        self.rows: dict[str, list] = {name: [] for name in ("index", "path", "texts", "video", "text")}
        self.unreadable: set[str] = set()
        self.scoring: dict[str, Any] = {}

    def add(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Add what a test step returned for a batch of B videos with M captions.

        Args:
            outputs: "video_vectors" (B, D), "text_vectors" (M, D), the captions of the first video first, "scale", what
                their products are multiplied with, and "dual_softmax" (see `training.metrics.retrieval_ranks`).
            batch: has "video_index", "path" and "text" (docs/batches.md).
        """
        index = batch["video_index"].tolist()
        kept = [i for i, number in enumerate(index) if number >= 0 and batch["text"][i]]
        self.unreadable |= {path for path, number in zip(batch["path"], index, strict=True) if number < 0}
        text = outputs["text_vectors"].float().cpu().split([len(texts) for texts in batch["text"]])
        video = outputs["video_vectors"].float().cpu()
        found = {"index": index, "path": batch["path"], "texts": batch["text"], "video": video, "text": text}
        for name, values in found.items():
            self.rows[name] += [values[i] for i in kept]
        self.scoring = {name: outputs[name] for name in ("scale", "dual_softmax")}

    def part(self) -> dict:
        """What this process has, as plain values to send to the first one."""
        return {"rows": self.rows, "unreadable": self.unreadable, "scoring": self.scoring}

    def join(self, parts: Sequence[dict]) -> "Matches | None":
        """The report of what all processes have; each video once, by its index. None without any."""
        parts = [part for part in parts if part["rows"]["index"]]
        if not parts:
            return None
        rows = {name: [value for part in parts for value in part["rows"][name]] for name in self.rows}
        kept = distinct(torch.tensor(rows["index"])).tolist()
        found: dict[str, Any] = {name: [values[i] for i in kept] for name, values in rows.items()}
        unreadable = set().union(*(part["unreadable"] for part in parts))
        return Matches(**found, unreadable=len(unreadable), **parts[0]["scoring"])


class Matches:
    """The report of a retrieval of N videos and M captions.

    Args:
        index: N positions in the data set.
        path: N files.
        texts: captions of each video.
        video: N vectors (D,).
        text: N times (captions, D).
        unreadable: how many videos could not be read.
        scale: what the products of the vectors are multiplied with.
        dual_softmax: whether ranks are those of the dual softmax.
    """

    def __init__(
        self,
        index: list[int],
        path: list[str],
        texts: list[list[str]],
        video: list[Tensor],
        text: list[Tensor],
        unreadable: int,
        scale: float,
        dual_softmax: bool,
    ) -> None:
        self.index, self.path, self.unreadable = index, path, unreadable
        self.captions = [caption for captions in texts for caption in captions]
        self.owner = torch.arange(len(index)).repeat_interleave(torch.tensor([len(captions) for captions in texts]))
        self.video, self.text = torch.stack(video), torch.cat(text)
        self.scale, self.dual_softmax = float(scale), dual_softmax
        self.samples = len(index)

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """Of captions (M,) and of videos (N,), from 1."""
        scaled = self.scale * self.text
        found = retrieval_ranks(scaled, self.video, self.owner, dual_softmax=self.dual_softmax)
        return dict(zip(DIRECTIONS, found, strict=True))

    @cached_property
    def recall(self) -> dict[str, Tensor]:
        """Share of queries whose match is among the first k, for k from 1 to 50, float64."""
        places = torch.arange(1, RECALL + 1)
        return {name: (ranks[:, None] <= places).double().mean(dim=0) for name, ranks in self.ranks.items()}

    @property
    def scores(self) -> dict[str, Any]:
        """For programs: recall at 1, 5 and 10, median and mean rank, both ways."""
        found = rank_statistics(*self.ranks.values())
        numbers = {name: float(value) for name, value in found.items()}
        return {"retrieval": {"samples": self.samples, "captions": len(self.captions), **numbers}}

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the files beside the page."""
        answers = [f"{what}_{k}" for k in range(1, BEST + 1) for what in ("answer", "similarity")]
        rows: list[Sequence] = [("path", "caption", "rank", *answers)]
        rows += [self._mistake(query) for query in self._mistakes]
        yield "mistakes.csv", table(rows)
        yield "ranks.png", figures.on_white(figures.draw_recall, self._curves)

    def sections(self, clip_of: Callable[[int], bytes | None], worst: int) -> Iterator[Section]:
        """The parts of the page; arguments as for `lightning_modules.report.answers.Answers.sections`."""
        yield Section("Scores", tiles=self._tiles())
        histogram = {DIRECTIONS[name]: _histogram(ranks) for name, ranks in self.ranks.items()}
        titles = [str(a) if a == b else f"{a}–{b}" if b else f"{a} +" for a, b in RANGES]  # noqa: RUF001
        yield Section("Ranks", pictures=[
            Picture(figures.both(figures.draw_recall, self._curves), "Recall at 1 to 50"),
            Picture(figures.both(figures.draw_ranks, histogram, titles), "Histogram of the ranks"),
        ])  # fmt: skip
        yield self._worst(clip_of, worst)

    @property
    def _curves(self) -> dict[str, Tensor]:
        longest = min(RECALL, max(len(self.captions), 2))
        return {DIRECTIONS[name]: curve[:longest] for name, curve in self.recall.items()}

    def _tiles(self) -> list[Tile]:
        tiles = []
        for direction, title in DIRECTIONS.items():
            median = self.scores["retrieval"][f"{direction}_mdr"]
            tiles += [Tile(f"Recall at {k}", f"{self.recall[direction][k - 1]:.1%}", title) for k in (1, 5, 10)]
            tiles.append(Tile("Median rank", f"{median:g}", title))
        return [*tiles, Tile("Videos", f"{self.samples:,}", f"{len(self.captions):,} captions")]

    @cached_property
    def _mistakes(self) -> list[int]:
        """Captions that do not find their video first, the worst rank first."""
        ranks = self.ranks["t2v"]
        return [i for i in ranks.argsort(descending=True, stable=True).tolist() if ranks[i] > 1]

    @cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        """The best videos of each caption, int64 (M, k), and their cosines."""
        text, k = self.scale * self.text, min(BEST, self.samples)
        best, cosines = [], []
        for _, products, scores in similarities(text, self.video, self.dual_softmax, BLOCK):
            best.append(scores.topk(k, dim=1).indices)
            cosines.append(products.gather(1, best[-1]) / self.scale)
        return torch.cat(best), torch.cat(cosines)

    def _mistake(self, query: int) -> Sequence:
        best, cosines = (values[query].tolist() for values in self._best)
        answers = [value for place, cosine in zip(best, cosines, strict=True) for value in (self.path[place], cosine)]
        answers += [""] * (2 * BEST - len(answers))
        owner = int(self.owner[query])
        return self.path[owner], self.captions[query], int(self.ranks["t2v"][query]), *answers

    def _worst(self, clip_of: Callable[[int], bytes | None], worst: int) -> Section:
        queries = self._mistakes[:worst]
        if not queries:
            return Section("Worst captions", "Every caption finds its video first.")
        clips = []
        for query in queries:
            owner, first = int(self.owner[query]), int(self._best[0][query, 0])
            rank = f"{int(self.ranks['t2v'][query]):,} of {self.samples:,}"
            lines = [("caption", self.captions[query]), ("rank", rank), ("found first", self.path[first])]
            clips.append(Shown(clip_of(self.index[owner]), self.path[owner], lines))
        return Section("Worst captions", "Their videos, which stand at the highest ranks.", clips=clips)


def _histogram(ranks: Tensor) -> Tensor:
    """Shares of the ranks in each of `RANGES`."""
    counts = [((ranks >= low) & (ranks <= (high or ranks.max()))).double().mean() for low, high in RANGES]
    return torch.stack(counts)
