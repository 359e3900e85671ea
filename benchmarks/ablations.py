"""The VideoMamba paper's ablations, on generated motions and with models that one CPU core trains in a minute.

    python benchmarks/ablations.py [scan_orders] [distillation] [--seeds 3] [--output FOLDER]

Without names all studies run. A study trains each of its variants once per seed, on the same clips, and saves top-1 on
held-out clips, with mean and standard deviation over the seeds, to results/ablations_<study>.json. A seed decides the
weights, the order of the clips and stochastic depth.

The clips are written and decoded once, through a VideoFolder as in the demo: several passes over the training clips,
each with its own frames and crops, are kept in memory, and the epochs go through the passes in turn.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, save
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import VideoFolder
from datamodules.synthetic.motion import CLASSES
from datamodules.synthetic.writing import generate
from lightning_modules import SelfDistillation, VideoClassifier
from lightning_modules.nets.scan_orders import SCAN_ORDERS

CLIP = {"num_frames": 8, "image_size": 48}
LOOK = {"mean": [0.2, 0.2, 0.2], "std": [0.2, 0.2, 0.2]}  # as in the demo's recipe
TRAINING = {"label_smoothing": 0.0, "optim": {"lr": 3e-3, "betas": [0.9, 0.95], "warmup_epochs": 1}}
EVALUATE_BATCH, EVALUATE_EVERY = 128, 4
MOTIONS = ("move_right", "move_left", "grow", "shrink")


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    seeds: int = 3
    epochs: int = 20
    train: int = 1024
    test: int = 512
    passes: int = 4
    batch_size: int = 32


SETTINGS = Settings(epochs=16, train=512, test=512)


@dataclass
class Clips:
    """Decoded clips.

    Attributes:
        train: the training clips, one tensor for each pass over the videos, uint8 (N, 3, T, H, W).
        train_labels: int64 (N,).
        test: held-out clips, uint8 (M, 3, T, H, W).
        test_labels: int64 (M,).
        class_names: in the order of the labels.
    """

    train: list[Tensor]
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: list[str]

    def fewer(self, count: int) -> "Clips":
        """With `count` of the training clips, every class having its share."""
        order = torch.cat([(self.train_labels == k).nonzero().flatten() for k in range(len(self.class_names))])
        kept = order.view(len(self.class_names), -1)[:, : count // len(self.class_names)].flatten()
        return replace(self, train=[video[kept] for video in self.train], train_labels=self.train_labels[kept])


class Pass(Dataset):
    """The training clips of the epoch's pass, or the held-out clips."""

    def __init__(self, video: list[Tensor], labels: Tensor) -> None:
        self.video, self.labels, self.number = video, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.video[self.number % len(self.video)][index]
        return {"video": clip, "label": self.labels[index], "index": index, "path": str(index)}


class Record(Callback):
    """Turns to the next pass before each epoch, and notes the losses and the held-out accuracy after it."""

    def __init__(self, clips: Pass) -> None:
        self.clips, self.epochs = clips, []
        self.scores: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clips.number = trainer.current_epoch
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.scores = {k: round(v, 4) for k, v in scores.items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append({"train/loss": round(statistics.fmean(self.losses), 4), **self.scores})
        self.scores = {}


def decode(settings: Settings, classes: Sequence[str] = CLASSES) -> Clips:
    """Writes videos of some motions to a temporary folder and reads them through the DataModule."""
    with tempfile.TemporaryDirectory() as folder:
        root = generate(Path(folder) / "clips", num_train=settings.train, num_val=8, num_test=settings.test,
                        classes=classes, num_workers=0, progress=False)  # fmt: skip
        data = VideoFolder(
            root, batch_size=1, num_workers=0, horizontal_flip=0.0, crop_area=(0.7, 1.0), num_clips=1, num_crops=1,
            eval_batch_size=1, short_side=CLIP["image_size"], sampling="sparse", frame_stride=1,
            interpolation="bilinear", **CLIP,
        )  # fmt: skip
        data.setup("fit")
        data.setup("test")
        train, loader = [], data.train_dataloader()
        for number in range(settings.passes):
            loader.sampler.set_epoch(number)
            video, labels = gather(loader)
            train.append(video)
        return Clips(train, labels, *gather(data.test_dataloader()), data.class_names)


def gather(loader: Any) -> tuple[Tensor, Tensor]:
    """Clips and labels of all batches, in the order of the listing."""
    batches = sorted(loader, key=lambda batch: int(batch["index"]))
    video = torch.cat([batch["video"].flatten(0, batch["video"].ndim - 5) for batch in batches])
    return video, torch.cat([batch["label"] for batch in batches])


def train(build: Callable[[], LightningModule], clips: Clips, settings: Settings, seed: int) -> tuple[Any, dict]:
    """Trains one module.

    Args:
        build: makes it, under the seed.
        clips: what it learns from and is measured with.
        settings: epochs and batch size.
        seed: of everything.

    Returns:
        The module in eval mode, and its held-out accuracy after the last epoch, the best of all epochs, the losses and
        scores of each epoch, and the seconds it took.
    """
    seed_everything(seed, verbose=False)
    module = build()
    dataset = Pass(clips.train, clips.train_labels)
    record = Record(dataset)
    every = math.gcd(settings.epochs, EVALUATE_EVERY)  # so that the last epoch is one of them
    trainer = Trainer(max_epochs=settings.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                      check_val_every_n_epoch=every, callbacks=[record])  # fmt: skip
    loader = DataLoader(dataset, settings.batch_size, shuffle=True, drop_last=True)
    held_out = DataLoader(Pass([clips.test], clips.test_labels), EVALUATE_BATCH)
    start = time.perf_counter()
    trainer.fit(module, loader, held_out)
    scores = [epoch["val/top1"] for epoch in record.epochs if "val/top1" in epoch]
    result = {"top1": scores[-1], "best_top1": max(scores), "seconds": round(time.perf_counter() - start, 1)}
    return module.eval(), {**result, "epochs": record.epochs}


def compare(
    variants: Mapping[str, Callable[[int], LightningModule]], clips: Clips, settings: Settings, report: Console
) -> dict[str, Any]:
    """Trains each variant with each seed.

    Args:
        variants: a name and what builds the module for a seed.
        clips, settings: as for `train`.
        report: told about each run as it ends.

    Returns:
        For each variant its runs, and mean and deviation of their accuracy.
    """
    results: dict[str, Any] = {name: {"runs": []} for name in variants}
    for seed in range(settings.seeds):
        for name, build in variants.items():
            _, run = train(partial(build, seed), clips, settings, seed)
            results[name]["runs"].append({"seed": seed, **run})
            report.print(
                f"{name}, seed {seed}: top-1 {run['top1']:.1%} (best {run['best_top1']:.1%}), {run['seconds']} s"
            )
    for result in results.values():
        result |= summary([run["top1"] for run in result["runs"]])
        result["best"] = summary([run["best_top1"] for run in result["runs"]])
    return results


def summary(scores: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": statistics.fmean(scores), "std": statistics.stdev(scores) if len(scores) > 1 else 0.0}


def classifier(clips: Clips, **arguments: Any) -> dict[str, Any]:
    """Arguments of a small classifier of these clips."""
    return {"num_classes": len(clips.class_names), **CLIP, **LOOK, **TRAINING, **arguments}


# The studies ---------------------------------------------------------------------------------------------------------


def scan_orders(clips: Clips, settings: Settings, report: Console) -> dict[str, Any]:
    """The same network with its tokens scanned in each order (paper, figures 4 and 7a), trained from scratch.

    The paper starts from image weights, which know the spatial-first order only.
    """
    size = {"embed_dim": 48, "depth": 4, "patch_size": 12, "tubelet_size": 2}

    def variant(order: str) -> Callable[[int], LightningModule]:
        return lambda seed: VideoClassifier(**classifier(clips, scan_order=order, **size))

    # VideoMamba-Ti on Something-Something V2, fine-tuned from ImageNet-1K: paper, figure 7a.
    paper = dict(zip(SCAN_ORDERS, (65.1, 62.4, 63.9, 64.2, 64.0, 64.1, 65.1), strict=True))
    results = compare({order: variant(order) for order in SCAN_ORDERS}, clips, settings, report)
    return {"model": size, "variants": {k: {"paper_top1": paper[k], **v} for k, v in results.items()}}


def distillation(clips: Clips, settings: Settings, report: Console) -> dict[str, Any]:
    """A student on few clips, alone and with a smaller teacher that was trained longer on the same (paper, figure 6).

    With the teacher to the end, in the first half of the epochs only ("early stopping"), and with the plain L2 loss.
    """
    clips = clips.fewer(settings.train // 2)
    settings = replace(settings, epochs=settings.epochs * 3 // 2)
    small, large = {"embed_dim": 64, "depth": 3}, {"embed_dim": 96, "depth": 6}
    shape = {"patch_size": 12, "tubelet_size": 4}
    longer = replace(settings, epochs=2 * settings.epochs)
    teachers, runs = [], []
    for seed in range(settings.seeds):
        build = partial(VideoClassifier, **classifier(clips, **small, **shape))
        teacher, run = train(build, clips, longer, 100 + seed)
        teachers.append(teacher)
        runs.append({"seed": 100 + seed, **run})
        report.print(f"teacher {seed}: top-1 {run['top1']:.1%} (best {run['best_top1']:.1%}), {run['seconds']} s")
    student = classifier(clips, **large, **shape)

    def taught(**how: Any) -> Callable[[int], LightningModule]:
        return lambda seed: SelfDistillation(teacher=teachers[seed], **how, **student)

    variants = {
        "alone": lambda seed: VideoClassifier(**student),
        "teacher": taught(),
        "teacher, first half": taught(teacher_epochs=settings.epochs // 2),
        "teacher, L2": taught(distill_loss="l2"),
    }
    results = compare(variants, clips, settings, report)
    teacher = {"model": small, "epochs": longer.epochs, "runs": runs, **summary([run["top1"] for run in runs])}
    return {"clips": len(clips.train_labels), "epochs": settings.epochs, "teacher": teacher, "student": large, **shape,
            "variants": results}  # fmt: skip


Study = Callable[[Clips, Settings, Console], dict[str, Any]]
STUDIES: dict[str, Study] = {"scan_orders": scan_orders, "distillation": distillation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; without: all")
    for name, default in asdict(SETTINGS).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for ablations_<study>.json")
    arguments = parser.parse_args()
    chosen = arguments.studies or list(STUDIES)
    unknown = [name for name in chosen if name not in STUDIES]
    if unknown:
        parser.error(f"there is no study {unknown[0]!r}; choose from {', '.join(STUDIES)}")
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(SETTINGS)})
    report = Console()
    with report.status("writing and decoding clips"):
        clips = decode(settings, MOTIONS)
    for name in chosen:
        result = STUDIES[name](clips, settings, report)
        save(
            {"machine": machine(), "settings": asdict(settings), **result}, arguments.output / f"ablations_{name}.json"
        )
        report.print(table(name, result["variants"]))


def table(title: str, variants: Mapping[str, Mapping]) -> Table:
    shown = Table("variant", title=f"{title}, top-1 in % on held-out clips")
    for column in ("after the last epoch", "best epoch", "seconds a run"):
        shown.add_column(column, justify="right")
    for name, result in variants.items():
        mean, best = (f"{100 * r['mean']:.1f} ± {100 * r['std']:.1f}" for r in (result, result["best"]))
        shown.add_row(name, mean, best, f"{statistics.fmean(run['seconds'] for run in result['runs']):.0f}")
    return shown


if __name__ == "__main__":
    main()
