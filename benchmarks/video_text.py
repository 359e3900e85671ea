"""Videos and language: do all four losses fall, what is found among unseen clips, and what is re-ranking worth?

    python benchmarks/video_text.py train    [--seeds 0 1 2] [--steps 600] [--tuning 200]
    python benchmarks/video_text.py draw     picture of what train saved

A tiny `VideoTextPretraining` (64 channels, 4 blocks; BERT of 2 text layers and 2 fusion layers, word pieces learned
from the captions) on generated pairs, in the two stages of the official recipes:

- masked: 80 % of the patches of clips and 50 % of those of pictures, all four losses. The teacher is a small CLIP, made
  here first (`ablations_masked.train_clip`) from single frames of other clips.
- tuning: unmasked and without a teacher, at a fifth of the learning rate.

Pairs are clips of 8 frames of 48 px with three captions each, and pictures, half as many, whose captions say nothing of
motion. Batches of either kind follow each other at random (`datamodules.pairs.PairSampler`).

Losses are taken on held-out pairs before and after, drawn with the same random numbers.

Retrieval is tested on two sets of clips and captions that nobody was trained on:

- known: new scenes, whose combination of shape and colour was in the training pairs;
- new: scenes of the combinations that were left out of the training pairs, a quarter of all, as captions and as clips.
  (Not of the frames that the teacher was made from.)

The vectors rank all clips; then the matching head puts the k nearest in order, for several k. Its cost is the processor
time of the test with it less the time without. Three captions of each clip; ranks as in the published evaluation, so a
right answer that is not among the k nearest comes last. The last weights are scored.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from ablations_masked import WIDTH, train_clip
from common import REPOSITORY, RESULTS, machine, save
from lightning.pytorch import Callback, Trainer, seed_everything
from retrieval import BATCH, CLIP_FRAMES, SIDE, best_possible, spread
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import Draw, seeded
from datamodules.pairs import PairSampler
from datamodules.retrieval import collate_captions
from datamodules.synthetic.motion import CLASSES, COLOURS, PATTERNS, SHAPES, ClipSpec, clip_spec, render
from lightning_modules import VideoTextPretraining
from lightning_modules.nets import ClipTeacher
from lightning_modules.training.reranking import Reranker

LAYERS = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {
    "embed_dim": 64, "depth": 4, "num_frames": CLIP_FRAMES, "image_size": SIDE, "patch_size": 12, "dim": 64,
    "text": {**LAYERS, "vocab_size": 400, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0},
    "fusion_layers": 2, "max_words": 24, "mean": (0.2,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear",
}  # fmt: skip
LOSSES = ("vtc", "vtm", "mlm", "uta")
SEEDS = {"clips": 6, "pictures": 8}  # of the scenes
HELD_OUT = 256  # pairs of each kind
SETS = ("known", "new")
WINDOW = 20  # steps that a point of the curves is the mean of


def main() -> int:
    options = parse(sys.argv[1:])
    warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*|.*`train_dataloader`.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options.run(options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="train|draw")
    part = parts.add_parser("train")
    part.set_defaults(run=train)
    add = part.add_argument
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--clips", type=int, default=4000, help="training clips, of all motions in turn (default: 4000)")
    add("--videos", type=int, default=200, help="clips of each test set (default: 200)")
    add("--steps", type=int, default=600, help="of the masked stage (default: 600)")
    add("--tuning", type=int, default=200, help="steps of the unmasked stage (default: 200)")
    add("--clip-steps", type=int, default=800, help="steps that the teacher is made in (default: 800)")
    add("--topk", nargs="+", type=int, default=[10, 50], help="candidates to re-rank (default: 10 50)")
    add("--lr", type=float, default=2e-3, help="of the masked stage (default: 2e-3)")
    add("--output", type=Path, default=RESULTS / "video_text.json", metavar="FILE")
    part = parts.add_parser("draw")
    part.set_defaults(run=draw)
    part.add_argument("--results", type=Path, default=RESULTS / "video_text.json")
    part.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images" / "video_text.png", metavar="FILE")
    return parser.parse_args(arguments)


# ---- pairs ---------------------------------------------------------------------------------------------------------


class Scenes(NamedTuple):
    """Clips or pictures in memory: uint8 (N, 3, T, H, W), the captions of each, and what they were rendered from."""

    video: Tensor
    texts: list[tuple[str, ...]]
    specs: list[ClipSpec]


def left_out(spec: ClipSpec) -> bool:
    """Whether the combination of shape and colour is a test's alone; each shape and each colour is in training too."""
    return (list(SHAPES).index(spec.shape) + list(COLOURS).index(spec.colour)) % 4 == 0


def chosen(kind: str, split: str, count: int, new: bool = False) -> list[ClipSpec]:
    """The first `count` scenes of a split whose combinations are left out of the training, or are not."""
    found: list[ClipSpec] = []
    number = 0
    while len(found) < count:
        spec = clip_spec(SEEDS[kind], split, number, CLASSES[len(found) % len(CLASSES)])
        number += 1
        if left_out(spec) == new:
            found.append(spec)
    return found


def scenes(kind: str, split: str, count: int, new: bool = False) -> Scenes:
    """The same, rendered."""
    specs = chosen(kind, split, count, new)
    if kind == "pictures":
        return Scenes(torch.stack([pixels(spec)[:, :1] for spec in specs]), [still(spec) for spec in specs], specs)
    return Scenes(torch.stack([pixels(spec) for spec in specs]), [spec.captions for spec in specs], specs)


def pixels(spec: ClipSpec) -> Tensor:
    """uint8 (3, T, H, W): frames in equal steps."""
    frames = render(spec)[np.linspace(0, spec.num_frames - 1, CLIP_FRAMES).round().astype(int)]
    frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return frames.transpose(0, 1).contiguous()


def still(spec: ClipSpec) -> tuple[str, ...]:
    """Captions of a picture."""
    thing, texture = f"{spec.colour} {spec.shape}", f"{spec.background_colour} {PATTERNS[spec.background]}"
    return f"the {thing} in front of {texture}", f"{texture} with the {thing}", f"a picture of the {thing} on {texture}"


class PairSet(Dataset):
    """Pictures, then clips, each with one of its captions, drawn at random."""

    def __init__(self, pictures: Scenes, clips: Scenes) -> None:
        self.parts = (pictures, clips)
        self.num_images = len(pictures.video)

    def __len__(self) -> int:
        return sum(len(part.video) for part in self.parts)

    def __getitem__(self, draw: Draw) -> dict:
        part, place = self.parts[draw.index >= self.num_images], draw.index
        if place >= self.num_images:
            place -= self.num_images
        with seeded(draw.seed):
            text = part.texts[place][int(torch.randint(len(part.texts[place]), ()))]
        item = {"video": part.video[place], "text": text, "index": draw.index, "video_index": draw.index}
        return {**item, "seed": draw.seed}

    def loader(self, seed: int) -> DataLoader:
        parts = [(0, self.num_images, 1), (self.num_images, len(self), 1)]
        sampler = PairSampler(self.num_images, parts, BATCH, seed=seed)
        return DataLoader(self, BATCH, sampler=sampler, collate_fn=collate_captions)


class Gallery(Dataset):
    """Clips with all their captions."""

    def __init__(self, clips: Scenes) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips.video)

    def __getitem__(self, place: int) -> dict:
        texts = list(self.clips.texts[place])
        return {"video": self.clips.video[place], "text": texts, "index": place, "video_index": place}

    def loader(self) -> DataLoader:
        return DataLoader(self, BATCH, collate_fn=collate_captions)


class Pairs(NamedTuple):
    """All that is trained on and measured with."""

    train: PairSet
    held_out: PairSet
    galleries: dict[str, Gallery]
    captions: list[str]


def pairs(options: argparse.Namespace) -> Pairs:
    parts = [scenes("pictures", "train", options.clips // 2), scenes("clips", "train", options.clips)]
    held_out = PairSet(scenes("pictures", "val", HELD_OUT), scenes("clips", "val", HELD_OUT))
    galleries = {name: Gallery(scenes("clips", "test", options.videos, name == "new")) for name in SETS}
    captions = [text for part in parts for texts in part.texts for text in texts]
    return Pairs(PairSet(*parts), held_out, galleries, captions)


# ---- training ------------------------------------------------------------------------------------------------------


class Curves(Callback):
    """Means of the losses over windows of steps, of clips and of pictures."""

    def __init__(self) -> None:
        self.points: dict[str, dict[str, list]] = {}
        self._open: dict[tuple[str, str], list[float]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        kind = "pictures" if batch["video"].shape[2] == 1 else "clips"
        for name in LOSSES:
            if f"train/{name}" in trainer.callback_metrics:
                value = float(trainer.callback_metrics[f"train/{name}"])
                self._open.setdefault((kind, name), []).append(value)
        if trainer.global_step % WINDOW == 0:
            for (kind, name), values in self._open.items():
                points = self.points.setdefault(kind, {}).setdefault(name, [])
                points.append([trainer.global_step, round(statistics.fmean(values), 4)])
            self._open = {}


def train(options: argparse.Namespace) -> None:
    """Trains and tests once per seed, and saves after each."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(0)
    start = time.process_time()
    data = pairs(options)
    print(f"scenes rendered in {time.process_time() - start:.0f} s", flush=True)
    teacher, about = train_clip(options.clip_steps)
    settings = {key: getattr(options, key) for key in ("seeds", "clips", "videos", "steps", "tuning", "topk", "lr")}
    result: dict[str, Any] = {
        "machine": machine(), "settings": settings | {"batch": BATCH, "pictures": options.clips // 2}, "model": SIZES,
        "teacher": about, "chance": 1 / options.videos,
        "best_r1": {name: best_possible(gallery.clips.specs) for name, gallery in data.galleries.items()},
        "runs": [],
    }  # fmt: skip
    for seed in options.seeds:
        result["runs"].append(run(data, teacher, seed, options))
        result["summary"] = summary(result["runs"])
        save(result, options.output)
        print(json.dumps({k: v for k, v in result["runs"][-1].items() if k != "curves"}, indent=1), flush=True)
    print(json.dumps(result["summary"], indent=1))
    print(f"Saved to {options.output}")


def run(data: Pairs, teacher: ClipTeacher, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both stages and the tests with one seed."""
    seed_everything(seed, verbose=False)
    training = {"weight_decay": 0.05, "warmup_epochs": 1.0, "min_lr": 0.01 * options.lr}
    model = VideoTextPretraining(**SIZES, teacher=teacher, target_dim=WIDTH, optim={"lr": options.lr, **training})
    # What `train_clip` gave the teacher.
    model.clip_mean.fill_(SIZES["mean"][0])
    model.clip_std.fill_(SIZES["std"][0])
    model.net.words.learn(data.captions)
    masked, started = Curves(), time.process_time()
    before = held_out_losses(model, data)
    fit(model, data, options.steps, seed, masked)
    after = held_out_losses(model, data)

    tuned = VideoTextPretraining(**SIZES, optim={"lr": options.lr / 5, **training, "warmup_epochs": 0.2})
    tuned.load_state_dict(tuned.adapt_state_dict(model.state_dict()))
    unmasked, tuning = Curves(), held_out_losses(tuned, data)
    fit(tuned, data, options.tuning, seed, unmasked)
    minutes = (time.process_time() - started) / 60
    return {
        "seed": seed, "cpu_minutes": round(minutes, 2), "parameters": sum(p.numel() for p in tuned.parameters()),
        "held_out": {"masked": {"before": before, "after": after},
                     "tuning": {"before": tuning, "after": held_out_losses(tuned, data)}},
        "tests": tests(tuned, data, options.topk), "curves": {"masked": masked.points, "tuning": unmasked.points},
    }  # fmt: skip


def trainer_of(**arguments: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, **arguments)  # fmt: skip


def fit(model: VideoTextPretraining, data: Pairs, steps: int, seed: int, curves: Curves) -> None:
    trainer_of(max_steps=steps, callbacks=[curves]).fit(model, data.train.loader(seed))


@torch.no_grad()
def held_out_losses(model: VideoTextPretraining, data: Pairs) -> dict[str, dict[str, float]]:
    """Means over batches of the held-out pairs, by kind, with random numbers of their own."""
    model.trainer = trainer_of()
    found: dict[str, dict[str, list[float]]] = {"clips": {}, "pictures": {}}
    model.eval()
    with seeded(1):
        for batch in data.held_out.loader(0):
            kind = found["pictures" if batch["video"].shape[2] == 1 else "clips"]
            for name, loss in model.losses(batch).items():
                kind.setdefault(name, []).append(loss.item())
    model.train()
    return {kind: {n: round(statistics.fmean(v), 4) for n, v in names.items()} for kind, names in found.items()}


def tests(model: VideoTextPretraining, data: Pairs, topk: Sequence[int]) -> list[dict[str, Any]]:
    """Scores of the vectors and of re-ranking, with the processor time that the latter takes."""
    rows = []
    for name, gallery in data.galleries.items():
        model.training_arguments["rerank"] = 0
        scores, alone = test(model, gallery)
        rows.append({"set": name, "topk": 0, "cpu_seconds": round(alone, 2), **picked(scores, "test/")})
        for k in topk:
            model.training_arguments["rerank"], model.reranker = k, Reranker(k)
            scores, taken = test(model, gallery)
            queries = sum(len(texts) for texts in gallery.clips.texts) + len(gallery)
            per_query = round(1e3 * (taken - alone) / queries, 3)
            rows.append({"set": name, "topk": k, "cpu_seconds": round(taken, 2), "ms_per_query": per_query,
                         **picked(scores, "test/reranked_")})  # fmt: skip
    return rows


def test(model: VideoTextPretraining, gallery: Gallery) -> tuple[dict[str, float], float]:
    start = time.process_time()
    (scores,) = trainer_of().test(model, gallery.loader(), verbose=False)
    return scores, time.process_time() - start


def picked(scores: dict[str, float], prefix: str) -> dict[str, float]:
    names = [f"{way}_{measure}" for way in ("t2v", "v2t") for measure in ("r1", "r5", "r10", "mnr")]
    return {name: round(scores[prefix + name], 4) for name in names}


def summary(runs: Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
    """Over the seeds, mean and standard deviation: the held-out losses before and after, and R@1 of each test, with
    the margin of re-ranking over the vectors of the same seed."""
    losses: list[dict[str, Any]] = []
    for stage, kind in ((s, k) for s in ("masked", "tuning") for k in ("clips", "pictures")):
        for name in runs[0]["held_out"][stage]["before"][kind]:
            row: dict[str, Any] = {"stage": stage, "kind": kind, "loss": name}
            for when in ("before", "after"):
                row |= spread(when, [r["held_out"][stage][when][kind][name] for r in runs])
            losses.append(row)
    ranks = []
    for test in runs[0]["tests"]:
        same = [next(t for t in r["tests"] if (t["set"], t["topk"]) == (test["set"], test["topk"])) for r in runs]
        alone = [next(t for t in r["tests"] if (t["set"], t["topk"]) == (test["set"], 0)) for r in runs]
        row = {"set": test["set"], "topk": test["topk"]}
        for way in ("t2v", "v2t"):
            row |= spread(f"{way}_r1", [t[f"{way}_r1"] for t in same])
            if test["topk"]:
                margins = [a[f"{way}_r1"] - b[f"{way}_r1"] for a, b in zip(same, alone, strict=True)]
                row |= spread(f"{way}_margin", margins)
        ranks.append(row)
    return {"losses": losses, "ranks": ranks}


# ---- picture -------------------------------------------------------------------------------------------------------


def draw(options: argparse.Namespace) -> None:
    """The four losses of both stages, a line for each seed, and R@1 before and after re-ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads(options.results.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), layout="constrained")
    colours, last = {"clips": "#2f6fb2", "pictures": "#e08a3c"}, result["settings"]["steps"]
    titles = {"vtc": "VTC, contrast", "vtm": "VTM, matching", "mlm": "MLM, hidden words", "uta": "UTA, alignment"}
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        for run, (kind, colour) in itertools.product(result["runs"], colours.items()):
            for stage, start in (("masked", 0), ("tuning", last)):
                points = run["curves"][stage].get(kind, {}).get(name, [])
                label = kind if run is result["runs"][0] and stage == "masked" else None
                axis.plot([start + step for step, _ in points], [v for _, v in points], color=colour, lw=1, label=label)
        if name != "uta":
            axis.axvline(last, color="#8a97a6", linestyle=":", linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlabel("steps; dotted: unmasked from here" if name == "vtc" else "steps")
    axes[0].legend(frameon=False, fontsize=9)
    cases = [0, *result["settings"]["topk"]]
    for i, topk in enumerate(cases):
        rows = [row for row in result["summary"]["ranks"] if row["topk"] == topk]
        places = [j + 0.8 / len(cases) * (i - (len(cases) - 1) / 2) for j in range(len(rows))]
        label = f"the {topk} nearest re-ranked" if topk else "vectors"
        shade = ["#1d2733", "#2f6fb2", "#7fb0dd", "#c3dbef"][i]
        axes[-1].bar(places, [100 * row["t2v_r1"] for row in rows], 0.75 / len(cases), color=shade, label=label,
                     yerr=[100 * row["t2v_r1_std"] for row in rows], ecolor="#8a97a6")  # fmt: skip
    axes[-1].set_xticks(range(len(SETS)), [f"{name} combinations" for name in SETS])
    axes[-1].set(ylim=(0, 119), yticks=range(0, 101, 20))
    axes[-1].set_title(f"R@1 in %, text to video, chance {100 * result['chance']:g}", loc="left", fontsize=11)
    axes[-1].legend(frameon=False, fontsize=8, loc="upper center")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
