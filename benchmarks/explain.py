"""Is the heat of `zoo explain` where it should be? On generated clips, whose moving object is known, for both methods.

    python benchmarks/explain.py [--videos 100] [--output FILE.json]

The shipped videomamba-nano-motion explains the class that it finds most probable. Two tests of each setting:

- On the object: the share of the heat above 0 that lies on the moving object, against the share of the picture's area
  that the object takes (what heat spread at random would have). The object is what `object_mask` says, brought to the
  model's size; nothing else in a clip depends on its class.
- Deletion: the clip in cells of 2 frames and 8 pixels, covered in the order of their heat, 10% more each time; the mean
  of the class's probability over 10% .. 90%, against that for cells in a random order (5 orders per clip). Cells are
  covered by the clip's mean colour, or by the blurred clip.

Intervals are 95% of 10,000 bootstrap samples of the clips. The method that is better in both tests, covered by the mean
colour, is the better one; what only one test says is a draw.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, machine, save
from rich.console import Console
from rich.table import Table
from torch import Tensor

import zoo
from datamodules.synthetic.motion import CLASSES, clip_spec, object_mask, render
from datamodules.synthetic.writing import write_video
from datamodules.video.views import load_views
from zoo.inference.explain import BASELINES, cover, heat_of

MODEL = "videomamba-nano-motion"
SEED = 7  # not that of the clips it was trained on
CELL = (2, 8)
SHARES = tuple(tenth / 10 for tenth in range(1, 10))
ORDERS = 5
BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Setting:
    """Arguments of `zoo.explain`."""

    method: str
    tube: tuple[int, int]
    baseline: str = "mean"
    steps: int = 32

    def __str__(self) -> str:
        steps = f", {self.steps} steps" if self.method != "occlusion" else ""
        return f"{self.method}, {self.tube[0]} x {self.tube[1]} px, {self.baseline}{steps}"


OCCLUSION, GRADIENTS = "occlusion", "integrated-gradients"
SETTINGS = (
    *(Setting(OCCLUSION, tube) for tube in ((2, 12), (2, 8), (4, 8), (2, 16))),
    Setting(OCCLUSION, (2, 12), "blur"),
    *(Setting(GRADIENTS, tube) for tube in ((2, 12), (2, 8), (4, 8), (2, 16), (1, 1))),
    Setting(GRADIENTS, (2, 12), "blur"),
    *(Setting(GRADIENTS, (2, 12), steps=steps) for steps in (8, 64)),
)


@dataclass(frozen=True)
class Clip:
    """What the model sees, uint8 (3, T, H, W); the share of each pixel that the object covers, (T, H, W); the class
    that the model finds; whether that is right."""

    video: Tensor
    mask: Tensor
    index: int
    right: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--settings", type=int, nargs="+", help="only these, by number from 0")
    parser.add_argument("--output", type=Path, default=RESULTS / "explain.json")
    arguments = parser.parse_args()
    if arguments.videos < 2:
        parser.error("--videos takes at least 2.")
    model = zoo.load(MODEL)
    clips = make_clips(model, arguments.videos)
    area = np.array([clip.mask.mean().item() for clip in clips])
    generator = torch.Generator().manual_seed(0)
    reference = {
        f"deletion_{value}": {
            "random": summary(np.array([delete_at_random(model, clip, value, generator) for clip in clips])),
            "mask": summary(np.array([delete(model, clip, clip.mask, value) for clip in clips])),
        }
        for value in BASELINES
    }
    chosen = SETTINGS if arguments.settings is None else [SETTINGS[number] for number in arguments.settings]
    found = {}
    for setting in chosen:
        found[str(setting)] = measure(model, clips, setting)
        print(f"{setting}: {found[str(setting)]['share'].mean():.3f} on the object", file=sys.stderr, flush=True)
    result = {
        "machine": machine(),
        "model": MODEL,
        "videos": len(clips),
        "accuracy": np.mean([clip.right for clip in clips]),
        "area": summary(area),
        **reference,
        "settings": [
            {
                **asdict(setting),
                "share": summary(rows["share"]),
                "share_by_area": summary(rows["share"] / area),
                "above_area": float(np.mean(rows["share"] > area)),
                **{f"deletion_{value}": summary(rows[f"deletion_{value}"]) for value in BASELINES},
                "seconds_per_clip": rows["seconds"],
            }
            for setting, rows in zip(chosen, found.values(), strict=True)
        ],
        "gradients_minus_occlusion": differences(found),
    }
    save(result, arguments.output)
    print_tables(result)


def make_clips(model: Any, count: int) -> list[Clip]:
    """Generated videos, written and read as files are."""
    clips, size = [], model.preprocessing["image_size"]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            spec = clip_spec(SEED, "test", number, CLASSES[number % len(CLASSES)])
            path = Path(folder) / f"{number}.mp4"
            write_video(path, render(spec), spec.fps)
            views = load_views(path, **model.preprocessing)
            mask = torch.from_numpy(object_mask(spec)[views.indices[0]]).float()[:, None]
            with torch.inference_mode():
                index = int(model(views.video).argmax())
            right = model.class_names[index] == spec.motion
            mask = F.interpolate(mask, size=(size, size), mode="area")[:, 0]
            clips.append(Clip(views.video[0], mask, index, right))
    return clips


def measure(model: Any, clips: list[Clip], setting: Setting) -> dict[str, Any]:
    """Of each clip its share of heat on the object and its mean probabilities under deletion; seconds per clip."""
    start = time.perf_counter()
    heats = [heat_of(model, clip.video, clip.index, **asdict(setting)) for clip in clips]
    elapsed = (time.perf_counter() - start) / len(clips)
    return {
        "share": np.array([share_on_object(heat, clip.mask) for heat, clip in zip(heats, clips, strict=True)]),
        **{
            f"deletion_{value}": np.array(
                [delete(model, clip, heat, value) for heat, clip in zip(heats, clips, strict=True)]
            )
            for value in BASELINES
        },
        "seconds": elapsed,
    }


def share_on_object(heat: Tensor, mask: Tensor) -> float:
    """Of the heat above 0."""
    support = heat.clamp_min(0)
    return float((support * mask).sum() / support.sum().clamp_min(1e-12))


def delete(model: Any, clip: Clip, heat: Tensor, value: str) -> float:
    """The class's mean probability while the hottest cells are covered first."""
    frames, pixels = CELL
    cells = F.avg_pool3d(heat[None], (frames, pixels, pixels))[0]
    return _probability(model, clip, cells.flatten().argsort(descending=True), cells.shape, value)


def delete_at_random(model: Any, clip: Clip, value: str, generator: torch.Generator) -> float:
    shape = [n // size for n, size in zip(clip.mask.shape, (CELL[0], CELL[1], CELL[1]), strict=True)]
    count = int(np.prod(shape))
    orders = [torch.randperm(count, generator=generator) for _ in range(ORDERS)]
    return float(np.mean([_probability(model, clip, order, shape, value) for order in orders]))


def _probability(model: Any, clip: Clip, order: Tensor, shape: Any, value: str) -> float:
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    rank = rank.view(*shape)
    for axis, size in enumerate((CELL[0], CELL[1], CELL[1])):
        rank = rank.repeat_interleave(size, axis)
    covered = cover(clip.video, value)
    shown = [torch.where(rank < round(share * len(order)), covered, clip.video) for share in SHARES]
    with torch.inference_mode():
        return model(torch.stack(shown)).softmax(1)[:, clip.index].mean().item()


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, and the interval of the mean."""
    samples = np.random.default_rng(0).choice(values, (BOOTSTRAP, len(values))).mean(1)
    low, high = np.quantile(samples, (0.025, 0.975))
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}


def differences(found: dict[str, dict]) -> dict[str, Any]:
    """Of each test the best setting of each method, and the clips' differences between those two."""
    compared = {}
    for test, sign in (("share", 1), ("deletion_mean", -1), ("deletion_blur", -1)):
        best = {}
        for method in (OCCLUSION, GRADIENTS):
            names = [name for name in found if name.startswith(method)]
            if names:
                best[method] = max(names, key=lambda name: sign * found[name][test].mean())
        if len(best) == 2:
            ours, theirs = (found[best[method]][test] for method in (GRADIENTS, OCCLUSION))
            compared[test] = {**best, **summary(ours - theirs)}
    return compared


def print_tables(result: dict[str, Any]) -> None:
    console = Console(width=140)
    random, mask = ([result[f"deletion_{value}"][order]["mean"] for value in BASELINES] for order in ("random", "mask"))
    console.print(
        f"{result['videos']} clips, {result['accuracy']:.1%} right. The object takes {result['area']['mean']:.1%} of "
        f"the area. Deletion in a random order: {random[0]:.3f} (mean colour), {random[1]:.3f} (blur); of the object "
        f"first: {mask[0]:.3f}, {mask[1]:.3f}."
    )
    table = Table()
    for column in ("method", "tube", "baseline", "steps", "on the object", "by area", "clips above area",
                   *(f"deletion, {value}" for value in BASELINES), "s / clip"):  # fmt: skip
        table.add_column(column, justify="right")
    for row in result["settings"]:
        table.add_row(
            row["method"], f"{row['tube'][0]} x {row['tube'][1]}", row["baseline"],
            "-" if row["method"] == OCCLUSION else str(row["steps"]), f"{row['share']['mean']:.1%}",
            f"{row['share_by_area']['mean']:.2f}", f"{row['above_area']:.0%}",
            *(f"{row[f'deletion_{value}']['mean']:.3f}" for value in BASELINES), f"{row['seconds_per_clip']:.2f}",
        )  # fmt: skip
    console.print(table)
    for test, row in result["gradients_minus_occlusion"].items():
        low, high = row["interval"]
        console.print(
            f"{test}: gradients minus occlusion, each at its best, {row['mean']:+.3f} ({low:+.3f} .. {high:+.3f})"
        )


if __name__ == "__main__":
    main()
