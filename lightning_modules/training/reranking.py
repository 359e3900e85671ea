"""Ranking in two steps: vectors find the likeliest pairs, a slower look at both sides puts these in order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.training.metrics import best_of_sets, rank_of, rank_statistics

__all__ = ["Reranker"]

UNSEEN = -100.0
"""Score of the pairs that are not looked at, as published: behind all others, and all alike."""
PAIRS_AT_ONCE = 64


class _Video(NamedTuple):
    """A video of the split with its captions, on the CPU: what every process has to know of it."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs of a video
    vector: Tensor  # (E,)
    texts: Tensor  # vectors of its captions (n, E)
    words: list[Tensor]  # n times (L, width), without padding


class Reranker:
    """Keeps what re-ranking needs of a split, and ranks it in the end.

    For each caption the `topk` nearest videos, and for each video the `topk` nearest captions, are scored by a matching
    head; everything else stands behind them, in no order (docs/protocol.md, section 15). Sets of captions and ties are
    handled as by `training.metrics.retrieval_ranks`, so a right answer that is not among the nearest comes last.

    Tokens of videos and words of captions wait in main memory, in float32 3.6 MB a video of 1568 tokens of width 576,
    and 3 kB a word of width 768. Each process scores the pairs of its own videos.

    Args:
        topk: candidates of a query.
    """

    def __init__(self, topk: int) -> None:
        self.topk = topk
        self.reset()

    def reset(self) -> None:
        """Forget the split."""
        self._videos: list[_Video] = []
        self._tokens: dict[int, Tensor] = {}

    def update(
        self, index: Tensor, vectors: Tensor, tokens: Tensor, counts: Sequence[int], texts: Tensor, words: list[Tensor]
    ) -> None:
        """Add a batch of B videos and their M captions.

        Args:
            index: int64 (B,), which video; -1 is skipped, and so is one that is known already.
            vectors: (B, E); products with `texts` are the similarities of the first step.
            tokens: (B, K, D).
            counts: captions of each video, summing up to M.
            texts: (M, E), the captions of the first video first.
            words: M times (L, width), without padding.
        """
        vectors, texts = vectors.float().cpu(), texts.float().cpu()
        end = 0
        for i, number in enumerate(index.tolist()):
            start, end = end, end + counts[i]
            if number < 0 or start == end or number in self._tokens:
                continue
            own_words = [word.cpu() for word in words[start:end]]
            self._videos.append(_Video(number, vectors[i], texts[start:end], own_words))
            self._tokens[number] = tokens[i].cpu()

    @torch.no_grad()
    def compute(
        self, match: Callable[[Tensor, Tensor, Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """What `lightning_modules.training.metrics.rank_statistics` says of the new order, the same in every process.

        Args:
            match: words (P, L, width), their mask bool (P, L), and tokens of their videos (P, K, D), all on `device` ->
                scores (P,).
            device: where to score.
        """
        videos, mine = self._gathered()
        if not videos:
            return rank_statistics(torch.empty(0), torch.empty(0))
        words = [word for video in videos for word in video.words]
        owner = torch.arange(len(videos)).repeat_interleave(torch.tensor([len(video.words) for video in videos]))
        similarity = torch.cat([video.texts for video in videos]) @ torch.stack([video.vector for video in videos]).T
        near_videos = _nearest(similarity, self.topk)
        near_captions = _nearest(similarity.T, self.topk).T

        scores = torch.zeros_like(similarity)
        for column in mine:
            tokens = self._tokens[videos[column].index].to(device)
            rows = (near_videos[:, column] | near_captions[:, column]).nonzero().flatten()
            for part in rows.split(PAIRS_AT_ONCE):
                chosen = [words[row] for row in part.tolist()]
                length = torch.tensor([len(word) for word in chosen], device=device)
                padded = pad_sequence(chosen, batch_first=True).to(device)
                mask = torch.arange(padded.shape[1], device=device) < length[:, None]
                found = match(padded, mask, tokens.expand(len(part), -1, -1))
                scores[part, column] = found.float().cpu()
        if _processes() > 1:
            scores = scores.to(device)
            dist.all_reduce(scores)  # every entry is of one process, and 0 in the others
            scores = scores.cpu()
        by_caption = scores.masked_fill(~near_videos, UNSEEN)
        by_video = best_of_sets(scores.masked_fill(~near_captions, UNSEEN).T, owner, len(videos))
        return rank_statistics(rank_of(by_caption, owner), rank_of(by_video, torch.arange(len(videos))))

    def _gathered(self) -> tuple[list[_Video], list[int]]:
        """The videos of all processes in the order of their index, and the places of those that this one scores."""
        shares = [self._videos]
        if _processes() > 1:
            shares = [[] for _ in range(_processes())]
            dist.all_gather_object(shares, self._videos)
        # A distributed sampler may give a video to two processes; the first one has it.
        first: dict[int, tuple[int, _Video]] = {}
        for process, share in enumerate(shares):
            for video in share:
                first.setdefault(video.index, (process, video))
        found = [first[index] for index in sorted(first)]
        here = dist.get_rank() if _processes() > 1 else 0
        return [video for _, video in found], [i for i, (process, _) in enumerate(found) if process == here]


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _nearest(similarity: Tensor, topk: int) -> Tensor:
    """bool (R, N): the `topk` largest of each row, or all where there are fewer."""
    best = similarity.topk(min(topk, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, best, True)
