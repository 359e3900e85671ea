"""Text-video retrieval: what the heads are worth, and what the learners cost.

    python benchmarks/retrieval.py heads     [--sets random twins] [--heads muse mean sequential] [--seeds 0 1 2]
    python benchmarks/retrieval.py learners  [--device cuda] [--learners bimamba mamba attention none]
    python benchmarks/retrieval.py draw      picture of what heads and learners saved

`heads`. MUSE and CLIP4Clip's mean pooling and sequential head on generated clips with three captions each, which name
shape, colour, background and motion. The CLIP towers are tiny and start at random, the word pieces are learned from the
captions; all heads have the same towers, clips, batches and number of steps, and the last weights are scored, so that
nothing is chosen on the test clips. Two sets:

- random: scenes drawn independently. A scene has one of 8 x 8 x 7 x 6 combinations of shape, colour, colour and
  pattern of the background, so that few of 200 clips need their motion to be told apart.
- twins: every scene in all eight motions, batches of whole scenes. Twins have the same shape, colours and background:
  without motion a caption finds one of eight at best by chance. What can be guessed without order is the pair of
  motions (left and right, ...), from how far the shape gets; so without order R@1 ends near 50 % at the very best.

Beside the measured R@1 stands the best possible one: captions leave out pace or not and scenes may coincide, so a
caption can fit several clips, and then a guess between them is right once in so many.

`learners`. One step (forward and backward) of MUSE's head at width 512, as the published one, the pyramid growing from
one scale to five over 12 frames of a 7 x 7 grid (ViT-B/32). Everything but the learner is the same; "none" is the rest.
"attention" is torch's fused one, which never holds the L x L matrix, "attention-written-out" holds it. Operations and
exponentials are counted, and the floor is what they take at measured rates (`common.rates`):

    blocks x (30 B L D^2 + 14 B L^2 D) / rate                                attention
    blocks x (6 B L (4 D^2 + 4 D (R + N)) / rate + floor of the scan)        bimamba; for the scan see `kernels.py`

with R = 32 for delta and N = 16 states: projections, the block's own included, count three times, the two products of
attention 3.5 times, since its backward makes one of them again. Their ratio grows with L / (2 D) without bound.
"""

import argparse
import csv
import itertools
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing
from common import (
    REPOSITORY,
    RESULTS,
    Rates,
    device_memory,
    device_name,
    device_time,
    machine,
    machine_slug,
    rates,
    save,
)
from kernels import COSTS, STATES, short
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from datamodules import CaptionCSV
from datamodules.synthetic.motion import CLASSES, MOTIONS, ClipSpec, clip_spec, render
from datamodules.synthetic.writing import generate, write_video
from lightning_modules import TextVideoRetrieval
from lightning_modules.nets.muse import LEARNERS, Muse

HEADS = {"muse": "MUSE", "mean": "mean pooling", "sequential": "sequential"}
SETS = {"random": 6, "twins": 7}  # with the seeds of their scenes
CLIP_FRAMES, SIDE, BATCH = 8, 48, 64
TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "projection_dim": 64,
    "text_config": {"vocab_size": 700, "max_position_embeddings": 40, **TOWER},
    "vision_config": {"image_size": SIDE, "patch_size": 12, **TOWER},
}
PACES = ("slowly", "steadily", "quickly")
GRID, FRAMES, WIDTH, DEPTH = 7, 12, 512, 4  # ViT-B/32 at 224 px, as published
PYRAMIDS = ((0.5,), (1,), (0.5, 1, 2), (0.25, 0.5, 1, 2, 4))
LONG_SECONDS = 5  # steps that take longer are measured once
WRITTEN_OUT = "attention-written-out"


def main() -> int:
    options = parse(sys.argv[1:])
    warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*")
    torch.manual_seed(0)
    options.run(options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="heads|learners|draw")
    add = _part(parts, "heads", heads, RESULTS / "retrieval_heads.json")
    add("--sets", nargs="+", default=["random"], choices=list(SETS), help="random, twins (default: random)")
    add("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--clips", type=int, default=4000, help="training clips, of all motions in turn (default: 4000)")
    add("--videos", type=int, default=200, help="test clips (default: 200)")
    add("--steps", type=int, nargs="+", default=[500], help="of each set (default: 500)")
    add("--data", type=Path, help="folder that keeps the clips for the next time; default: made anew and removed")
    add("--jobs", type=int, default=2, help="trainings side by side, one thread each (default: 2)")
    add = _part(parts, "learners", learners, None)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--learners", nargs="+", default=[*LEARNERS, WRITTEN_OUT], choices=[*LEARNERS, WRITTEN_OUT])
    add("--pyramids", type=int, default=len(PYRAMIDS), help=f"how many of {PYRAMIDS} (default: all)")
    add("--batch", type=int, default=1)
    add("--seconds", type=float, default=2.0, help="how long to repeat each step (default: 2)")
    add("--largest-gib", type=float, default=4.0, help="leave out what holds larger L x L matrices (default: 4)")
    add = _part(parts, "draw", draw, REPOSITORY / "docs" / "images" / "retrieval.png")
    add("--heads", type=Path, default=RESULTS / "retrieval_heads.json")
    add("--learners", type=Path, help="default: that of this machine")
    return parser.parse_args(arguments)


def _part(parts: Any, name: str, run: Any, output: Path | None) -> Any:
    part = parts.add_parser(name)
    part.set_defaults(run=run)
    part.add_argument("--output", type=Path, default=output, metavar="FILE")
    return part.add_argument


# ---- heads ---------------------------------------------------------------------------------------------------------


def heads(options: argparse.Namespace) -> None:
    """Trains every head with every seed on every set, side by side, and saves after each."""
    if len(options.steps) != len(options.sets):
        raise SystemExit("error: --steps takes a number for each of --sets.")
    keep = tempfile.TemporaryDirectory() if options.data is None else None
    data = Path(keep.name) if keep else options.data
    sets = {name: write_set(data / name, name, options.clips, options.videos) for name in options.sets}
    settings = {key: getattr(options, key) for key in ("sets", "heads", "seeds", "clips", "videos", "steps")}
    result: dict[str, Any] = {
        "machine": machine(), "settings": settings,
        "sets": {name: about(root) for name, root in sets.items()}, "chance": 1 / options.videos, "records": [],
    }  # fmt: skip
    # One thread a process: small products gain nothing from more, and two trainings at once do.
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    steps = dict(zip(options.sets, options.steps, strict=True))
    with ProcessPoolExecutor(options.jobs, torch.multiprocessing.get_context("spawn")) as pool:
        clips = {name: decode(root) for name, root in sets.items()}
        runs = [pool.submit(train, head, name, clips[name], seed, steps[name])
                for name, seed, head in itertools.product(options.sets, options.seeds, options.heads)]  # fmt: skip
        for run in as_completed(runs):
            result["records"].append(run.result())
            record = run.result()
            print("  ".join(f"{key} {short(value)}" for key, value in record.items()), flush=True)
            result["records"].sort(key=lambda r: (r["set"], list(HEADS).index(r["head"]), r["seed"]))
            result["summary"] = summary(result["records"])
            save(result, options.output)
    for row in result["summary"]:
        print("  ".join(f"{key} {short(value)}" for key, value in row.items()))
    print(f"Saved to {options.output}")


def write_set(root: Path, name: str, clips: int, videos: int) -> Path:
    """Writes the clips and captions.csv, unless they are there."""
    if name == "random":
        return generate(root, num_train=clips, num_val=8, num_test=videos, seed=SETS[name])
    if (root / "captions.csv").exists():  # written last
        return root
    for split, motion in itertools.product(("train", "val", "test"), CLASSES):
        (root / split / motion).mkdir(parents=True, exist_ok=True)
    per_split = {"train": clips, "val": 8, "test": videos}
    specs = {f"{split}/{motion}/{scene:05d}.mp4": clip_spec(SETS[name], split, scene, motion)
             for split, count in per_split.items() for scene in range(count // 8) for motion in CLASSES}  # fmt: skip
    with ProcessPoolExecutor(mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        list(pool.map(write_clip, [root / path for path in specs], specs.values(), chunksize=16))
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "caption"), *((p, c) for p, s in specs.items() for c in s.captions)])
    return root


def write_clip(path: Path, spec: ClipSpec) -> None:
    write_video(path, render(spec), spec.fps)


def about(root: Path) -> dict[str, Any]:
    """How many clips a set has, and the best possible R@1 of its test clips."""
    specs = [clip_spec(SETS[root.name], "test", int(p.stem), p.parent.name) for p in sorted(root.glob("test/*/*.mp4"))]
    return {"train": len(list(root.glob("train/*/*.mp4"))), "test": len(specs), "best_r1": best_possible(specs)}


def best_possible(specs: Sequence[ClipSpec]) -> dict[str, float]:
    """R@1 of somebody who sees all that captions say, guessing between the clips that a caption fits: knowing the
    motion, only the pair of it and its opposite, or nothing of it."""
    knows = {"motion": lambda s: s.motion, "pair": lambda s: MOTIONS[s.motion].axis, "no motion": lambda s: None}
    best = {}
    for name, sees in knows.items():
        shares = []
        for spec in specs:
            alike = [s for s in specs if scenery(s) == scenery(spec) and sees(s) == sees(spec)]
            for caption in spec.captions:
                # A model that cannot tell which attribute drifts cannot tell how fast it does.
                told = name == "motion" and any(pace in caption.split() for pace in PACES)
                shares.append(1 / sum(not told or s.pace == spec.pace for s in alike))
        best[name] = statistics.mean(shares)
    return best


def scenery(spec: ClipSpec) -> tuple[str, ...]:
    return spec.shape, spec.colour, spec.background, spec.background_colour


class Clips(NamedTuple):
    """A split in memory: uint8 (N, 3, T, H, W) and the captions of each clip."""

    video: Tensor
    texts: list[list[str]]


def decode(root: Path) -> dict[str, Clips]:
    """What the DataModule reads, once for all trainings."""
    data = CaptionCSV(root, num_frames=CLIP_FRAMES, image_size=SIDE, short_side=SIDE, sampling="sparse",
                      frame_stride=1, interpolation="bilinear", num_workers=0)  # fmt: skip
    splits = {}
    for split in ("train", "test"):
        dataset = data.make_dataset("test", data.listing(split), data.clip)
        items = [dataset[i] for i in range(len(dataset))]
        dataset.tally.check()
        splits[split] = Clips(torch.stack([item["video"] for item in items]), [item["text"] for item in items])
    return splits


class Pairs(LightningDataModule):
    """Clips in memory: an epoch takes every training clip with one of its captions, drawn at random."""

    def __init__(self, clips: dict[str, Clips], scenes: bool) -> None:
        super().__init__()
        self.clips = clips
        self.scenes = scenes  # whole ones in a batch; the clips of a scene stand next to each other
        self.captions = [text for texts in clips["train"].texts for text in texts]

    def batch(self, split: str, rows: Sequence[int]) -> dict:
        video, texts = self.clips[split]
        index = torch.tensor(rows)
        chosen = [texts[row] for row in rows]
        if split == "train":
            chosen = [several[int(torch.randint(len(several), ()))] for several in chosen]
        return {"video": video[index], "text": chosen, "index": index, "video_index": index}

    def train_dataloader(self) -> DataLoader:
        together = len(CLASSES) if self.scenes else 1
        groups = torch.arange(len(self.clips["train"].video)).unflatten(0, (-1, together))
        return DataLoader(groups, BATCH // together, shuffle=True, drop_last=True,
                          collate_fn=lambda rows: self.batch("train", torch.cat(rows).tolist()))  # fmt: skip

    def test_dataloader(self) -> DataLoader:
        rows = range(len(self.clips["test"].video))
        return DataLoader(rows, BATCH, collate_fn=lambda rows: self.batch("test", rows))


def train(head: str, name: str, clips: dict[str, Clips], seed: int, steps: int) -> dict[str, Any]:
    """One training and its scores on the test clips."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed)
    model = TextVideoRetrieval(
        SIZES, head, CLIP_FRAMES, 40, scales=(0.5, 1), depth=2, mean=(0.2,) * 3, std=(0.2,) * 3,
        interpolation="bilinear", dropout=0.0, optim=dict(lr=1e-3, lr_of={"clip": 1e-3}, weight_decay=0.05),
    )  # fmt: skip
    data = Pairs(clips, name == "twins")
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    start = time.process_time()
    trainer.fit(model, data)
    cpu_minutes = (time.process_time() - start) / 60
    (scores,) = trainer.test(model, data, verbose=False)
    parameters = sum(p.numel() for p in model.parameters())
    scores = {key.removeprefix("test/"): round(value, 4) for key, value in scores.items()}
    record = {"set": name, "head": head, "seed": seed, "steps": steps, "cpu_minutes": cpu_minutes}
    return record | {"parameters": parameters} | scores


def summary(records: Sequence[dict]) -> list[dict[str, Any]]:
    """Per set and head: mean and standard deviation of R@1 over the seeds, and the margin over mean pooling with the
    same seed."""
    rows = []
    for name, head in dict.fromkeys((r["set"], r["head"]) for r in records):
        scores = {r["seed"]: r["t2v_r1"] for r in records if (r["set"], r["head"]) == (name, head)}
        pooled = {r["seed"]: r["t2v_r1"] for r in records if (r["set"], r["head"]) == (name, "mean")}
        margins = [scores[seed] - pooled[seed] for seed in scores if seed in pooled]
        row: dict[str, Any] = {"set": name, "head": head, "seeds": len(scores), **spread("t2v_r1", scores.values())}
        rows.append(row | (spread("margin", margins) if margins and head != "mean" else {}))
    return rows


def spread(name: str, values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {name: statistics.mean(values), f"{name}_std": statistics.stdev(values) if len(values) > 1 else 0.0}


# ---- learners ------------------------------------------------------------------------------------------------------


def learners(options: argparse.Namespace) -> None:
    """Time and memory of a step of the head for every pyramid and learner, saved after each."""
    device = torch.device(options.device)
    speed = rates(device, torch.float32)
    about = machine() | {"device": device_name(device)}
    path = options.output or RESULTS / f"retrieval_learners_{machine_slug(about['device'], about['cores'])}.json"
    result: dict[str, Any] = {
        "machine": about, "rates": vars(speed),
        "floor_formula": "depth * (train_flop / flop_per_second + floor(scan)), without the pyramid",
        "settings": {"batch": options.batch, "frames": FRAMES, "grid": GRID, "width": WIDTH, "depth": DEPTH},
        "records": [],
    }  # fmt: skip
    for scales, learner in itertools.product(PYRAMIDS[: options.pyramids], options.learners):
        result["records"].append(step(scales, learner, options, device, speed))
        result["ratios"] = ratios(result["records"])
        print("  ".join(f"{key} {short(value)}" for key, value in result["records"][-1].items()), flush=True)
        save(result, path)
    for row in result["ratios"]:
        print("  ".join(f"{key} {short(value)}" for key, value in row.items()))
    print(f"Saved to {path}")


def step(
    scales: Sequence[float], learner: str, options: argparse.Namespace, device: torch.device, speed: Rates
) -> dict[str, Any]:
    length = FRAMES * (1 + sum(math.floor(scale * GRID) ** 2 for scale in scales))
    record: dict[str, Any] = {"scales": list(scales), "length": length, "learner": learner}
    matrices_gib = options.batch * (WIDTH // 64) * length**2 * 4 / 2**30
    if learner == WRITTEN_OUT and matrices_gib > options.largest_gib:
        return record | {"skipped": f"each block's L x L matrices take {matrices_gib:.1f} GiB"}
    # Without the first kind, torch has only the one that holds the matrix.
    kind = sdpa_kernel(SDPBackend.MATH) if learner == WRITTEN_OUT else nullcontext()
    try:
        with kind:
            step_of(learner, (0.5,), options.batch, device)()  # what is compiled, is compiled
            call = step_of(learner, scales, options.batch, device)
            start = time.perf_counter()
            memory = device_memory(call, device)
            taken = time.perf_counter() - start
            if taken < LONG_SECONDS:
                taken = device_time(call, device, options.seconds, most=10)
    except torch.OutOfMemoryError:
        return record | {"skipped": "out of memory"}
    floor = floor_seconds(learner, options.batch, length, speed)
    return record | {"seconds": taken, "peak_mib": memory, "floor_seconds": floor}


def step_of(learner: str, scales: Sequence[float], batch: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward through a new head."""
    with device:
        head = Muse(WIDTH, scales, learner=learner.removesuffix("-written-out"), depth=DEPTH, dropout=0.0)
        tokens = torch.randn(batch, FRAMES, 1 + GRID**2, WIDTH, requires_grad=True)

    def call() -> None:
        head(tokens).square().mean().backward()
        head.zero_grad(set_to_none=True)
        tokens.grad = None

    return call


def floor_seconds(learner: str, batch: int, length: int, speed: Rates) -> float:
    """What the blocks take at least; see the formulas at the top."""
    tokens, rank = batch * length, math.ceil(WIDTH / 16)
    flop, scan = 6.0 * tokens * WIDTH**2, 0.0  # the block's own linear layer, forward and twice that backward
    if learner.startswith("attention"):
        flop += 24.0 * tokens * WIDTH**2 + 14.0 * tokens * length * WIDTH
    elif learner != "none":
        directions = 2 if learner == "bimamba" else 1
        flop += 6.0 * tokens * WIDTH * (3 * WIDTH + directions * (2 * rank + 2 * STATES))
        # Those costs are of both directions with twice as many channels as the width.
        scan = directions / 2 * speed.floor(**COSTS["scan"](batch, length, WIDTH // 2, 4)[True])
    return DEPTH * (speed.floor(flop=flop) + scan)


def ratios(records: Sequence[dict]) -> list[dict[str, Any]]:
    """Attention over bimamba at each length: measured, of what the learner adds to "none", and of the floors."""
    rows = []
    for length in dict.fromkeys(record["length"] for record in records):
        at = {r["learner"]: r for r in records if r["length"] == length and "seconds" in r}
        for name in (name for name in at if name.startswith("attention") and "bimamba" in at):
            other, mamba = at[name], at["bimamba"]
            row = {"length": length, "ratio_of": f"{name} / bimamba", "seconds": other["seconds"] / mamba["seconds"]}
            if "none" in at:
                rest = at["none"]["seconds"]
                row["learner_seconds"] = (other["seconds"] - rest) / max(mamba["seconds"] - rest, 1e-9)
            if other["peak_mib"] and mamba["peak_mib"]:
                row["peak_mib"] = other["peak_mib"] / mamba["peak_mib"]
            rows.append(row | {"floor": other["floor_seconds"] / mamba["floor_seconds"]})
    return rows


# ---- picture -------------------------------------------------------------------------------------------------------


def draw(options: argparse.Namespace) -> None:
    """R@1 of the heads, and time of a step against the length of the sequence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    about = machine()
    slug = machine_slug(about["cpu"], about["cores"])
    scores = json.loads(options.heads.read_text(encoding="utf-8"))
    steps = json.loads((options.learners or RESULTS / f"retrieval_learners_{slug}.json").read_text(encoding="utf-8"))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    colours = {"muse": "#2f6fb2", "mean": "#8a97a6", "sequential": "#e08a3c"}
    sets = list(scores["sets"])
    for (i, name), (j, head) in itertools.product(enumerate(sets), enumerate(HEADS)):
        values = [100 * r["t2v_r1"] for r in scores["records"] if (r["set"], r["head"]) == (name, head)]
        if values:
            at = i + 0.27 * (j - 1)
            left.bar(at, statistics.mean(values), 0.25, color=colours[head], label=HEADS[head] if i == 0 else None)
            left.plot([at] * len(values), values, "o", color="#1d2733", markersize=3)
    for i, name in enumerate(sets):
        best = 100 * scores["sets"][name]["best_r1"]["motion"]
        left.hlines(best, i - 0.42, i + 0.42, color="#1d2733", linestyle="--", linewidth=1)
    left.set_xticks(range(len(sets)), [f"{name} clips" for name in sets])
    left.set(ylim=(0, 122), yticks=range(0, 101, 20), ylabel="R@1, text to video, in %")
    left.set_title(f"{scores['sets'][sets[0]]['test']} held-out clips; dashed: best possible", loc="left", fontsize=11)
    left.legend(frameon=False, fontsize=9, loc="upper center", ncols=3)
    colours = {
        "bimamba": "#2f6fb2",
        "mamba": "#7fb0dd",
        "attention": "#e08a3c",
        WRITTEN_OUT: "#b5482a",
        "none": "#8a97a6",
    }
    for axis, key, title, factor in (
        (middle, "seconds", "seconds of a step", 1),
        (right, "peak_mib", "peak GiB", 1 / 1024),
    ):
        for learner in dict.fromkeys(r["learner"] for r in steps["records"]):
            points = [
                (r["length"], factor * r[key]) for r in steps["records"] if r["learner"] == learner and r.get(key)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colours[learner], label=learner.replace("-", " "))
        axis.set(xscale="log", yscale="log", xlabel="tokens of the sequence")
        axis.set_title(f"MUSE's head, width {WIDTH}: {title}", loc="left", fontsize=11)
    middle.legend(frameon=False, fontsize=9)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=120)
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
