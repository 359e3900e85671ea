"""What models of actions share, each a verb and a noun: the vocabulary, the challenges' metrics, and predictions."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD, PREPROCESSING_DEFAULTS, BaseModule
from lightning_modules.checks import check_group
from lightning_modules.errors import ModelError
from lightning_modules.training.epic_metrics import ACTION_BASE, EpicMetrics, best_pairs
from lightning_modules.training.metrics import SampleMean

__all__ = ["PREPROCESSING", "VOCABULARY", "ActionModule"]

SUBMITTED = 100
"""Actions of a segment that the challenge wants."""
# What two groups of arguments may hold, with their defaults.
VOCABULARY: Mapping[str, Any] = MappingProxyType(
    {"num_verbs": 97, "num_nouns": 300, "verb_names": None, "noun_names": None, "actions": None}
)
PREPROCESSING: Mapping[str, Any] = MappingProxyType(
    {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "short_side": None,
        **{name: PREPROCESSING_DEFAULTS[name] for name in ("sampling", "frame_stride", "interpolation")},
    }
)


class ActionModule(BaseModule):
    """Abstract base of modules that recognise the verb, the noun and the action of a clip.

    A subclass has the arguments ``num_classes`` (of actions), ``num_frames``, ``image_size``, ``task``, ``vocabulary``
    and ``preprocessing`` among what is saved, and ``label_smoothing`` after ``*``. It calls `prepare` in its
    constructor, and says in `predict_scores` how probable each verb, noun and action is.

    Attributes:
        heads: of "verb", "noun" and "action" what the network has outputs for: their cross-entropies are the loss.
        num_classes: of actions.
        vocabulary_defaults: what the group ``vocabulary`` may hold.
        metrics: those of the challenges, see `lightning_modules.training.epic_metrics.EpicMetrics`.
        mean_loss: of the evaluation.
    """

    heads: tuple[str, ...]
    num_classes: int
    vocabulary_defaults: ClassVar[Mapping[str, Any]] = VOCABULARY

    def prepare(self, as_coded: bool = False) -> None:
        """Checks the arguments named above, and makes the metrics and the normalisation.

        Args:
            as_coded: see `EpicMetrics`.

        Raises:
            ModelError: a number, a task or a vocabulary that does not fit.
        """
        h = self.hparams
        if h.num_classes is None:
            raise ModelError("num_classes is None; there has to be at least 1 action.")
        self.num_classes = h.num_classes
        self._check_vocabulary()
        prepared = check_group("preprocessing", h.preprocessing, PREPROCESSING)
        self.set_normalisation(prepared["mean"], prepared["std"])
        self.metrics = EpicMetrics(h.task, as_coded)
        self.mean_loss = SampleMean()

    @abstractmethod
    def predict_scores(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Probabilities of "verb", "noun" and "action" (B, ...), averaged over the views."""

    def _check_vocabulary(self) -> None:
        """Raise `ModelError` for lists of names or actions of another length than the outputs, or of other values."""
        known = self.vocabulary
        sizes = {"verb_names": known["num_verbs"], "noun_names": known["num_nouns"], "actions": self.num_classes}
        for name, size in sizes.items():
            entries = known[name]
            if entries is None:
                continue
            if not isinstance(entries, list | tuple) or len(entries) != size:
                count = len(entries) if isinstance(entries, list | tuple) else "no list of"
                raise ModelError(f"{name} has {count} entries for {size} outputs; make them agree.")
            limits = (known["num_verbs"], known["num_nouns"]) if name == "actions" else None
            for number, entry in enumerate(entries):
                if not _is_named(entry, limits):
                    what = "a text" if limits is None else "a verb and a noun by their numbers"
                    raise ModelError(f"Number {number} of {name} is not {what}; take the list that the data has.")

    @property
    def vocabulary(self) -> dict[str, Any]:
        """``num_verbs``, ``num_nouns``, and where known ``verb_names``, ``noun_names`` and ``actions``."""
        return check_group("vocabulary", self.hparams.vocabulary, self.vocabulary_defaults)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the actions; None before the vocabulary is known."""
        verbs, nouns, actions = (self.vocabulary[name] for name in ("verb_names", "noun_names", "actions"))
        if verbs is None or nouns is None or actions is None:
            return None
        return [f"{verbs[verb]} {nouns[noun]}" for verb, noun in actions]

    def adopt_classes(self, names: Sequence[str]) -> None:
        """Raise `ModelError` if the data has another number of actions."""
        if len(names) != self.num_classes:
            raise ModelError(f"The data has {len(names)} actions and the model {self.num_classes}; "
                             f"set model.num_classes to {len(names)}.")  # fmt: skip

    def adopt_vocabulary(self, data: object) -> None:
        """Take the names of verbs and nouns and the list of actions from a DataModule, where the model has none.

        Args:
            data: has ``verb_names``, ``noun_names`` and ``actions``, such as `datamodules.EpicKitchens100`; what it
                lacks stays as it is.

        Raises:
            ModelError: the data has another vocabulary than the model.
        """
        sizes = self.vocabulary | {"num_classes": self.num_classes}
        for name, size in (("verb_names", "num_verbs"), ("noun_names", "num_nouns"), ("actions", "num_classes")):
            theirs = getattr(data, name, None)
            if theirs is None:
                continue
            ours = sizes[name]
            if len(theirs) != sizes[size]:
                where = size if size == "num_classes" else f"vocabulary.{size}"
                raise ModelError(f"The data has {len(theirs)} {name} and the model {sizes[size]}; "
                                 f"set model.{where} to {len(theirs)}.")  # fmt: skip
            plain = [list(value) if isinstance(value, tuple) else value for value in theirs]
            if ours is not None and ours != plain:
                first = next(i for i, pair in enumerate(zip(ours, plain, strict=True)) if pair[0] != pair[1])
                raise ModelError(f"Number {first} of {name} is {ours[first]!r} in the model and {plain[first]!r} in "
                                 f"the data; give the data the model's order, or the model's vocabulary {name}: "
                                 "null.")  # fmt: skip
            self.hparams["vocabulary"] = {**(self.hparams.vocabulary or {}), name: plain}

    @override
    def setup(self, stage: str) -> None:
        self.adopt_vocabulary(self._data)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the rows that have a target (not -1); 0 where none has, still with a gradient to every weight."""
        smoothing = self.training_arguments["label_smoothing"]
        if target.is_floating_point():
            return F.cross_entropy(logits.float(), target.float(), label_smoothing=smoothing)
        total = F.cross_entropy(logits.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        return total / (target >= 0).sum().clamp_min(1)

    @property
    def action_numbers(self) -> Tensor:
        """The challenge's number of each action, int64 (num_classes,), on the module's device."""
        pairs = self._actions()
        return pairs[:, 0] * ACTION_BASE + pairs[:, 1]

    def _actions(self) -> Tensor:
        """Verb and noun of each action, int64 (num_classes, 2)."""
        actions = self.vocabulary["actions"]
        if actions is None:
            raise ModelError("The model does not know which verb and noun its actions are; train it with a DataModule "
                             "that has actions, or set model.vocabulary.actions.")  # fmt: skip
        return torch.tensor(actions, device=self.mean.device)

    def _evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        scores = self.predict_scores(batch)
        # As in training, but of the mean over the views; an action that no training segment had has no term.
        terms = [
            F.nll_loss(scores[name].clamp_min(1e-12).log(), batch[name], ignore_index=-1, reduction="none")
            for name in self.heads
        ]
        labelled = (batch["verb"] >= 0) & (batch["noun"] >= 0)
        self.mean_loss.update(sum(terms[1:], terms[0]), torch.where(labelled, batch["index"], -1))
        self.metrics.update(
            **scores,
            actions=self.action_numbers,
            truth=torch.stack([batch["verb"], batch["noun"]], dim=1),
            unseen=batch["unseen"],
            tail=batch["tail"],
            index=batch["index"],
        )
        return scores

    @override
    def log_results(self, stage: str) -> None:
        result = {**self.metrics.compute(), "loss": self.mean_loss.compute()}
        self.metrics.reset()
        self.mean_loss.reset()
        result.pop("samples")
        # One name for both tasks, by which recipes choose the best checkpoint: the challenges' main number.
        recognition = self.hparams.task == "recognition"
        result["score"] = result["action_top1" if recognition else "action_recall5"]
        shown = {"score", "verb_top1", "noun_top1"} if recognition else {"score", "verb_recall5", "noun_recall5"}
        for bar in (True, False):
            chosen = {f"{stage}/{k}": v for k, v in result.items() if (k in shown) == bar}
            self.log_dict(chosen, prog_bar=bar, sync_dist=True)

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """What `lightning_modules.callbacks.Report` takes. An action that is none of the model's counts as wrong."""
        scores = self._evaluate(batch)
        labelled = (batch["verb"] >= 0) & (batch["noun"] >= 0)
        action = torch.where(batch["action"] >= 0, batch["action"], self.num_classes)
        truth = {"action": action, "verb": batch["verb"], "noun": batch["noun"]}
        known = self.vocabulary
        return {
            "scores": {kind: scores[kind] for kind in truth},
            "truth": {kind: torch.where(labelled, classes, -1) for kind, classes in truth.items()},
            "names": {"action": self.class_names, "verb": known["verb_names"], "noun": known["noun_names"]},
        }

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probabilities on the CPU with the segments they belong to; unreadable ones are left out.

        ``path`` and ``narration_id`` (lists), ``verb`` (B', V), ``noun`` (B', N), ``scores`` (B', num_classes) of the
        actions, and the best hundred actions: ``best`` int64 (B', 100), numbers, and ``best_scores``. They are those of
        the action head, or products of verb and noun where it has fewer than a hundred. ``truth`` int64 (B',), of
        batches with labels, is the action, -1 for one that is unknown or none of the model's.
        """
        kept = [i for i, index in enumerate(batch["index"].tolist()) if index >= 0]
        scores = self.predict_scores(batch)
        if self.num_classes >= SUBMITTED:
            top = scores["action"].topk(SUBMITTED, dim=1)
            best, values = self.action_numbers[top.indices], top.values
        else:
            pairs = scores["verb"].shape[1] * scores["noun"].shape[1]
            best, values = best_pairs(scores["verb"], scores["noun"], min(SUBMITTED, pairs))
        found = {"verb": scores["verb"], "noun": scores["noun"], "scores": scores["action"], "best": best,
                 "best_scores": values}  # fmt: skip
        if "action" in batch:
            found["truth"] = batch["action"]
        names = {name: [batch[name][i] for i in kept] for name in ("path", "narration_id")}
        return {**names, **{name: values[kept].cpu() for name, values in found.items()}}


def _is_named(entry: object, limits: tuple[int, int] | None) -> bool:
    """Whether an entry of the vocabulary is a name or, where there are limits, an action: two numbers below them."""
    if limits is None:
        return isinstance(entry, str)
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        return False
    return all(type(number) is int and 0 <= number < limit for number, limit in zip(entry, limits, strict=True))
