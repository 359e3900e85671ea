"""Metrics of the EPIC-KITCHENS-100 challenges, exact across processes (docs/protocol.md, section 23).

An action is a verb and a noun; its number is ``verb * 1000 + noun``, as in the official evaluation.
"""

import torch
from torch import Tensor

from lightning_modules.checks import check_choice
from lightning_modules.training.metrics import KeptRows, distinct

__all__ = ["ACTION_BASE", "TASKS", "EpicMetrics", "best_pairs", "marginal_scores"]

TASKS = ("recognition", "anticipation")
ACTION_BASE = 1000
"""An action's number is its verb's times this plus its noun's."""

_K = 5
_PARTS = ("verb", "noun", "action", "pair")
_NONE = -1


class EpicMetrics(KeptRows):
    """Scores of a split: over all its segments, those of unseen participants, and those of rare classes.

    - recognition: top-1 and top-5 of verb, noun and action; the official evaluator gives top-1 on the two subsets.
    - anticipation: class-mean top-5 recall: of each class that occurs in the (sub)set the share of its segments that
      have it among the five best, and the mean of these.

    Actions are scored twice: ``action`` by whatever scores the caller has for them (a head of their own), ``pair`` by
    the product of the verb's and the noun's probability, which is what the official evaluator does where a submission
    has no action scores. A segment is rare ("tail") as a verb or noun where that is, as an action where either is.

    Every segment is kept with its index and counted once on `compute`; placeholders (-1) and segments without labels
    are left out. Equal scores keep the order of `torch.topk`.

    Args:
        task: "recognition" or "anticipation".
        as_coded: also compute `action_top5_as_coded`, or for anticipation `action_recall5_as_coded`, the number of
            MambaVL's authors: verb and noun are each among the five best, 25 guesses (docs/protocol.md, section 22).

    Raises:
        ModelError: another task.
    """

    kept = ("index", "truth", "subsets", *_PARTS)

    def __init__(self, task: str = "recognition", as_coded: bool = False) -> None:
        super().__init__()
        check_choice("task", task, TASKS)
        self.task, self.as_coded = task, as_coded

    def update(
        self,
        verb: Tensor,
        noun: Tensor,
        action: Tensor,
        actions: Tensor,
        *,
        truth: Tensor,
        unseen: Tensor,
        tail: Tensor,
        index: Tensor,
    ) -> None:
        """Adds a batch.

        Args:
            verb: (B, V) probabilities, or for all but `pair` any scores that rank the classes.
            noun: (B, N), the same.
            action: (B, A), scores of the actions that there are scores for.
            actions: int64 (A,), their numbers.
            truth: int64 (B, 2), class of verb and noun; -1: none.
            unseen: bool (B,), of a participant who was not in the training set.
            tail: bool (B, 2), rare verb, rare noun.
            index: int64 (B,), position in the data set; -1 is skipped.
        """
        best = _top(action)
        pairs = best_pairs(verb, noun, min(_K, verb.shape[1] * noun.shape[1]))[0]
        self.keep(
            index=index,
            truth=truth,
            subsets=torch.cat([unseen.unsqueeze(1), tail], dim=1),
            verb=_top(verb),
            noun=_top(noun),
            action=torch.where(best == _NONE, _NONE, actions[best.clamp_min(0)]),
            pair=_filled(pairs),
        )

    def compute(self) -> dict[str, Tensor]:
        """Values in [0, 1], nan where a subset is empty, and ``samples``, how many segments were counted.

        Names are part_topk (verb_top1, noun_top5, pair_top1, ...) or part_recall5; those of subsets begin with unseen_
        or tail_ (tail_action_top1). The number `as_coded` has no subsets.
        """
        index, truth, subsets, *best = self.all_kept()
        rows = distinct(index)
        rows = rows[(truth[rows] >= 0).all(dim=1)]
        truth, subsets = truth[rows], subsets[rows]
        number = truth[:, 0] * ACTION_BASE + truth[:, 1]
        right = {"verb": truth[:, 0], "noun": truth[:, 1], "action": number, "pair": number}
        rare = {"verb": subsets[:, 1], "noun": subsets[:, 2]}
        rare |= dict.fromkeys(("action", "pair"), subsets[:, 1] | subsets[:, 2])
        result, hits_of = {}, {}
        for part, found in zip(_PARTS, best, strict=True):
            hits = hits_of[part] = found[rows] == right[part].unsqueeze(1)
            everything = torch.ones_like(rows, dtype=torch.bool)
            for title, subset in (("", everything), ("unseen_", subsets[:, 0]), ("tail_", rare[part])):
                if self.task == "anticipation":
                    result[f"{title}{part}_recall5"] = _class_mean(hits.any(dim=1)[subset], right[part][subset])
                    continue
                for k in (1, _K) if not title else (1,):
                    result[f"{title}{part}_top{k}"] = hits[subset, :k].any(dim=1).float().mean()
        if self.as_coded:
            both = hits_of["verb"].any(dim=1) & hits_of["noun"].any(dim=1)
            if self.task == "anticipation":
                result["action_recall5_as_coded"] = _class_mean(both, number)
            else:
                result["action_top5_as_coded"] = both.float().mean()
        return {**result, "samples": hits.new_tensor(len(rows), dtype=torch.float32)}


def best_pairs(verb: Tensor, noun: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best actions by the product of the probabilities of verb and noun.

    Args:
        verb: (B, V).
        noun: (B, N).
        k: at most V * N.

    Returns:
        int64 (B, k), numbers of the actions, best first; (B, k), their products.
    """
    # A pair among the k best has a verb among the k best verbs, and so a noun.
    verbs, nouns = (scores.topk(min(k, scores.shape[1]), dim=1) for scores in (verb, noun))
    products = verbs.values.unsqueeze(2) * nouns.values.unsqueeze(1)
    numbers = verbs.indices.unsqueeze(2) * ACTION_BASE + nouns.indices.unsqueeze(1)
    best = products.flatten(1).topk(k, dim=1)
    return numbers.flatten(1).gather(1, best.indices), best.values


def marginal_scores(action: Tensor, pairs: Tensor, num_verbs: int, num_nouns: int) -> tuple[Tensor, Tensor]:
    """Scores of the verbs and of the nouns from those of the actions: the sums over the actions that have them.

    Args:
        action: (B, A), probabilities.
        pairs: int64 (A, 2), verb and noun of each action.
        num_verbs: V.
        num_nouns: N.

    Returns:
        (B, V) and (B, N), in the type of `action`. A class without an action has 0, where the published code gives it
        the probability of action 0.
    """
    sizes = zip(pairs.to(action.device).unbind(1), (num_verbs, num_nouns), strict=True)
    verb, noun = (action.new_zeros(len(action), size).index_add_(1, of, action) for of, size in sizes)
    return verb, noun


def _top(scores: Tensor) -> Tensor:
    """Positions of the best five of (B, K), as int64 (B, 5)."""
    return _filled(scores.topk(min(_K, scores.shape[1]), dim=1).indices)


def _filled(best: Tensor) -> Tensor:
    """Fewer than five become five with -1, which is no class."""
    return torch.nn.functional.pad(best, (0, _K - best.shape[1]), value=_NONE)


def _class_mean(hit: Tensor, right: Tensor) -> Tensor:
    """Mean over the classes in `right` of the share of hits."""
    _, number = right.unique(return_inverse=True)
    count = torch.bincount(number)
    return (torch.bincount(number, weights=hit.double()) / count).mean().float()
