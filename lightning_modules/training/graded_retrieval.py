"""Retrieval where answers are more or less right: mean average precision and nDCG of EPIC-KITCHENS-100.

A sentence answers a video fully if it tells of the same action, and half if it tells of the same verb or the same
nouns (docs/protocol.md, section 24).
"""

import torch
from torch import Tensor, nn

from lightning_modules.training.metrics import KeptRows, RetrievalRanks, distinct, similarities

__all__ = ["GradedRetrieval", "RetrievalScores", "graded_ranking", "relevance_of"]


class GradedRetrieval(KeptRows):
    """Mean average precision and nDCG of sentences for videos (v2t), of videos for sentences (t2v), and their means.

    See `relevance_of` and `graded_ranking`. An item is a segment with the sentences that were written about it, often
    none: all sentences of the split are candidates for every video. A segment counts once, also where a distributed
    sampler repeats it. The video of a placeholder (index -1) is left out, its sentences are not.

    Vectors are kept until `compute`, 2 kB each at 512 dimensions.

    Args:
        dual_softmax: as `training.metrics.retrieval_ranks` has it.
    """

    kept = ("video", "index", "segment", "verb", "nouns", "text", "count")

    def __init__(self, dual_softmax: bool = False) -> None:
        super().__init__()
        self.dual_softmax = dual_softmax

    def update(
        self,
        video: Tensor,
        text: Tensor,
        count: Tensor,
        *,
        verb: Tensor,
        nouns: Tensor,
        segment: Tensor,
        index: Tensor,
    ) -> None:
        """Add a batch of B segments and their M sentences.

        Args:
            video: (B, D); its products with `text` are the similarities.
            text: (M, D), the sentences of the first segment first.
            count: int64 (B,), sentences of each segment, 0 or more, summing up to M.
            verb: int64 (B,), class of each segment's verb, which is that of its sentences too.
            nouns: bool (B, N), which nouns it has.
            segment: int64 (B,), position in the split, of placeholders too.
            index: int64 (B,), the same, and -1 where the video could not be read.
        """
        vectors = {"video": video.float(), "text": text.float()}
        self.keep(**vectors, count=count, verb=verb, nouns=nouns, segment=segment, index=index)

    def compute(self) -> dict[str, Tensor]:
        """v2t_map, t2v_map, map, v2t_ndcg, t2v_ndcg and ndcg in [0, 1], nan without queries; videos and captions."""
        video, index, segment, verb, nouns, text, count = self.all_kept()
        rows = distinct(segment)
        # Where each segment's sentences begin, to put them in the order of the segments.
        ends = count.cumsum(0)
        owner = rows.repeat_interleave(count[rows])
        own = torch.arange(len(owner), device=text.device)
        own = own - (count[rows].cumsum(0) - count[rows]).repeat_interleave(count[rows]) + (ends - count)[owner]
        seen = rows[index[rows] >= 0]
        videos, texts = (video[seen], verb[seen], nouns[seen]), (text[own], verb[owner], nouns[owner])
        result = {}
        for direction, query, candidate in (("v2t", videos, texts), ("t2v", texts, videos)):
            precision, gain = graded_ranking(query, candidate, dual_softmax=self.dual_softmax)
            result[f"{direction}_map"], result[f"{direction}_ndcg"] = precision.nanmean(), gain.nanmean()
        for name in ("map", "ndcg"):
            result[name] = (result[f"v2t_{name}"] + result[f"t2v_{name}"]) / 2
        counts = {"videos": len(seen), "captions": len(own)}
        return {k: v.float() for k, v in result.items()} | {k: text.new_tensor(v) for k, v in counts.items()}


class RetrievalScores(nn.Module):
    """`GradedRetrieval` where the batches have classes of verb and nouns (docs/batches.md), else `RetrievalRanks`.

    Args:
        dual_softmax: see `training.metrics.retrieval_ranks`.
    """

    def __init__(self, dual_softmax: bool = False) -> None:
        super().__init__()
        self.ranks = RetrievalRanks(dual_softmax)
        self.graded = GradedRetrieval(dual_softmax)

    @property
    def is_graded(self) -> bool:
        """Whether the batches since the last `compute` have classes of verb and nouns."""
        return self.graded.update_called

    def update(self, video: Tensor, text: Tensor, batch: dict) -> None:
        """Add an evaluation batch.

        Args:
            video: (B, D), vectors of the batch's videos.
            text: (M, D), vectors of its captions, those of the first video first.
            batch: the batch.
        """
        count = torch.tensor([len(texts) for texts in batch["text"]], device=video.device)
        if "nouns" in batch:
            known = {name: batch[name] for name in ("verb", "nouns", "segment")}
            self.graded.update(video, text, count, **known, index=batch["video_index"])
        else:
            self.ranks.update(video, batch["video_index"], text, count)

    def compute(self) -> dict[str, Tensor]:
        """The scores of the batches since the last call, and forgets the batches."""
        metric = self.graded if self.is_graded else self.ranks
        result = metric.compute()
        metric.reset()
        return {name: value for name, value in result.items() if name not in ("videos", "captions")}


def relevance_of(verb: Tensor, nouns: Tensor, other_verb: Tensor, other_nouns: Tensor) -> Tensor:
    """How far actions are the same: half of it is the verb, the other half the share of nouns that they have in common.

    (1 if the verbs are equal, else 0, + |N and M| / |N or M|) / 2 for the sets N and M of their nouns.

    Args:
        verb: int64 (R,).
        nouns: bool (R, K), one or more each.
        other_verb: int64 (C,).
        other_nouns: bool (C, K).

    Returns:
        float64 (R, C), 1 exactly for the same verb and nouns.
    """
    # Counts of nouns are exact in float32, and matrix products quick.
    common = (nouns.float() @ other_nouns.float().T).double()
    union = nouns.sum(dim=1, keepdim=True) + other_nouns.sum(dim=1) - common
    return ((verb[:, None] == other_verb).double() + common / union) / 2


def graded_ranking(
    query: tuple[Tensor, Tensor, Tensor],
    candidate: tuple[Tensor, Tensor, Tensor],
    *,
    dual_softmax: bool = False,
    block_elements: int = 2**20,
) -> tuple[Tensor, Tensor]:
    """Average precision and nDCG of each query.

    With r_k, the relevance of the candidate at rank k:

    - Average precision is the mean, over the ranks k of the candidates of relevance 1, of (r_1 + ... + r_k) / k. Those
      of lower relevance count in the sum, which is how the challenge's figures are computed.
    - nDCG is the sum of r_k / log2(k + 1) over the first K ranks, divided by that of the best order; K is the number of
      candidates of relevance above 0.

    Ties count against the model: of equally near candidates the less relevant one stands first.

    Args:
        query: vectors (Q, D), and the classes of verb and nouns as `relevance_of` takes them.
        candidate: the same of C candidates; similarities are the products of the vectors.
        dual_softmax: see `training.metrics.retrieval_ranks`.
        block_elements: entries of a block of the table of queries and candidates.

    Returns:
        float64 (Q,) and (Q,); nan where no candidate has relevance 1, or none above 0.
    """
    rank = torch.arange(1, len(candidate[0]) + 1, dtype=torch.float64, device=query[0].device)
    discount = 1 / torch.log2(rank + 1)
    precision, gain = (torch.empty(len(query[0]), dtype=torch.float64, device=rank.device) for _ in range(2))
    for rows, _, scores in similarities(query[0], candidate[0], dual_softmax, block_elements):
        relevance = relevance_of(query[1][rows], query[2][rows], *candidate[1:])
        rising = relevance.sort(dim=1)
        # Least relevant first, and from there by similarity: the sort keeps the order of equal ones.
        order = scores.gather(1, rising.indices).argsort(dim=1, descending=True, stable=True)
        found, best = rising.values.gather(1, order), rising.values.flip(1)
        right = found == 1
        precision[rows] = (found.cumsum(dim=1) / rank * right).sum(dim=1) / right.sum(dim=1)
        counted = rank <= (relevance > 0).sum(dim=1, keepdim=True)
        gain[rows] = (found * discount * counted).sum(dim=1) / (best * discount).sum(dim=1)
    return precision, gain
