"""Recognition and anticipation of actions with MambaVL, guided by questions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.base import IMAGENET_MEAN, IMAGENET_STD, BaseModule
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import ClipTokenizer, load_clip
from lightning_modules.nets.mambavl import MambaVL, build_text_tower, text_sizes_of
from lightning_modules.nets.videomamba import VideoMamba, adapt_state_dict
from lightning_modules.training.epic_metrics import ACTION_BASE, TASKS, EpicMetrics, best_pairs
from lightning_modules.training.metrics import SampleMean
from lightning_modules.training.optim import Optim

__all__ = ["ActionRecognition", "Answer"]

SUBMITTED = 100
"""Actions of a segment that the challenge wants."""


class Answer(NamedTuple):
    """One answer to a question; ``kind`` is "verb", "noun" or "action", ``probability`` in [0, 1]."""

    text: str
    probability: float
    kind: str


class ActionRecognition(BaseModule):
    """MambaVL: which verb, which noun and which action a clip shows, and answers to questions about it.

    Training asks a question about each clip (docs/batches.md): the fused representation has to give verb, noun and
    action whatever is asked, and the answer to what is asked. Validation, testing and prediction ask the neutral
    question, so that nothing leaks. What is seen is a clip and a VideoMamba on it, or features extracted before.

    The text tower is told by its sizes (``text``, random weights) or by a CLIP checkpoint (``text_weights``), whose
    sizes then become part of the config: what was trained is loaded again without the checkpoint. The tokenizer's word
    pieces are saved with the weights; without a checkpoint they are learned from the DataModule's ``captions``.

    Args:
        num_classes: number of actions (pairs of verb and noun that are known). None is filled in from the data by the
            ``lightning`` command.
        num_verbs: number of verbs.
        num_nouns: number of nouns.
        embed_dim: width of a token of the VideoMamba.
        depth: number of its blocks.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token.
        feature_dim: width of features that take the place of clip and VideoMamba; None sees clips.
        text: sizes of the text tower, see `lightning_modules.nets.mambavl.build_text_tower`; None takes those of
            ``text_weights``.
        max_words: tokens that a question is cut to, start and end included.
        fusion: "shared" (one state transition matrix for both modalities), or to compare with "separate", "concat",
            "cross_attention", "late"; see `lightning_modules.nets.mambavl.FusionBlock`.
        fusion_dim: width of the fusion.
        fusion_depth: number of fusion blocks.
        tokens: what the fusion sees of the VideoMamba's tokens: "all", "frames" (one for each) or "cls".
        task: "recognition", or "anticipation" of an action from what was seen before it: decides on the metrics.
        neutral_question: what is asked where nothing is.
        verb_names: of the verbs in the order of their logits.
        noun_names: of the nouns in the order of their logits.
        actions: verb and noun of each action in the order of their logits. The three come from the data at the start
            of a fit.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        short_side: pixels of the short side before cropping at test time; None means ``image_size``.
        sampling: how frames are picked, see `datamodules.video.sampling`.
        frame_stride: frames between two picked ones where ``sampling`` is "dense".
        interpolation: "bilinear" or "bicubic".
        scan_order: of the VideoMamba, see `lightning_modules.nets.scan_orders`.
        text_weights: CLIP checkpoint whose text tower to start from, ``openai/clip-vit-base-patch32`` or a folder.
        question_weight: weight of the loss of the answers beside that of verb, noun and action.
        drop: dropout before the heads.
        drop_path: stochastic depth of the VideoMamba's last block, growing linearly from 0; none where it is frozen.
        label_smoothing: share of the target spread over all classes.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba`.
        checkpoint_blocks: how many of the VideoMamba's blocks are recomputed in the backward pass to save memory.
        compile: run the VideoMamba's blocks through torch.compile.
        init_from: weights that the ``lightning`` command starts from: a classifier, whose VideoMamba is taken, or a
            model of this kind.
        freeze_backbone: leave the VideoMamba as it is.
        freeze_text: leave the text tower as it is.
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Raises:
        ModelError: sizes, names or options that do not exist or do not fit.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        num_verbs: int = 97,
        num_nouns: int = 300,
        embed_dim: int = 192,
        depth: int = 24,
        num_frames: int = 16,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 1,
        feature_dim: int | None = None,
        text: dict | None = None,
        max_words: int = 16,
        fusion: str = "shared",
        fusion_dim: int = 384,
        fusion_depth: int = 4,
        tokens: str = "all",
        task: str = "recognition",
        neutral_question: str = "what is happening?",
        verb_names: list[str] | None = None,
        noun_names: list[str] | None = None,
        actions: list[list[int]] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        short_side: int | None = None,
        sampling: str = "sparse",
        frame_stride: int = 4,
        interpolation: str = "bilinear",
        scan_order: str = "spatial_first",
        *,
        text_weights: str | None = None,
        question_weight: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.1,
        init: str = "mamba",
        checkpoint_blocks: int = 0,
        compile: bool = False,
        init_from: str | None = None,
        freeze_backbone: bool = False,
        freeze_text: bool = False,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__()
        self.save_config(locals())
        if num_classes is None or num_classes < 1:
            raise ModelError(f"num_classes is {num_classes}; there has to be at least 1 action.")
        if task not in TASKS:
            raise ModelError(f"task is {task!r}; choose one of {', '.join(TASKS)}.")
        sizes = {"verb_names": num_verbs, "noun_names": num_nouns, "actions": num_classes}
        for name, size in sizes.items():
            if self.hparams[name] is not None and len(self.hparams[name]) != size:
                raise ModelError(f"{name} has {len(self.hparams[name])} entries for {size} outputs; make them agree.")
        self.num_classes = num_classes
        tower, merges = self._text_tower(text, text_weights)
        config = tower.config
        if max_words > config.max_position_embeddings:
            raise ModelError(f"The text tower has {config.max_position_embeddings} positions; max_words {max_words} "
                             "may not exceed them.")  # fmt: skip
        tokenizer = ClipTokenizer(config.vocab_size, max_words)
        if merges is not None:
            tokenizer.set_merges(merges)
        vision = None
        try:
            if feature_dim is None:
                vision = VideoMamba(
                    0,
                    embed_dim,
                    depth,
                    num_frames,
                    image_size,
                    patch_size,
                    tubelet_size,
                    drop_path=0.0 if freeze_backbone else drop_path,
                    init=init,
                    checkpoint_blocks=checkpoint_blocks,
                    scan_order=scan_order,
                )
            self.net = MambaVL(
                vision,
                feature_dim or embed_dim,
                tower,
                tokenizer,
                fusion_dim,
                fusion_depth,
                fusion,
                tokens,
                num_verbs,
                num_nouns,
                num_classes,
                drop,
            )
        except ValueError as error:
            raise ModelError(str(error)) from error
        if freeze_backbone and vision is not None:
            vision.requires_grad_(False)
        tower.requires_grad_(not freeze_text)
        self.set_normalisation(mean, std)
        self.metrics = EpicMetrics(task)
        self.mean_loss = SampleMean()

    def _text_tower(self, text: dict | None, text_weights: str | None) -> tuple:
        """The tower, and the tokenizer's word pieces where there is a checkpoint."""
        if text_weights is None and text is None:
            raise ModelError("text and text_weights are both missing; name a CLIP checkpoint in text_weights, or give "
                             "the sizes of the text tower in text ({} is ViT-B/32's).")  # fmt: skip
        if text_weights is None:
            return build_text_tower(text), None
        clip, merges = load_clip(text_weights)
        tower = clip.text_model
        if text is None:
            self.hparams["text"] = text_sizes_of(tower)
            return tower, merges
        with torch.device("meta"):  # sizes without weights
            wanted = text_sizes_of(build_text_tower(text))
        if text_sizes_of(tower) != wanted:
            raise ModelError(f"text and {text_weights!r} have different sizes; set model.text to null to take "
                             "those of the checkpoint.")  # fmt: skip
        return tower, merges

    @property
    def class_names(self) -> list[str] | None:
        """Names of the actions; None before the vocabulary is known."""
        h = self.hparams
        if h.verb_names is None or h.noun_names is None or h.actions is None:
            return None
        return [f"{h.verb_names[verb]} {h.noun_names[noun]}" for verb, noun in h.actions]

    @property
    def answer_names(self) -> list[tuple[str, str]]:
        """(text, kind) of each output of the answer head: verbs, then nouns, then actions."""
        h = self.hparams
        sizes = {"verb": h.num_verbs, "noun": h.num_nouns, "action": self.num_classes}
        names = {"verb": h.verb_names, "noun": h.noun_names, "action": self.class_names}
        return [(name, kind) for kind, n in sizes.items() for name in names[kind] or [f"{kind} {i}" for i in range(n)]]

    def adopt_classes(self, names: Sequence[str]) -> None:
        """Compares the number of actions with the data's.

        Raises:
            ModelError: it differs.
        """
        if len(names) != self.num_classes:
            raise ModelError(f"The data has {len(names)} actions and the model {self.num_classes}; "
                             f"set model.num_classes to {len(names)}.")  # fmt: skip

    def setup(self, stage: str) -> None:
        """Takes the data's vocabulary, and learns word pieces from its captions where there is no tokenizer.

        Raises:
            ModelError: the data has another vocabulary than the model, or nothing to learn word pieces from.
        """
        data = self.trainer.datamodule
        for name, size in (("verb_names", "num_verbs"), ("noun_names", "num_nouns"), ("actions", "num_classes")):
            theirs = getattr(data, name, None)
            if theirs is None:
                continue
            ours = self.hparams[name]
            if len(theirs) != self.hparams[size]:
                raise ModelError(f"The data has {len(theirs)} {name} and the model {self.hparams[size]}; "
                                 f"set model.{size} to {len(theirs)}.")  # fmt: skip
            plain = [list(value) if isinstance(value, tuple) else value for value in theirs]
            if ours is not None and ours != plain:
                first = next(i for i, pair in enumerate(zip(ours, plain, strict=True)) if pair[0] != pair[1])
                raise ModelError(f"Number {first} of {name} is {ours[first]!r} in the model and {plain[first]!r} in "
                                 f"the data; give the data the model's order, or the model {name}: null.")  # fmt: skip
            self.hparams[name] = plain
        tokenizer = self.net.tokenizer
        if stage == "fit" and tokenizer.is_empty:
            captions = getattr(data, "captions", None)
            if captions is None:
                raise ModelError(
                    "The tokenizer has no word pieces and the data no captions to learn them from; name a CLIP "
                    "checkpoint in text_weights, or set text.vocab_size to 514 (bytes)."
                )
            tokenizer.learn([*captions, self.hparams.neutral_question])

    def forward(self, video: Tensor, questions: Sequence[str] | None = None) -> Tensor:
        """Logits of the actions (B, num_classes).

        Args:
            video: (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped); features (B, N, feature_dim) for a model
                on features.
            questions: B texts; None, or an empty one, is the neutral question.
        """
        return self.forward_heads(video, questions)["action"]

    def forward_heads(self, video: Tensor, questions: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Logits of all heads, see `lightning_modules.nets.mambavl.MambaVL.forward`; arguments as in `forward`."""
        questions = [question or self.hparams.neutral_question for question in questions or [""] * len(video)]
        return self.net(self._network_input(video), questions)

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """The joint vectors under the neutral question (B, D), or with ``pool=None`` the vision tokens (B, N, D)."""
        tokens = self.net.encode_vision(self._network_input(video))
        if pool is None:
            return tokens
        return self.net.fuse(tokens, *self.net.encode_text([self.hparams.neutral_question] * len(video)))

    def _network_input(self, video: Tensor) -> Tensor:
        if self.net.vision is not None:
            return self.normalise(video)
        if video.ndim != 3:
            raise ModelError(f"This model sees features (batch, tokens, {self.hparams.feature_dim}), extracted "
                             "beforehand, and not clips; `zoo extract` makes them.")  # fmt: skip
        if not video.is_floating_point():
            raise ModelError(f"The features are {str(video.dtype).removeprefix('torch.')}; pass float.")
        return video.to(self.mean.device, self.mean.dtype)

    @torch.no_grad()
    def answer(self, video: Tensor, question: str, topk: int = 5) -> list[Answer]:
        """The most probable answers to a question about one clip, best first.

        Args:
            video: views of it, (V, 3, T, H, W), or features (1, N, feature_dim); answers are averaged over views.
            question: in plain words; an empty one is the neutral question.
            topk: how many.
        """
        views = [self.forward_heads(view.unsqueeze(0), [question])["answer"].float().softmax(dim=1) for view in video]
        scores = torch.stack(views).mean(dim=0)[0]
        best = scores.topk(min(topk, len(scores)))
        names = self.answer_names
        return [
            Answer(names[i][0], p, names[i][1])
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model at other frames or another resolution; or of a classifier, whose VideoMamba is taken
        while everything else stays as it is.

        Raises:
            ModelError: a classifier's weights for a model without VideoMamba.
        """
        own = any(key.startswith(("net.vision.", "net.vision_proj.")) for key in state_dict)
        if self.net.vision is None:
            if own:
                return state_dict
            raise ModelError("This model sees features and has no VideoMamba to start from other weights; leave out "
                             "init_from, or feature_dim.")  # fmt: skip
        prefix, ours = "net.vision." if own else "net.", "net.vision."
        vision = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        vision = {k: v for k, v in adapt_state_dict(vision, self.net.vision).items() if not k.startswith("head.")}
        rest = state_dict if own else self.state_dict()
        return {k: v for k, v in rest.items() if not k.startswith(ours)} | {ours + k: v for k, v in vision.items()}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        logits = self.forward_heads(self._seen(batch), batch.get("question"))
        smoothing, size = self.training_arguments["label_smoothing"], len(batch["verb"])
        loss = sum(self._loss(logits[name], batch[name], smoothing) for name in ("verb", "noun", "action"))
        answers = batch.get("answer", torch.full_like(batch["verb"], -1))
        answer_loss = self._loss(logits["answer"], answers, smoothing)
        loss = loss + self.training_arguments["question_weight"] * answer_loss
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train/loss_answer", answer_loss, batch_size=size, sync_dist=True)
        return loss

    @staticmethod
    def _seen(batch: dict) -> Tensor:
        return batch["features"] if "features" in batch else batch["video"]

    @staticmethod
    def _loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Mean over the rows that have a target (not -1); 0 where none has, still with a gradient to every weight."""
        total = F.cross_entropy(logits.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        return total / (target >= 0).sum().clamp_min(1)

    def predict_scores(self, batch: dict) -> dict[str, Tensor]:
        """Probabilities of verb, noun and action (B, ...) under the neutral question, averaged over the views."""
        seen = self._seen(batch)
        views = seen.unbind(1) if seen.ndim == 6 else [seen]
        found = [self.forward_heads(view) for view in views]
        return {
            name: torch.stack([logits[name].float().softmax(dim=1) for logits in found]).mean(dim=0)
            for name in ("verb", "noun", "action")
        }

    @property
    def action_numbers(self) -> Tensor:
        """The challenge's number of each action, int64 (num_classes,), on the module's device."""
        if self.hparams.actions is None:
            raise ModelError("The model does not know which verb and noun its actions are; train it with a DataModule "
                             "that has actions, or set model.actions.")  # fmt: skip
        pairs = torch.tensor(self.hparams.actions, device=self.device)
        return pairs[:, 0] * ACTION_BASE + pairs[:, 1]

    def _evaluate(self, batch: dict) -> None:
        scores = self.predict_scores(batch)
        # As in training, but of the mean over the views; an action that no training segment had has no term.
        terms = [
            F.nll_loss(scores[name].clamp_min(1e-12).log(), batch[name], ignore_index=-1, reduction="none")
            for name in ("verb", "noun", "action")
        ]
        labelled = (batch["verb"] >= 0) & (batch["noun"] >= 0)
        self.mean_loss.update(sum(terms), torch.where(labelled, batch["index"], -1))
        self.metrics.update(
            **scores,
            actions=self.action_numbers,
            truth=torch.stack([batch["verb"], batch["noun"]], dim=1),
            unseen=batch["unseen"],
            tail=batch["tail"],
            index=batch["index"],
        )

    def _log_metrics(self, stage: str) -> None:
        result = {**self.metrics.compute(), "loss": self.mean_loss.compute()}
        self.metrics.reset()
        self.mean_loss.reset()
        result.pop("samples")
        # One name for both tasks, by which recipes choose the best checkpoint: the challenges' main number.
        recognition = self.hparams.task == "recognition"
        result["score"] = result["action_top1" if recognition else "action_recall5"]
        shown = {"score", "verb_top1", "noun_top1"} if recognition else {"score", "verb_recall5", "noun_recall5"}
        # compute() has already joined the processes, so the mean over them changes nothing.
        for bar in (True, False):
            chosen = {f"{stage}/{k}": v for k, v in result.items() if (k in shown) == bar}
            self.log_dict(chosen, prog_bar=bar, sync_dist=True)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: dict, batch_idx: int) -> dict:
        """Probabilities on the CPU with the segments they belong to; unreadable ones are left out.

        ``path`` and ``narration_id`` (lists), ``verb`` (B', V), ``noun`` (B', N), ``scores`` (B', num_classes) of the
        actions, and the best hundred actions: ``best`` int64 (B', 100), numbers, and ``best_scores``. They are those of
        the action head, or products of verb and noun where it has fewer than a hundred.
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
        names = {name: [batch[name][i] for i in kept] for name in ("path", "narration_id")}
        return {**names, **{name: values[kept].cpu() for name, values in found.items()}}
