"""Numbers and words out of their range are refused by name, for every module and for the networks alone."""

import dataclasses
import math

import pytest
import torch

import lightning_modules as lm
from lightning_modules.checks import Range, check_range
from lightning_modules.errors import ModelError
from lightning_modules.nets import JointMambaVL, Muse, TimeMamba, VideoMamba, ViViM
from lightning_modules.nets.video_text import VideoTower

NAN, INF = math.nan, math.inf
SMALL = {"embed_dim": 16, "depth": 2, "num_frames": 2, "image_size": 32}
BERT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROBERTA = {**CLIP, "vocab_size": 261, "max_position_embeddings": 50}
TEXT = {**CLIP, "vocab_size": 514, "max_position_embeddings": 20}
MODULES = {
    "VideoClassifier": {**SMALL, "num_classes": 3},
    "VideoRegressor": SMALL,
    "SelfDistillation": {**SMALL, "num_classes": 3},
    "MaskedPretraining": {**SMALL, "target_dim": 8, "mask_type": "tube"},
    "TextVideoRetrieval": {
        "clip": {"projection_dim": 16, "text_config": TEXT, "vision_config": {**CLIP, "image_size": 32}},
        "head": "muse", "num_frames": 2, "max_words": 8, "depth": 1,
    },
    "ActionRecognition": {
        "num_frames": 2, "image_size": 32, "num_classes": 3, "vision": {"embed_dim": 16, "depth": 2}, "text": ROBERTA,
        "vocabulary": {"num_verbs": 2, "num_nouns": 2, "actions": [[0, 0], [0, 1], [1, 1]]},
    },
    "ActionClassifier": {
        "num_frames": 2, "image_size": 32, "num_classes": 3, "vision": {"embed_dim": 16, "depth": 2},
        "vocabulary": {"num_verbs": 2, "num_nouns": 2, "actions": [[0, 0], [0, 1], [1, 1]]},
    },
    "DualEncoder": {"vision": {"embed_dim": 16, "depth": 2}, "text": TEXT, "num_frames": 2, "image_size": 32,
                    "dim": 8, "max_words": 8},
    "VideoTextPretraining": {**SMALL, "text": BERT, "fusion_layers": 1, "dim": 8, "max_words": 8, "mask_type": "tube"},
}  # fmt: skip
# What no argument of that name may be, whichever modules have it.
WRONG = {
    "num_classes": (0, -1, True, "3", 1e9, 2.0),
    "embed_dim": (0, -16, None, NAN, 10**9, 10**5000, "16", [16]),
    "depth": (0, -1, None, 10**6),
    "num_frames": (0, -2, 10**9, 2.0),
    "image_size": (0, -32, None, 10**6, NAN),
    "patch_size": (0, -16, None),
    "tubelet_size": (0, -1, None),
    "target_dim": (0, -1),
    "align_layers": (0, 10**9),
    "dim": (0, -8, 10**9),
    "max_words": (0, 2, -1),
    "scales": ([], [0], [NAN], [0.3], "abc", None),
    "mean": ([0.5, 0.5], [NAN] * 3, [0.5, 0.5, INF], 0.5, None, ["a"] * 3),
    "std": ([0, 0, 0], [-1, -1, -1], [NAN] * 3, [1e-40] * 3, [1.0, 1.0], None),
    "short_side": (0, -1, 10**9, 0.5),
    "frame_stride": (0, -1, None),
    "value_mean": (NAN, INF, "a"),
    "drop": (-0.1, 1.0, NAN, None),
    "drop_path": (-0.1, 1.0, 1e9, NAN),
    "dropout": (-0.1, 1.0, NAN),
    "label_smoothing": (-0.1, 1.0, NAN),
    "mask_ratio": (-0.1, 1.0, NAN),
    "image_mask_ratio": (1.0, NAN),
    "word_ratio": (0.0, 1.1, NAN),
    "rerank": (-1, 0.5),
    "freeze_layers": (-1, 10**7),
    "teacher_epochs": (-1, 0.5),
    "margin": (-0.1, 2.1, NAN, None),
    "distill_weight": (-1.0, NAN, INF),
    "question_weight": (-1.0, NAN, INF),
    "lr": (0.0, -1.0, NAN, INF, None),
    "min_lr": (-1.0, NAN, INF),
    "warmup_lr": (-1.0, NAN),
    "warmup_epochs": (-1.0, NAN, INF),
    "warmup_share": (-0.1, 1.1, NAN),
    "weight_decay": (-1, NAN, INF),
    "betas": ((0.9,), (0.9, 1.0), (NAN, 0.9), 0.9, (-0.1, 0.9)),
    "eps": (0.0, NAN),
    "momentum": (-0.1, 1.0, NAN),
    "lr_samples": (0, -1, 0.5),
    "layer_decay": (0.0, 1.1, NAN, -1.0),
    "schedule": ("evil", None, 1),
    "layer_decay_scope": ("evil", None, 1),
}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_takes_a_number_out_of_its_range(name):
    cls, good = getattr(lm, name), MODULES[name]
    known = {*good} | set(cls.training_only())
    with torch.device("meta"):
        hparams = cls(**good).hparams
    for argument in WRONG:
        if argument not in known and argument not in hparams:
            continue
        for value in WRONG[argument]:
            with torch.device("meta"), pytest.raises(ModelError, match=rf"\b{argument}\b.* (is|has|are) ") as caught:
                cls(**{**good, argument: value})
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_optimiser_takes_no_number_out_of_its_range():
    for argument in WRONG.keys() & {field.name for field in dataclasses.fields(lm.Optim)}:
        for value in WRONG[argument]:
            with pytest.raises(ModelError, match=rf"optim\.{argument}\b.* is ") as caught:
                lm.Optim(**{argument: value})
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_range_is_tried_on_some_module():
    from lightning_modules.checks import _RANGES

    arguments = {field.name for field in dataclasses.fields(lm.Optim)}
    for name, good in MODULES.items():
        with torch.device("meta"):
            arguments |= set(getattr(lm, name)(**good).hparams) | set(getattr(lm, name).training_only())
    assert set(_RANGES) & arguments - set(WRONG) <= {"num_nouns", "fusion_layers", "align_interval",
                                                                      "teacher_interval"}  # fmt: skip


@pytest.mark.parametrize("sizes", [{"hidden_size": -1}, {"num_hidden_layers": 10**9}, {"layer_norm_eps": NAN},
                                   {"num_attention_heads": 0}, {"vocab_size": "many"}, {"no": 1}, [1], 5])  # fmt: skip
def test_sizes_of_towers(sizes):
    for name, key in (("VideoTextPretraining", "text"), ("ActionRecognition", "text"), ("DualEncoder", "text"),
                      ("TextVideoRetrieval", "clip")):  # fmt: skip
        given = {"text_config": sizes} if key == "clip" else sizes
        with pytest.raises(ModelError, match="text") as caught:
            getattr(lm, name)(**{**MODULES[name], key: given})
        assert "\n" not in str(caught.value)


def test_networks_alone():
    for wrong in ({"embed_dim": 0}, {"depth": 10**9}, {"num_frames": 0}, {"drop_path": NAN}, {"num_classes": -1}):
        for network in (VideoMamba, ViViM):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                network(**wrong)
    for wrong in ({"embed_dim": 0}, {"depth": 10**9}, {"heads": 0}, {"style": "evil"}, {"image_size": NAN}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TimeMamba(**wrong)
    assert isinstance(VideoMamba(0, 16, 1, None, 32).head, torch.nn.Identity)
    for wrong in ({"dim": 0}, {"depth": -1}, {"scales": ()}, {"dropout": 2.0}, {"learner": "evil"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Muse(**wrong)
    with pytest.raises(ValueError, match="dim is -1"):
        JointMambaVL(None, 8, None, None, -1, 1, "joint", "all", 2, 2, 2)
    with pytest.raises(ValueError, match="target_dim is 0"):
        VideoTower(16, 2, 2, 32, target_dim=0)


def test_the_sentence_names_argument_value_and_range():
    with pytest.raises(ModelError) as caught:
        check_range("drop_path", 1e9, Range(0, 1, below=True))
    assert str(caught.value) == "drop_path is 1000000000.0; it has to be a finite number of at least 0 and less than 1."
    with pytest.raises(ModelError) as caught:
        check_range("betas", [0.9], Range(0, 1, below=True, count=2))
    assert str(caught.value) == "betas is [0.9]; it has to be 2 finite numbers of at least 0 and less than 1."


class Own(lm.VideoClassifier):
    """A user's module, for which a name of ours means something else."""

    def __init__(self, depth: list[int], lr: float = 0.1) -> None:
        super(lm.VideoClassifier, self).__init__()
        self.save_config(locals())


def test_a_name_that_means_something_else_passes():
    assert Own([1, 2]).hparams.depth == [1, 2]
    with pytest.raises(ModelError, match="lr is -1"):
        Own([1], -1.0)


def test_integers_that_are_no_video_are_refused():
    for name, good in MODULES.items():
        module = getattr(lm, name)(**good)
        for dtype in (torch.int64, torch.int32, torch.int8, torch.bool):
            with pytest.raises(ModelError, match=rf"The video is {str(dtype)[6:]}; pass uint8 of 0 to 255 or float"):
                module(torch.zeros(1, 3, 2, 32, 32, dtype=dtype))
    features = lm.ActionRecognition(
        **MODULES["ActionRecognition"] | {"vision": {"tower": "features", "feature_dim": 8}}
    )
    with pytest.raises(ModelError, match="The features are int64; pass float"):
        features(torch.zeros(1, 4, 8, dtype=torch.int64))
