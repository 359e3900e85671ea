"""Recognition and anticipation of actions with MambaVL, guided by questions."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_modules.checks import check_choice, check_group, check_mapping
from lightning_modules.errors import ModelError
from lightning_modules.nets import mambavl, mambavl_joint
from lightning_modules.nets.avion import AvionTower
from lightning_modules.nets.clip_tower import ClipTokenizer, load_clip, load_image_tower
from lightning_modules.nets.mambavl import GENERIC_QUESTIONS, MambaVL
from lightning_modules.nets.mambavl_joint import JointMambaVL, build_text_tower, text_sizes_of
from lightning_modules.nets.roberta import RobertaWords, build_roberta, load_roberta, pretrained_sizes
from lightning_modules.nets.videomamba import VideoMamba, adapt_state_dict
from lightning_modules.tasks.actions import PREPROCESSING, VOCABULARY, ActionModule
from lightning_modules.tasks.text_video import learn_words
from lightning_modules.training.optim import Optim

if TYPE_CHECKING:
    from transformers import CLIPTextModel

__all__ = ["ActionRecognition", "Answer"]

# What each group of arguments may hold, with its defaults.
_TOWERS: dict[str, dict[str, Any]] = {
    "videomamba": {"embed_dim": 192, "depth": 24, "patch_size": 16, "tubelet_size": 1, "scan_order": "spatial_first"},
    "avion": {"embed_dim": 768, "depth": 12, "heads": 12, "patch_size": 16},
    "features": {"feature_dim": 768},
}
_FUSERS: dict[str, dict[str, Any]] = {
    **{name: {"dim": 384, "depth": 4, "tokens": "all"} for name in mambavl_joint.FUSIONS},
    **{name: {} for name in mambavl.FUSIONS},
    "transformer": {"depth": 6, "heads": 4, "positions": 5000},
}
_QUESTIONS = {"max_words": None, "neutral": "what is happening?"}
_MOVED = {
    **{name: ("vision", name) for tower in _TOWERS.values() for name in tower if name != "heads"},
    "max_words": ("questions", "max_words"),
    "neutral_question": ("questions", "neutral"),
    "fusion_dim": ("fuser", "dim"),
    "fusion_depth": ("fuser", "depth"),
    "tokens": ("fuser", "tokens"),
    **{name: ("vocabulary", name) for name in VOCABULARY},
    **{name: ("preprocessing", name) for name in PREPROCESSING},
}


Questions = Sequence[str] | Mapping[str, Sequence[str] | None] | None
"""What is asked about each clip of a batch, see `ActionRecognition.forward`."""


class Answer(NamedTuple):
    """One answer to a question; ``kind`` is "verb", "noun" or "action", ``probability`` in [0, 1]."""

    text: str
    probability: float
    kind: str


class ActionRecognition(ActionModule):
    """MambaVL: recognise the verb, the noun and the action of a clip, and answer questions about it.

    Two families (docs/mambavl.md):

    - **the published model** (``fusion`` "published", or its alternatives "disjoint", "mlp", "transformer"; see
      `lightning_modules.nets.mambavl`). It reads a question for the verb and one for the noun with each clip, through
      RoBERTa's frozen embedding layer. The probability of an action is the product of its verb's and its noun's.
    - **this zoo's own** (``fusion`` "joint", or to compare with "separate", "concat", "cross_attention", "late"; see
      `lightning_modules.nets.mambavl_joint`). It reads one question with each clip, through CLIP's text tower, and
      learns verb, noun and action whatever the question, and its answer. It is tested with the neutral question.

    Input is a clip, for a VideoMamba or AVION's tower, or features extracted before. The sizes of a text model from
    ``text_weights`` become part of the config, so a trained model loads without that checkpoint. The tokenizer's word
    pieces are saved with the weights; without a checkpoint they are learned from the DataModule's ``captions``.

    Args:
        num_classes: number of actions (pairs of verb and noun that are known). None is filled in from the data by the
            ``lightning`` command.
        vision: the kind of vision tower (``tower``) and its sizes. "videomamba" (the default) takes ``embed_dim``,
            ``depth``, ``patch_size``, ``tubelet_size``, ``scan_order`` (default: VideoMamba-Ti's); "avion" takes
            ``embed_dim``, ``depth``, ``heads``, ``patch_size`` (default: ViT-B/16's); "features" has no tower and
            takes ``feature_dim``, the width of the features.
        num_frames: frames of a clip.
        image_size: side of the square input in pixels.
        text: sizes of the text model, see `lightning_modules.nets.roberta.build_roberta` or, for the joint family,
            `lightning_modules.nets.mambavl_joint.build_text_tower`; None takes those of ``text_weights``.
        questions: ``max_words``, the maximum number of tokens, start and end included (default: 40, or 16 for the joint
            family), and ``neutral``, the question of the joint family if none is given.
        fusion: see above.
        fuser: sizes of the fusion. Joint family: ``dim`` (width, 384), ``depth`` (blocks, 4), ``tokens`` (what is seen
            of the tower's tokens: "all", "frames", one for each, or "cls"). "transformer": ``depth``, ``heads``,
            ``positions``. The others have none: their width is that of the vision's tokens.
        task: "recognition", or "anticipation" of an action from what was seen before it: decides on the metrics.
        vocabulary: ``num_verbs`` (97), ``num_nouns`` (300), and in the order of their logits ``verb_names``,
            ``noun_names`` and ``actions`` (verb and noun of each). The last three come from the data at the start of a
            fit.
        preprocessing: ``mean``, ``std``, ``short_side``, ``sampling``, ``frame_stride`` and ``interpolation``, as
            arguments of `lightning_modules.VideoClassifier`.
        text_weights: checkpoint to start from, a name or a folder: a RoBERTa (``FacebookAI/roberta-base``), or for the
            joint family a CLIP (``openai/clip-vit-base-patch32``).
        vision_weights: CLIP checkpoint for AVION's tower to start from (``openai/clip-vit-base-patch16``).
        question_weight: joint family: weight of the loss of the answers beside that of verb, noun and action.
        drop: dropout before the heads.
        drop_path: stochastic depth: of a VideoMamba's last block, growing linearly from 0; of every block of AVION's
            tower. A frozen tower has none.
        label_smoothing: share of the target spread over all classes.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba` and
            `lightning_modules.nets.mambavl.MambaVL`. In the published family "official" leaves nothing of RoBERTa's
            weights but takes its word pieces.
        activations: "speed", "balanced" or "memory": what the tower's blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations` and `lightning_modules.nets.avion.AvionTower`.
        compile: run the VideoMamba's blocks through torch.compile.
        init_from: weights that the ``lightning`` command starts from: a classifier, whose VideoMamba is taken, a model
            of this kind, or for AVION's tower a file of its pre-training.
        freeze_backbone: freeze the vision tower.
        freeze_text: freeze the text model; None freezes it in the published family only.
        as_coded: also compute the looser number of MambaVL's authors for the action, see
            `lightning_modules.training.epic_metrics.EpicMetrics`.
        optim: optimiser and schedule, see `lightning_modules.Optim`.

    Raises:
        ModelError: sizes, names or options that do not exist or do not fit.
    """

    init_stages = ("fit", "validate", "test", "predict")
    """Stages that ``init_from`` counts for: the authors' weights are tested without a training."""
    moved_arguments = _MOVED
    """Arguments of earlier releases: the group and the name that each has now."""

    net: MambaVL | JointMambaVL

    def __init__(
        self,
        num_classes: int | None = None,
        vision: dict[str, int | str] | None = None,
        num_frames: int = 16,
        image_size: int = 224,
        text: dict | None = None,
        questions: dict[str, int | str | None] | None = None,
        fusion: str = "published",
        fuser: dict[str, int | str] | None = None,
        task: str = "recognition",
        vocabulary: dict[str, int | list | None] | None = None,
        preprocessing: dict[str, int | str | list | None] | None = None,
        *,
        text_weights: str | None = None,
        vision_weights: str | None = None,
        question_weight: float = 1.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.1,
        init: str = "mamba",
        activations: str = "balanced",
        compile: bool = False,
        init_from: str | None = None,
        freeze_backbone: bool = False,
        freeze_text: bool | None = None,
        as_coded: bool = False,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__()
        self.save_config(locals())
        self.prepare(as_coded)
        check_choice("fusion", fusion, (*mambavl.FUSIONS, *mambavl_joint.FUSIONS))
        self.is_published = fusion in mambavl.FUSIONS
        self.heads = ("verb", "noun") if self.is_published else ("verb", "noun", "action")
        fuser = check_group("fuser", fuser, _FUSERS[fusion])
        self.net = self._published_net(fuser) if self.is_published else self._joint_net(fuser)
        if freeze_backbone and self.net.vision is not None:
            self.net.vision.requires_grad_(False)

    @classmethod
    def current_arguments(cls, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a config of any release as they are now: in groups, and with the fusion "shared" as "joint"."""
        arguments = dict(init_args)
        moved = {name: arguments.pop(name) for name in _MOVED if name in arguments}
        if arguments.get("fusion") == "shared" or (moved and "fusion" not in arguments):
            warnings.warn('fusion "shared" is called "joint" now: it is this zoo\'s own variant of MambaVL and not the '
                          'published model, which is fusion "published".', stacklevel=2)  # fmt: skip
            arguments["fusion"] = "joint"
        feature_dim = moved.pop("feature_dim", None)
        if feature_dim is not None:  # there was no tower, whatever its sizes
            moved = {name: value for name, value in moved.items() if _MOVED[name][0] != "vision"}
            arguments["vision"] = {"tower": "features", "feature_dim": feature_dim}
        for name, value in moved.items():
            group, entry = _MOVED[name]
            arguments[group] = {**(arguments.get(group) or {}), entry: value}
        return arguments

    def _vision_tower(self) -> tuple[VideoMamba | AvionTower | None, int]:
        """The tower (None for features) and the width of its tokens."""
        given = dict(check_mapping("vision", self.hparams.vision))
        name = given.pop("tower", "videomamba")
        check_choice("vision.tower", name, _TOWERS)
        sizes, training = check_group("vision", given, _TOWERS[name]), self.training_arguments
        weights = training["vision_weights"]
        if weights is not None and name != "avion":
            raise ModelError(f"vision_weights is {weights!r:.80} and vision.tower {name!r}; it is AVION's tower that "
                             "starts from CLIP's, so leave it out, or use init_from.")  # fmt: skip
        if name == "features":
            return None, sizes["feature_dim"]
        common = {
            "num_frames": self.hparams.num_frames,
            "image_size": self.hparams.image_size,
            "drop_path": 0.0 if training["freeze_backbone"] else training["drop_path"],
            "activations": training["activations"],
        }
        if name == "videomamba":
            return VideoMamba(0, **sizes, **common, init=training["init"]), sizes["embed_dim"]
        tower = AvionTower(**sizes, **common)
        if weights is not None:
            tower.start_from_clip(load_image_tower(weights), weights)
        return tower, sizes["embed_dim"]

    def _published_net(self, fuser: dict) -> MambaVL:
        h, training = self.hparams, self.training_arguments
        text, weights = h.text, training["text_weights"]
        if text is None and weights is None:
            raise ModelError("text and text_weights are both missing; name a RoBERTa checkpoint in text_weights, or "
                             "give the sizes of its embedding layer in text ({} is RoBERTa-base's).")  # fmt: skip
        if text is None:
            text = h["text"] = pretrained_sizes(weights)
        reader = build_roberta(text, whole=h.fusion not in mambavl.SCANNED)
        config = reader.config
        # Positions are counted from 2.
        tokenizer = RobertaWords(config.vocab_size, self._words(config.max_position_embeddings - 2))
        if weights is not None:
            # The official initialisation leaves nothing of them.
            tokenizer.set_pieces(load_roberta(reader, weights, weights=training["init"] != "official"))
        tower, width = self._vision_tower()
        net = MambaVL(
            tower, width, reader, tokenizer, self.vocabulary["num_verbs"], self.vocabulary["num_nouns"], h.fusion,
            fuser, training["init"], training["drop"],
        )  # fmt: skip
        reader.requires_grad_(training["freeze_text"] is False)
        return net

    def _joint_net(self, fuser: dict) -> JointMambaVL:
        h, training = self.hparams, self.training_arguments
        reader, merges = self._text_tower(h.text, training["text_weights"])
        tokenizer = ClipTokenizer(reader.config.vocab_size, self._words(reader.config.max_position_embeddings))
        if merges is not None:
            tokenizer.set_merges(merges)
        tower, width = self._vision_tower()
        if isinstance(tower, AvionTower):
            raise ModelError(f"fusion {h.fusion!r} takes a VideoMamba or features; set vision.tower to one of them, or "
                             "fusion to published.")  # fmt: skip
        sizes = self.vocabulary
        net = JointMambaVL(
            tower, width, reader, tokenizer, fuser["dim"], fuser["depth"], h.fusion, fuser["tokens"],
            sizes["num_verbs"], sizes["num_nouns"], self.num_classes, training["drop"],
        )  # fmt: skip
        reader.requires_grad_(not training["freeze_text"])
        return net

    @property
    def _asked(self) -> dict[str, Any]:
        return check_group("questions", self.hparams.questions, _QUESTIONS)

    def _words(self, positions: int) -> int:
        """Tokens of a question."""
        words = self._asked["max_words"] or (40 if self.is_published else 16)
        if words > positions:
            raise ModelError(f"The text model has {positions} positions; max_words {words} may not exceed them.")
        return words

    def _text_tower(self, text: dict | None, text_weights: str | None) -> "tuple[CLIPTextModel, Tensor | None]":
        """The tower, and the tokenizer's word pieces where there is a checkpoint."""
        if text_weights is None and text is None:
            raise ModelError("text and text_weights are both missing; name a CLIP checkpoint in text_weights, or give "
                             "the sizes of the text tower in text ({} is ViT-B/32's).")  # fmt: skip
        if text_weights is None:
            return build_text_tower(text or {}), None
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
    def answer_names(self) -> list[tuple[str, str]]:
        """(text, kind) of each possible answer: verbs, then nouns, then actions."""
        known = self.vocabulary
        sizes = {"verb": known["num_verbs"], "noun": known["num_nouns"], "action": self.num_classes}
        names = {"verb": known["verb_names"], "noun": known["noun_names"], "action": self.class_names}
        return [(name, kind) for kind, n in sizes.items() for name in names[kind] or [f"{kind} {i}" for i in range(n)]]

    def setup(self, stage: str) -> None:
        """Take the data's vocabulary, and learn word pieces from its captions where there is no tokenizer."""
        super().setup(stage)
        if stage == "fit":
            size = 261 if self.is_published else 514
            remedy = f"name a checkpoint in text_weights, or set text.vocab_size to {size} (bytes)"
            questions = [*GENERIC_QUESTIONS.values(), self._asked["neutral"]]
            learn_words(self.net.tokenizer, self._data, remedy, questions)

    @property
    def default_question(self) -> str:
        """What is asked where nothing is; of the published family the questions for verb and noun."""
        return " ".join(GENERIC_QUESTIONS.values()) if self.is_published else self._asked["neutral"]

    def forward(self, video: Tensor, questions: Questions = None) -> Tensor:
        """Logits of the actions (B, num_classes).

        Args:
            video: (B, 3, T, H, W), uint8 0..255 or float 0..1 (not clipped); features (B, N, feature_dim) for a model
                on features.
            questions: B texts; of the published family a mapping of "verb" and "noun" to B texts each, or B texts that
                both heads are asked. None, or an empty text, is the neutral question, or the two generic ones.

        Raises:
            ModelError: the published family does not know yet which actions there are.
        """
        logits = self.forward_heads(video, questions)
        if not self.is_published:
            return logits["action"]
        pairs = self._actions()
        verb, noun = (logits[name].float().log_softmax(dim=1) for name in ("verb", "noun"))
        return verb[:, pairs[:, 0]] + noun[:, pairs[:, 1]]

    def forward_heads(self, video: Tensor, questions: Questions = None) -> dict[str, Tensor]:
        """Logits of the heads; arguments as in `forward`.

        They are "verb" (B, num_verbs) and "noun" (B, num_nouns), and of the joint family also "action" and "answer".
        """
        seen, net = self._network_input(video), self.net
        nothing = [""] * len(video)
        if isinstance(net, JointMambaVL):
            return net(seen, [question or self._asked["neutral"] for question in questions or nothing])
        asked = questions if isinstance(questions, Mapping) else dict.fromkeys(GENERIC_QUESTIONS, questions)
        texts = ([q or generic for q in asked.get(kind) or nothing] for kind, generic in GENERIC_QUESTIONS.items())
        return net(seen, *texts)

    def forward_features(self, video: Tensor, pool: str | None = "cls") -> Tensor:
        """Vectors of the clips (B, D), or with ``pool=None`` the vision tokens (B, N, D).

        Of the joint family they are fused with the neutral question, of the published one before any question.
        """
        net = self.net
        tokens = net.encode_vision(self._network_input(video))
        if pool is None:
            return tokens
        if isinstance(net, MambaVL):
            return net.read_vision(tokens)
        return net.fuse(tokens, *net.encode_text([self._asked["neutral"]] * len(video)))

    def _network_input(self, video: Tensor) -> Tensor:
        if self.net.vision is not None:
            return self.normalise(video)
        if video.ndim != 3:
            width = (self.hparams.vision or {}).get("feature_dim", _TOWERS["features"]["feature_dim"])
            raise ModelError(f"This model sees features (batch, tokens, {width}), extracted beforehand, and "
                             "not clips; `zoo extract` makes them.")  # fmt: skip
        if not video.is_floating_point():
            raise ModelError(f"The features are {str(video.dtype).removeprefix('torch.')}; pass float.")
        return video.to(self.mean.device, self.mean.dtype)

    @torch.no_grad()
    def answer(self, video: Tensor, question: str, topk: int = 5) -> list[Answer]:
        """The most probable answers to a question about one clip, best first.

        Probabilities of the joint family add up to 1 over all answers. In the published family both heads are asked:
        those of the verbs add up to 1, and those of the nouns.

        Args:
            video: views of it, (V, 3, T, H, W), or features (1, N, feature_dim); answers are averaged over views.
            question: in plain words; an empty one is the neutral question, or the two generic ones.
            topk: how many.
        """
        heads = ("verb", "noun") if self.is_published else ("answer",)
        views = [self.forward_heads(view.unsqueeze(0), [question]) for view in video]
        means = [torch.stack([view[name].float().softmax(dim=1) for view in views]).mean(dim=0)[0] for name in heads]
        scores = torch.cat(means)  # in the order of answer_names, of which the published family has no actions
        best = scores.topk(min(topk, len(scores)))
        names = self.answer_names
        return [
            Answer(names[i][0], p, names[i][1])
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model at other frames or another resolution, or of this model's tower alone.

        Of a classifier the VideoMamba is taken, while everything else stays as it is.

        Raises:
            ModelError: a classifier's weights for a model without VideoMamba.
        """
        own = any(key.startswith(("net.vision.", "net.vision_proj.", "net.head0.")) for key in state_dict)
        tower = self.net.vision
        if tower is None or (isinstance(tower, AvionTower) and not own):
            if own:
                return state_dict
            what = "sees features" if tower is None else "has AVION's tower"
            raise ModelError(f"This model {what} and has no VideoMamba to start from other weights; leave out "
                             "init_from, or set vision.tower to videomamba.")  # fmt: skip
        prefix, ours = "net.vision." if own else "net.", "net.vision."
        vision = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        adapted = tower.adapt_state_dict(vision) if isinstance(tower, AvionTower) else adapt_state_dict(vision, tower)
        vision = {k: v for k, v in adapted.items() if not k.startswith("head.")}
        whole = any(key.startswith(("net.vision_proj.", "net.head0.")) for key in state_dict)
        rest = state_dict if whole else self.state_dict()
        return {k: v for k, v in rest.items() if not k.startswith(ours)} | {ours + k: v for k, v in vision.items()}

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        logits = self.forward_heads(self._seen(batch), self._questions(batch))
        size = len(batch["verb"])
        losses = [self._loss(logits[name], self._target(batch, name)) for name in self.heads]
        loss = sum(losses[1:], losses[0])
        if not self.is_published:
            answers = batch.get("answer", torch.full_like(batch["verb"], -1))
            answer_loss = self._loss(logits["answer"], answers)
            loss = loss + self.training_arguments["question_weight"] * answer_loss
            self.log("train/loss_answer", answer_loss, batch_size=size, sync_dist=True)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def _questions(self, batch: dict[str, Any]) -> Questions:
        if not self.is_published:
            return batch.get("question")
        return {kind: batch.get(f"{kind}_question") for kind in GENERIC_QUESTIONS}

    def _target(self, batch: dict[str, Any], name: str) -> Tensor:
        """Classes (B,), or where clips were mixed shares of them (B, K).

        Raises:
            ModelError: the clips are mixed, which leaves the answers of the joint family's questions without a target.
        """
        if name == "action" and "verb_target" in batch:
            raise ModelError(f"Mixed clips have no action of their own, for which fusion {self.hparams.fusion!r} has a "
                             "head; set data.mixup and data.cutmix to 0, or take the published fusion.")  # fmt: skip
        return batch.get(f"{name}_target", batch[name])

    @staticmethod
    def _seen(batch: dict[str, Any]) -> Tensor:
        return batch["features"] if "features" in batch else batch["video"]

    def predict_scores(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Probabilities of verb, noun and action (B, ...), averaged over the views.

        The joint family is asked the neutral question, the published one what the batch asks, else the generic ones.
        """
        seen = self._seen(batch)
        views = seen.unbind(1) if seen.ndim == 6 else [seen]
        questions = self._questions(batch) if self.is_published else None
        found = [self.forward_heads(view, questions) for view in views]
        scores = {
            name: torch.stack([logits[name].float().softmax(dim=1) for logits in found]).mean(dim=0)
            for name in self.heads
        }
        if self.is_published:
            pairs = self._actions()
            scores["action"] = scores["verb"][:, pairs[:, 0]] * scores["noun"][:, pairs[:, 1]]
        return scores

    def _reads_labels(self) -> bool:
        """Whether evaluation reads questions that were written with the labels: its scores know part of the answer."""
        return self.is_published and getattr(self._data, "questions", None) == "as_published"

    @override
    def log_results(self, stage: str) -> None:
        super().log_results(stage)
        if self._reads_labels():
            self.log(f"{stage}/questions_from_labels", 1.0, sync_dist=True)

    @override
    def on_validation_start(self) -> None:
        if self._reads_labels() and self.trainer.is_global_zero:
            warnings.warn("data.questions is as_published: questions made from the labels leak the answer, so these "
                          "scores are too high; set data.questions to generic to compare models.")  # fmt: skip

    on_test_start = on_validation_start
