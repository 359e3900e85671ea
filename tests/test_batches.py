"""docs/batches.md kept: a real batch of every DataModule goes through every module that accepts it."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torchvision.io import write_jpeg

from datamodules import (
    COIN,
    LSMDC,
    LVU,
    MSRVTT,
    MSVD,
    ActivityNet,
    Breakfast,
    CaptionCSV,
    DiDeMo,
    EpicKitchens100,
    EpicKitchensRetrieval,
    ImageNet,
    Kinetics,
    PairCorpora,
    SomethingSomethingV2,
    VideoCSV,
    VideoFolder,
    VideoReader,
)
from datamodules.annotations.question_files import GENERIC
from datamodules.synthetic.kitchen import generate_kitchen
from datamodules.synthetic.writing import generate
from lightning_modules import (
    ActionClassifier,
    ActionRecognition,
    DualEncoder,
    MaskedPretraining,
    SelfDistillation,
    VideoClassifier,
    VideoRegressor,
    VideoTextPretraining,
)
from lightning_modules.nets import ClipTeacher
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main

CLASSES = ("grow", "move_left")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("batches") / "data", num_train=4, num_val=2, num_test=2, classes=CLASSES,
                    size=(48, 40), num_frames=6, num_workers=0, progress=False)  # fmt: skip


def ssv2(root, **kwargs):
    """The generated videos with the annotations of Something-Something."""
    there = root.parent / "ssv2"
    there.mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("val", "validation")):
        entries = []
        for number, path in enumerate(sorted(root.glob(f"{split}/*/*.mp4"))):
            entries.append({"id": f"{len(split)}{number:04d}", "template": f"[{path.parent.name}]"})
            if not (there / f"{entries[-1]['id']}.mp4").exists():
                (there / f"{entries[-1]['id']}.mp4").symlink_to(path)
        (there / f"{name}.json").write_text(json.dumps(entries))
    (there / "labels.json").write_text(json.dumps({name: str(label) for label, name in enumerate(sorted(CLASSES))}))
    return SomethingSomethingV2(there, num_classes=2, **kwargs)


def imagenet(root, **kwargs):
    """First frames of the generated videos in the folders of ImageNet."""
    there = root.parent / "imagenet"
    for path in root.glob("[tv]*/*/*.mp4"):
        picture = there / path.relative_to(root).with_suffix(".JPEG")
        picture.parent.mkdir(parents=True, exist_ok=True)
        with VideoReader(path) as reader:
            write_jpeg(reader.read([0])[0], str(picture))
    return ImageNet(there, num_classes=2, num_crops=3, **kwargs)


def linked(root, name, place):
    """The generated videos of each split linked below a folder of their own, at `place(split, number, class)`."""
    there = root.parent / name
    for split in ("train", "val"):
        for number, path in enumerate(sorted(root.glob(f"{split}/*/*.mp4"))):
            link = there / place(split, number, path.parent.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path)
    return there


def breakfast(root, **kwargs):
    """The two motions as two of the ten activities."""
    person, activity = {"train": "P03", "val": "P47"}, {"grow": "cereals", "move_left": "coffee"}

    def place(split, number, motion):
        return f"{person[split]}/cam{number:02}/{person[split]}_{activity[motion]}.mp4"

    return Breakfast(linked(root, "breakfast", place), **kwargs)


def coin(root, **kwargs):
    there = linked(root, "coin", lambda split, number, motion: f"videos/{CLASSES.index(motion)}/{split}-{number}.mp4")
    subsets = {"train": "training", "val": "testing"}
    database = {path.stem: {"class": CLASSES[int(path.parent.name)], "recipe_type": int(path.parent.name),
                            "subset": subsets[path.stem.split("-")[0]]} for path in there.rglob("*.mp4")}  # fmt: skip
    (there / "COIN.json").write_text(json.dumps({"database": database}))
    return COIN(there, num_classes=2, **kwargs)


def lvu(root, task, **kwargs):
    """Each video is a scene of half a second."""
    there = linked(root, "lvu", lambda split, number, motion: f"{split}-{number}-{motion}.mp4")
    headers = {"relationship": "class_id class_name", "like_ratio": "like_count dislike_count"}
    names = {split: sorted(path.stem for path in there.glob(f"{split}*.mp4")) for split in ("train", "val")}
    (there / task).mkdir(exist_ok=True)
    for split, source in (("train", "train"), ("val", "val"), ("test", "val")):
        rows = [f"{headers[task]} youtube_id imdb_id"]
        for name in names[source]:
            label = CLASSES.index(name.split("-")[2])
            rows.append(f"{label} {CLASSES[label] if task == 'relationship' else 3} {name} tt0000000")
        (there / task / f"{split}.csv").write_text("\n".join(rows))
    durations = [f"{name},0.5" for group in names.values() for name in group]
    (there / "lvu_durations.csv").write_text("\n".join(["videoid,duration", *durations]))
    return LVU(there, task=task, **kwargs)


def sharded(root, **kwargs):
    """The same videos in tar shards."""
    there = root.parent / "shards"
    main(["shard", str(root), "-o", str(there)])
    return VideoFolder(there, **kwargs)


DATAMODULES = {
    "VideoFolder": lambda root, **kwargs: VideoFolder(root, **kwargs),
    "VideoFolder in shards": sharded,
    "VideoCSV": lambda root, **kwargs: VideoCSV(root, classes="classes.txt", **kwargs),
    "Kinetics": lambda root, **kwargs: Kinetics(root, num_classes=2, delimiter=",", **kwargs),
    "SomethingSomethingV2": ssv2,
    "ImageNet": imagenet,
}
MIXED_LABELS = {"mixup": 0.8, "cutmix": 1.0}
MIXING = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "repeats": 2}
MODULES = {
    "VideoClassifier": lambda: VideoClassifier(2, embed_dim=16, depth=1, num_frames=4, image_size=32),
    "VideoClassifier dense": lambda: VideoClassifier(2, 16, 1, num_frames=2, image_size=32, sampling="dense"),
    "VideoClassifier of images": lambda: VideoClassifier(2, 16, 1, num_frames=None, image_size=32),
    "SelfDistillation": lambda: SelfDistillation(
        teacher=VideoClassifier(3, 8, 1, num_frames=4, image_size=32),
        num_classes=2, embed_dim=16, depth=1, num_frames=4, image_size=32,
    ),
}  # fmt: skip


COMBINED = [
    pytest.param(
        data, module, mixing, id=f"{data}-{module}-{'mixed' if mixing else 'plain'}",
        # Quick are every data set with the plain classifier, and every module with a folder of videos.
        marks=() if data == "VideoFolder" or (module == "VideoClassifier" and not mixing) else pytest.mark.slow,
    )
    for data in DATAMODULES for module in MODULES for mixing in ({}, MIXING)
]  # fmt: skip


@pytest.mark.parametrize(("datamodule", "module", "mixing"), COMBINED)
def test_batches_fit(root, tmp_path, datamodule, module, mixing):
    data = DATAMODULES[datamodule](root, batch_size=2, num_workers=0, num_clips=2, **mixing)
    model = MODULES[module]()
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data, return_predictions=True)

    clip = model.preprocessing
    shape = (3, clip["num_frames"], clip["image_size"], clip["image_size"])
    for stage, batch in seen.items():
        views = (6,) if stage in ("test", "predict") else ()
        size = len(batch["label"])
        assert batch["video"].shape == (size, *views, *shape), stage
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert len(batch["path"]) == size and all(isinstance(path, str) for path in batch["path"])
        mixed = stage == "training" and bool(mixing)
        assert batch["video"].dtype == (torch.float32 if mixed else torch.uint8)
        assert ("target" in batch) == mixed
        if mixed:
            torch.testing.assert_close(batch["target"].sum(1), torch.ones(size))
    assert set(seen) == {"training", "validation", "test", "predict"}
    assert model.class_names == sorted(CLASSES)


# Long videos -------------------------------------------------------------------------------------------------------

WINDOWS = {"window_seconds": 0.2, "window_stride": 0.15}  # of half a second: from 0, 0.15 and 0.3 s on
LONG = {
    "Breakfast": (breakfast, 10),
    "COIN": (coin, 2),
    "LVU": (lambda root, **kwargs: lvu(root, "relationship", **kwargs), 4),
    "LVU windows": (lambda root, **kwargs: lvu(root, "relationship", **WINDOWS, **kwargs), 4),
    "LVU numbers": (lambda root, **kwargs: lvu(root, "like_ratio", **kwargs), None),
    "LVU windows with numbers": (lambda root, **kwargs: lvu(root, "like_ratio", **WINDOWS, **kwargs), None),
}


@pytest.mark.parametrize("datamodule", LONG)
def test_long_videos_fit(root, tmp_path, datamodule):
    """Classes go to `VideoClassifier`, numbers to `VideoRegressor`."""
    make, classes = LONG[datamodule]
    key = "label" if classes else "value"
    mixing = MIXING if classes else {"random_erasing": 0.5, "repeats": 2}
    data = make(root, batch_size=2, num_workers=0, num_clips=2, **mixing)
    sizes = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32}
    model = VideoClassifier(classes, **sizes) if classes else VideoRegressor(**sizes)
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    assert ("test/top1" if classes else "test/mse") in scores
    found = trainer.predict(model, datamodule=data, return_predictions=True)
    assert sum(len(batch["path"]) for batch in found) == 2

    windows = 3 if "windows" in datamodule else 1
    assert set(seen) == {"training", "validation", "test", "predict"}
    for stage, batch in seen.items():
        views = {"training": 0, "validation": windows if windows > 1 else 0}.get(stage, windows * 6)
        size = 4 if stage == "training" else 1 if windows > 1 or stage != "validation" else 2
        assert batch["video"].shape == (size, *([views] if views else []), 3, 4, 32, 32), stage
        assert batch[key].shape == (size,) and batch[key].dtype == (torch.int64 if classes else torch.float32)
        assert batch["index"].dtype == torch.int64 and all(isinstance(path, str) for path in batch["path"])
        assert ("target" in batch) == (stage == "training" and classes is not None)
        assert ("label" in batch) != ("value" in batch)
    assert getattr(model, "class_names", None) == data.class_names
    assert getattr(model, "value_name", None) == getattr(data, "value_name", None)


# Retrieval ---------------------------------------------------------------------------------------------------------


def captioned(root):
    """split -> [(id, captions)] of the generated videos, each linked as <id>.mp4 in a folder of its own."""
    there = root.parent / "captioned" / "videos"
    there.mkdir(parents=True, exist_ok=True)
    splits = {"train": {}, "val": {}, "test": {}}
    with open(root / "captions.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["video"].removesuffix(".mp4").replace("/", "_")
            splits[name.split("_")[0]].setdefault(name, []).append(row["caption"])
            if not (there / f"{name}.mp4").exists():
                (there / f"{name}.mp4").symlink_to(root / row["video"])
    return there.parent, {split: list(videos.items()) for split, videos in splits.items()}


def msrvtt(root, **kwargs):
    there, splits = captioned(root)
    videos = [{"video_id": name, "split": split} for split in splits for name, _ in splits[split]]
    sentences = [{"video_id": n, "caption": c} for split in splits for n, texts in splits[split] for c in texts]
    (there / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (there / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *(name for name, _ in splits["train"])]))
    rows = [f'ret{k},msr{k},{name},"{texts[0]}"' for k, (name, texts) in enumerate(splits["test"])]
    (there / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]))
    return MSRVTT(there, **kwargs)


def didemo(root, **kwargs):
    there, splits = captioned(root)
    for split, videos in splits.items():
        moments = [{"video": f"{name}.mov", "description": text} for name, texts in videos for text in texts]
        (there / f"{split}_data.json").write_text(json.dumps(moments))
    return DiDeMo(there, **kwargs)


def activitynet(root, **kwargs):
    there, splits = captioned(root)
    for split, name in (("train", "train"), ("val", "val_1")):
        told = {f"v_{name}": {"duration": 0.5, "sentences": texts} for name, texts in splits[split]}
        (there / f"{name}.json").write_text(json.dumps(told))
    return ActivityNet(there, **kwargs)


def lsmdc(root, **kwargs):
    there, splits = captioned(root)
    for split, name in (("train", "annos_training"), ("val", "annos_val"), ("test", "challenge_1000_publictect")):
        rows = ["\t".join([video, *4 * ["00.00.00.000"], text]) for video, texts in splits[split] for text in texts]
        (there / f"LSMDC16_{name}.csv").write_text("\n".join(rows))
    return LSMDC(there, **kwargs)


def msvd(root, **kwargs):
    there, splits = captioned(root)
    words = {name: [text.split() for text in texts] for split in splits for name, texts in splits[split]}
    (there / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    for split, videos in splits.items():
        (there / f"{split}_list.txt").write_text("\n".join(name for name, _ in videos))
    return MSVD(there, **kwargs)


RETRIEVAL = {"MSRVTT": msrvtt, "DiDeMo": didemo, "ActivityNet": activitynet, "LSMDC": lsmdc, "MSVD": msvd,
             "CaptionCSV": CaptionCSV}  # fmt: skip
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {"projection_dim": 16, "text_config": {"vocab_size": 600, **TOWER},
        "vision_config": {"image_size": 32, "patch_size": 16, **TOWER}}  # fmt: skip


@pytest.mark.parametrize("fps", [None, 4], ids=["sparse", "padded"])
@pytest.mark.parametrize("head", ["muse", "sequential"])
@pytest.mark.parametrize("datamodule", RETRIEVAL)
def test_captions_fit(root, tmp_path, datamodule, head, fps):
    data = RETRIEVAL[datamodule](root, batch_size=2, num_workers=0, fps=fps)
    model = TextVideoRetrieval(CLIP, head, num_frames=3, depth=1)
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    assert 1 <= scores["test/t2v_mnr"] <= 2 and 1 <= scores["test/v2t_mnr"] <= 2  # two videos
    for found in trainer.predict(model, datamodule=data, return_predictions=True):
        assert found["embedding"].shape == (len(found["path"]), 16)

    assert set(seen) == {"training", "validation", "test", "predict"}
    for stage, batch in seen.items():
        assert batch["video"].shape == (2, 3, 3, 32, 32) and batch["video"].dtype == torch.uint8, stage
        assert batch["index"].dtype == batch["video_index"].dtype == torch.int64
        assert len(batch["path"]) == 2 and all(isinstance(path, str) for path in batch["path"])
        assert all(isinstance(text, str if stage == "training" else list) for text in batch["text"])
        assert ("frame_mask" in batch) == (fps is not None)
        if fps is not None:
            assert batch["frame_mask"].shape == (2, 3) and batch["frame_mask"].dtype == torch.bool
            assert batch["frame_mask"].sum(1).tolist() == [2, 2]  # half a second at 4 frames a second


# Masked pretraining ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datamodule", ["VideoFolder", "SomethingSomethingV2", "Kinetics", "MSRVTT"])
def test_masked_pretraining_takes_videos_of_either_kind(root, tmp_path, datamodule):
    """It reads the video and the index alone: labels and captions may be there or not."""
    labelled = datamodule in DATAMODULES
    options = {"crop": "multi_scale"} if labelled else {}
    data = (DATAMODULES if labelled else RETRIEVAL)[datamodule](root, batch_size=2, num_workers=0, **options)
    torch.manual_seed(0)
    teacher = ClipTeacher(sizes={key: CLIP[key] for key in ("projection_dim", "vision_config")})
    model = MaskedPretraining(16, 2, num_frames=4, image_size=32, patch_size=8, target_dim=16, teacher=teacher)
    seen = []
    losses = model.clip_losses
    model.clip_losses = lambda video, *args: (seen.append(video), losses(video, *args))[1]
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite() and trainer.callback_metrics["val/loss"].isfinite()
    assert len(seen) >= 3 and all(video.shape == (2, 3, 4, 32, 32) and video.dtype == torch.uint8 for video in seen)


# Actions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "fusion"), [("recognition", "joint"), ("anticipation", "joint"),
                                              ("recognition", "published"), ("anticipation", "published"),
                                              ("recognition", None)])  # fmt: skip
def test_actions_fit(tmp_path, task, fusion):
    root = generate_kitchen(tmp_path / "kitchen", num_train=2, num_val=2, num_test=0, actions=2, size=(32, 32),
                            num_frames=6, num_workers=0, progress=False)  # fmt: skip
    mixed = fusion in ("published", None) and task == "recognition"
    data = EpicKitchens100(root, batch_size=2, num_workers=0, num_clips=2, num_crops=3, neutral=0.0,
                           **(MIXED_LABELS if mixed else {}))  # fmt: skip
    text = {"vocab_size": 514, **TOWER}
    fuser = {"dim": 16, "depth": 1} if fusion == "joint" else None
    vocabulary = {"num_verbs": 8, "num_nouns": 14}
    sizes = {"num_frames": 4, "image_size": 32, "task": task, "vocabulary": vocabulary}
    vision = {"embed_dim": 16, "depth": 1}
    if fusion is None:
        model = ActionClassifier(data.num_classes, vision, **sizes)
    else:
        model = ActionRecognition(data.num_classes, vision, text=text, fusion=fusion, fuser=fuser, **sizes)
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.test(model, datamodule=data, verbose=False)
    for found in trainer.predict(model, datamodule=data, return_predictions=True):
        assert found["scores"].shape == (len(found["path"]), data.num_classes)

    assert set(seen) == {"training", "validation", "test", "predict"}
    for stage, batch in seen.items():
        views = (6,) if stage in ("test", "predict") else ()
        blended = mixed and stage == "training"
        assert batch["video"].shape == (2, *views, 3, 4, 32, 32), stage
        assert batch["video"].dtype == (torch.float32 if blended else torch.uint8)
        for name in ("verb_target", "noun_target", "action_target"):
            assert (name in batch) == blended
        assert all(batch[key].dtype == torch.int64 for key in ("verb", "noun", "action", "index"))
        assert batch["unseen"].shape == (2,) and batch["tail"].shape == (2, 2)
        assert batch["unseen"].dtype == batch["tail"].dtype == torch.bool
        assert all(isinstance(text, str) for key in ("path", "narration_id") for text in batch[key])
        assert ("question" in batch) == ("answer" in batch) == (stage == "training")
        assert batch["verb_question"] == [GENERIC.verb] * 2 and batch["noun_question"] == [GENERIC.noun] * 2
    assert all(seen["training"]["question"]) and seen["training"]["answer"].dtype == torch.int64
    assert model.class_names == data.class_names


@pytest.mark.parametrize("module", ["TextVideoRetrieval", "VideoTextPretraining", "DualEncoder"])
def test_segments_and_sentences_fit(tmp_path, module):
    root = generate_kitchen(tmp_path / "kitchen", num_train=2, num_val=2, num_test=0, actions=2, size=(32, 32),
                            num_frames=6, num_workers=0, progress=False)  # fmt: skip
    data = EpicKitchensRetrieval(root, batch_size=2, num_workers=0)
    text = {"vocab_size": 100, **TOWER, "num_hidden_layers": 2}
    model = {
        "TextVideoRetrieval": lambda: TextVideoRetrieval(CLIP, "mean", num_frames=3),
        "VideoTextPretraining": lambda: VideoTextPretraining(16, 1, num_frames=3, image_size=32, text=text, dim=8,
                                                             fusion_layers=1),
        "DualEncoder": lambda: DualEncoder({"embed_dim": 16, "depth": 1}, {"vocab_size": 600, **TOWER}, dim=8,
                                           num_frames=3, image_size=32),
    }[module]()  # fmt: skip
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite() and 0 < trainer.callback_metrics["val/map"] <= 1
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    assert set(scores) == {f"test/{way}{name}" for way in ("", "v2t_", "t2v_") for name in ("map", "ndcg")}
    assert scores["test/map"] == pytest.approx((scores["test/v2t_map"] + scores["test/t2v_map"]) / 2)
    trainer.predict(model, datamodule=data, return_predictions=True)
    for stage, batch in seen.items():
        assert batch["video"].shape == (2, 3, 3, 32, 32) and batch["video"].dtype == torch.uint8, stage
        assert torch.equal(batch["index"], batch["video_index"]) and batch["index"].dtype == torch.int64
        assert all(isinstance(text, str if stage == "training" else list) for text in batch["text"])
        assert all(isinstance(text, str) for key in ("path", "narration_id") for text in batch[key])
        assert ("nouns" in batch) == ("verb" in batch) == ("segment" in batch) == (stage != "training")
        if stage != "training":
            assert batch["nouns"].shape == (2, 14) and batch["nouns"].dtype == torch.bool
            assert batch["verb"].dtype == batch["segment"].dtype == torch.int64


# Pairs -------------------------------------------------------------------------------------------------------------


def pair_corpora(root, **kwargs):
    """The generated videos, and their first frames as pictures."""
    there, splits = captioned(root)
    entries = {"videos": [], "pictures": []}
    for name, texts in splits["train"]:
        picture = there / f"{name}.jpg"
        with VideoReader(there / "videos" / f"{name}.mp4") as reader:
            write_jpeg(reader.read([0])[0], str(picture))
        entries["videos"].append({"video": f"{name}.mp4", "caption": texts})
        entries["pictures"].append({"image": picture.name, "caption": texts[0]})
    entries["val"] = [{"video": f"{name}.mp4", "caption": texts} for name, texts in splits["test"]]
    for name, content in entries.items():
        (there / f"{name}.json").write_text(json.dumps(content))
    corpora = [{"annotations": "videos.json", "media": "videos"}, {"annotations": "pictures.json"}]
    return PairCorpora(there, corpora=corpora, val="val.json", **kwargs)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("datamodule", ["PairCorpora", "MSRVTT", "MSVD"])
def test_pairs_fit(root, tmp_path, datamodule, masked):
    data = (RETRIEVAL | {"PairCorpora": pair_corpora})[datamodule](root, batch_size=2, num_workers=0)
    torch.manual_seed(0)
    teacher = ClipTeacher(sizes={key: CLIP[key] for key in ("projection_dim", "vision_config")}) if masked else None
    text = {"vocab_size": 100, **TOWER, "num_hidden_layers": 2}
    model = VideoTextPretraining(16, 2, num_frames=3, image_size=32, text=text, fusion_layers=1, dim=8,
                                 teacher=teacher, target_dim=16)  # fmt: skip
    seen = []
    losses = model.losses
    model.losses = lambda batch: (seen.append(batch), losses(batch))[1]
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    assert 1 <= scores["test/t2v_mnr"] <= 2 and 1 <= scores["test/reranked_t2v_mnr"] <= 2  # two videos
    kinds = {batch["video"].shape[2] for batch in seen}
    assert kinds == ({1, 3} if datamodule == "PairCorpora" else {3})
    for batch in seen:
        assert batch["video"].shape == (2, 3, batch["video"].shape[2], 32, 32)
        assert batch["video"].dtype == torch.uint8 and batch["video_index"].dtype == torch.int64
        assert len(batch["text"]) == len(batch["path"]) == 2 and all(isinstance(text, str) for text in batch["text"])


# Tables in four engines ----------------------------------------------------------------------------------------------


def _programs() -> dict[str, str]:
    """The programs of docs/batches.md, by the engine that the second word of their first line names."""
    text = (Path(__file__).parents[1] / "docs/batches.md").read_text(encoding="utf-8")
    section = text.split("## In your own pipeline")[1]
    programs = [part.split("```")[0] for part in section.split("```python\n")[1:]]
    return {program.split()[1].rstrip(","): program for program in programs}


@pytest.mark.parametrize(
    "engine", ["datasets", "pandas", "daft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zoo", "ray"))]
)
def test_the_documented_pipelines_give_labels(root, tmp_path, monkeypatch, engine):
    """Each in a process of its own, since engines start threads and servers."""
    pytest.importorskip({"zoo": "torch", "pandas": "pyspark"}.get(engine, engine))
    for name, clip in zip(("a.mp4", "b.mp4"), sorted(root.glob("train/*/*.mp4")), strict=False):
        shutil.copy(clip, tmp_path / name)
    program = _programs()[engine]
    last = "rows" if engine == "zoo" else "labels"
    told = f"\nprint('columns:', *sorted({last} if hasattr({last}, 'keys') else {last}.column_names))"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", program + told]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    columns = next(line for line in done.stdout.splitlines() if line.startswith("columns:")).split()
    assert {"labels", "error"} <= set(columns) or "found" in columns
