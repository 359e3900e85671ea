"""Metrics that stay exact across processes."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

__all__ = ["KeptRows", "RetrievalRanks", "SampleAccuracy", "SampleError", "SampleMean", "best_of_sets", "distinct",
           "rank_of", "rank_statistics", "retrieval_ranks", "similarities"]  # fmt: skip


def distinct(index: Tensor) -> Tensor:
    """Positions at which an index, int64 (N,), appears for the first time, by ascending index; -1 is left out."""
    order = torch.argsort(index, stable=True)
    ascending = index[order]
    first = torch.ones_like(ascending, dtype=torch.bool)
    first[1:] = ascending[1:] != ascending[:-1]
    return order[first & (ascending >= 0)]


class KeptRows(Metric):
    """Abstract base of metrics that keep rows of tensors, here and across processes, until `compute`.

    Attributes:
        kept: what is kept, by name.
    """

    full_state_update = False
    kept: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        for name in self.kept:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def keep(self, **rows: Tensor) -> None:
        """Add rows under each name of `kept`."""
        for name, tensor in rows.items():
            getattr(self, name).append(tensor)

    def all_kept(self) -> list[Tensor]:
        """All rows, a tensor for each name of `kept`."""
        return [dim_zero_cat(getattr(self, name)) for name in self.kept]


class SampleAccuracy(KeptRows):
    """Top-1 and top-5 accuracy and mean loss over distinct samples; no top-5 of five classes or fewer, which is 1.

    Every sample is kept with its index in the data set and counted once on `compute`, so a sampler that repeats
    samples to give all processes the same number does not shift the result, and placeholders for unreadable videos
    (index -1) are left out. Only the five best classes of a sample are stored: about 60 bytes a sample.
    """

    kept = ("index", "label", "best", "loss")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def update(self, scores: Tensor, label: Tensor, index: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B, K), any scores that rank the classes.
            label: int64 (B,).
            index: int64 (B,), position in the data set; -1 is skipped.
            loss: (B,), averaged by `compute`.
        """
        best = scores.topk(min(5, self.num_classes), dim=1).indices
        self.keep(index=index, label=label, best=best, loss=loss.float())

    def compute(self) -> dict[str, Tensor]:
        """top1 and top5 in [0, 1], loss and samples (how many were counted); without top5 for up to five classes."""
        index, *rows = self.all_kept()
        counted = distinct(index)
        label, best, loss = (values[counted] for values in rows)
        hits = best == label.unsqueeze(1)
        ranks = (1, 5) if self.num_classes > 5 else (1,)
        accuracy = {f"top{k}": hits[:, :k].any(dim=1).float().mean() for k in ranks}
        return {**accuracy, "loss": loss.mean(), "samples": loss.new_tensor(float(len(loss)))}


class SampleError(KeptRows):
    """Mean squared and mean absolute error over distinct samples, counted as `SampleAccuracy` counts them."""

    kept = ("index", "error")

    def update(self, predicted: Tensor, value: Tensor, index: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: (B,).
            value: (B,), what is right.
            index: int64 (B,), position in the data set; -1 is skipped.
        """
        self.keep(index=index, error=(predicted - value).float())

    def compute(self) -> dict[str, Tensor]:
        """mse, mae and samples (how many were counted); errors of none are nan."""
        index, error = self.all_kept()
        error = error[distinct(index)]
        return {"mse": error.square().mean(), "mae": error.abs().mean(), "samples": error.new_tensor(len(error))}


class SampleMean(KeptRows):
    """Mean of a number over distinct samples, counted as `SampleAccuracy` counts them; nan of none."""

    kept = ("index", "value")

    def update(self, value: Tensor, index: Tensor) -> None:
        """Add a batch: numbers (B,), and positions in the data set, int64 (B,), of which -1 is skipped."""
        self.keep(index=index, value=value.float())

    @override
    def compute(self) -> Tensor:
        index, value = self.all_kept()
        return value[distinct(index)].mean()


class RetrievalRanks(KeptRows):
    """Recall at 1, 5 and 10 and the median and mean rank, of videos for captions (t2v) and the other way round (v2t).

    Embeddings of the whole split are kept and compared on `compute`: 2 kB a video and a caption at 512 dimensions. A
    video counts once with its captions, also where a distributed sampler repeats it; placeholders (index -1) are left
    out. Several captions of a video are handled as published for MSVD: see `retrieval_ranks`.

    Args:
        dual_softmax: see `retrieval_ranks`.
    """

    kept = ("video", "index", "text", "count")

    def __init__(self, dual_softmax: bool = False) -> None:
        super().__init__()
        self.dual_softmax = dual_softmax

    def update(self, video: Tensor, index: Tensor, text: Tensor, count: Tensor) -> None:
        """Add a batch of B videos and their M captions.

        Args:
            video: (B, D); its products with `text` are the similarities.
            index: int64 (B,), which video; -1 is skipped.
            text: (M, D), the captions of the first video first.
            count: int64 (B,), captions of each video, summing up to M.
        """
        self.keep(video=video.float(), index=index, text=text.float(), count=count)

    def compute(self) -> dict[str, Tensor]:
        """t2v_r1, t2v_r5, t2v_r10 in [0, 1], t2v_mdr, t2v_mnr (ranks from 1), the same for v2t, videos and captions."""
        video, index, text, count = self.all_kept()
        kept = torch.zeros_like(index, dtype=torch.bool)
        kept[distinct(index)] = True
        kept &= count > 0
        text = text[kept.repeat_interleave(count)]
        owner = torch.arange(int(kept.sum()), device=index.device).repeat_interleave(count[kept])
        t2v, v2t = retrieval_ranks(text, video[kept], owner, dual_softmax=self.dual_softmax)
        counts = {"videos": text.new_tensor(len(v2t)), "captions": text.new_tensor(len(t2v))}
        return {**rank_statistics(t2v, v2t), **counts}


def rank_statistics(t2v: Tensor, v2t: Tensor) -> dict[str, Tensor]:
    """t2v_r1, t2v_r5, t2v_r10 (shares), t2v_mdr, t2v_mnr (median and mean rank), and the same for v2t; float32.

    Args:
        t2v: ranks from 1 of captions (M,); without any the results are nan.
        v2t: the same of videos (N,).
    """
    result = {}
    for direction, ranks in (("t2v", t2v), ("v2t", v2t)):
        ranks = ranks.double().sort().values
        # The mean of the two in the middle where their number is even; nan where nothing was counted.
        middle = ranks[(len(ranks) - 1) // 2 : len(ranks) // 2 + 1]
        for k in (1, 5, 10):
            result[f"{direction}_r{k}"] = (ranks <= k).double().mean()
        result[f"{direction}_mdr"] = middle.mean()
        result[f"{direction}_mnr"] = ranks.mean()
    return {name: value.float() for name, value in result.items()}


@torch.no_grad()
def retrieval_ranks(
    text: Tensor, video: Tensor, owner: Tensor, *, dual_softmax: bool = False, block_elements: int = 2**24
) -> tuple[Tensor, Tensor]:
    """Rank of what belongs together, from 1, among everything sorted by similarity.

    The similarity matrix is never held as a whole: it is computed in blocks of rows.

    - A caption ranks all videos; the rank is that of its own.
    - A video ranks all videos' sets of captions, a set being as near as its nearest caption (docs/protocol.md,
      section 20); the rank is that of its own set.
    - **Ties count against the model**: whatever is as near as the right one stands before it, so that a model that
      gives everything the same score comes last. (The published code appends every tied position and so counts more
      ranks than queries.)

    Args:
        text: (M, D).
        video: (N, D); similarities are text @ video.T.
        owner: int64 (M,), row of `video` that a caption belongs to, ascending; every video has one at least.
        dual_softmax: compare softmax over videos times softmax over captions, similarities being logits (the prior over
            queries of CAMoE, arXiv 2109.04290, section 3.4, with probabilities in place of raw similarities).
        block_elements: entries of a block; 2**24 are 64 MiB.

    Returns:
        int64 (M,) for the captions and (N,) for the videos.
    """

    def ranks(query: Tensor, candidate: Tensor, right: Tensor) -> Tensor:
        found = torch.empty(len(query), dtype=torch.int64, device=query.device)
        for rows, _, scores in similarities(query, candidate, dual_softmax, block_elements):
            if len(candidate) > len(video):  # captions, of which a video has several
                scores = best_of_sets(scores, owner, len(video))
            found[rows] = rank_of(scores, right[rows])
        return found

    return ranks(text, video, owner), ranks(video, text, torch.arange(len(video), device=video.device))


def similarities(
    query: Tensor, candidate: Tensor, dual_softmax: bool, block_elements: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Compare queries (Q, D) with candidates (C, D), block by block of queries.

    Yields:
        Rows of the queries, the products of these with the candidates (R, C), and the scores (R, C) to rank by, which
        are the products, or with `dual_softmax` as in `retrieval_ranks`.
    """
    prior: Tensor | float = 0.0
    if dual_softmax:
        # Log of the product, up to what is constant for a query: twice the logit minus the candidate's log-sum-exp.
        blocks = _blocks(len(candidate), len(query), block_elements)
        prior = torch.cat([query.new_empty(0), *((candidate[rows] @ query.T).logsumexp(dim=1) for rows in blocks)])
    for rows in _blocks(len(query), len(candidate), block_elements):
        products = query[rows] @ candidate.T
        yield rows, products, 2 * products - prior if dual_softmax else products


def best_of_sets(scores: Tensor, owner: Tensor, sets: int) -> Tensor:
    """Scores of captions (R, M) and the set each belongs to (M,) -> the best of each set (R, sets)."""
    best = scores.new_full((len(scores), sets), float("-inf"))
    return best.scatter_reduce_(1, owner.expand(len(scores), -1), scores, "amax")


def rank_of(scores: Tensor, right: Tensor) -> Tensor:
    """(R, N) and the right column of each row (R,) -> how many columns score no less, itself included."""
    return (scores >= scores.gather(1, right[:, None])).sum(dim=1)


def _blocks(rows: int, columns: int, block_elements: int) -> list[slice]:
    """Blocks of whole rows of a table, of so many entries at most or of one row."""
    step = max(1, block_elements // max(columns, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]
