"""Does masked pretraining help, and which variant? On generated motions, with models that a CPU core trains in minutes.

    python benchmarks/ablations_masked.py [--seeds 3] [--epochs 20] [--output FOLDER]

Three starts of the same small network, each once per seed, on the same clips:

    random weights    no pretraining
    official          masked pretraining as the published code has it: the last block learns nothing, and the teacher's
                      features do not pass its last norm
    all_blocks        the default of `MaskedPretraining`

No label is seen before the measurement. The teacher is a small CLIP, made here first: an image tower and a bag of words
for the text, trained on single frames of other clips with their captions, in which nothing moves.

Measured is what a `VideoClassifier` that starts from the weights (`init_from`) knows without training, by linear probes
(logistic regressions on standardised features, with the same penalty for all): top-1 on held-out clips

- of the class token after the final norm, and of the mean tokens of the frames, side by side ("frames");
- for the eight shapes, which a frame shows, and for the eight motions. The latter is a hard question for a linear
  probe: places, sizes and angles start anywhere on a circle, so that at any one time all motions look alike, and a sum
  over frames of what each of them shows says nothing of the motion, however good it is.

Saved to results/ablations_masked.json after each seed. (The paper fine-tunes VideoMamba-M: 70.2 % against 67.3 %
without masked pretraining on Something-Something V2, 8 frames.)
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import CLIP, LOOK, Clips, Pass, Record, Settings, classifier, decode, summary
from common import RESULTS, machine, save
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.synthetic import CLASSES, SHAPES, clip_spec, render_clip
from lightning_modules import MaskedPretraining, VideoClassifier
from lightning_modules.losses import contrastive_loss
from lightning_modules.nets import ClipTeacher

SIZE = {"embed_dim": 64, "depth": 4, "patch_size": 12}
WIDTH = 32  # of CLIP's joint space
TOWER = {"image_size": CLIP["image_size"], "patch_size": 12, "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 3, "num_attention_heads": 4}  # fmt: skip
TEACHER = {"projection_dim": WIDTH, "vision_config": TOWER}
PRETRAINING = {"mask_type": "attention", "mask_ratio": 0.8, "lr": 3e-3, "warmup_epochs": 1}
OTHER_CLIPS = 1  # seed of the clips that CLIP learns from; the others have 0
MEASURES = ("shape, class token", "shape, frames", "motion, class token", "motion, frames")
DEFAULTS = Settings(epochs=20, passes=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(DEFAULTS).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--clip-steps", type=int, default=800, help="steps that CLIP is trained for, default 800")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for ablations_masked.json")
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(DEFAULTS)})
    report = Console()
    with report.status("writing and decoding clips"):
        clips = decode(settings)
    seed_everything(0, verbose=False)
    teacher, about = train_clip(arguments.clip_steps)
    report.print(f"CLIP: {about}")
    starts: dict[str, dict[str, Any] | None] = {
        "random weights": None,
        "official": {"variant": "official", "teacher": teacher},
        "all_blocks": {"teacher": teacher},
    }
    variants: dict[str, Any] = {name: {"runs": []} for name in starts}
    result = {"machine": machine(), "settings": asdict(settings), "model": SIZE, "teacher_model": TEACHER,
              "pretraining": PRETRAINING, "clip": about, "variants": variants}  # fmt: skip
    for seed in range(settings.seeds):
        for name, options in starts.items():
            run = measure(clips, settings, seed, options)
            variants[name]["runs"].append(run)
            variants[name] |= {of: summary([r[of] for r in variants[name]["runs"]]) for of in MEASURES}
            report.print(f"{name}, seed {seed}: " + ", ".join(f"{of} {run[of]:.1%}" for of in MEASURES), losses(run))
        save(result, arguments.output / "ablations_masked.json")
    report.print(table(variants))


def measure(clips: Clips, settings: Settings, seed: int, options: dict[str, Any] | None) -> dict[str, Any]:
    """Pretrains with these options of `MaskedPretraining` (None: not at all), and probes."""
    seed_everything(seed, verbose=False)
    start = VideoClassifier(**classifier(clips, **SIZE))
    run: dict[str, Any] = {"seed": seed}
    if options is not None:
        module, run["pretraining"] = pretrain(clips, settings, seed, **options)
        weights = module.classifier_weights(module.state_dict(), module.hparams)
        start.load_state_dict(weights, strict=False)  # the head, which is not used, stays as it is
    return run | probe(start.eval(), clips)


def train_clip(steps: int, count: int = 3072, batch: int = 128) -> tuple[ClipTeacher, dict]:
    """A CLIP of single frames and captions: an image tower, and words whose vectors are added up."""
    specs = [clip_spec(OTHER_CLIPS, "train", i, CLASSES[i % 8], num_frames=4) for i in range(count)]
    videos = np.stack([render_clip(spec)[0] for spec in specs])
    frames = torch.from_numpy(videos).flatten(0, 1).permute(0, 3, 1, 2)  # four of each clip
    frames = F.interpolate(frames.float(), size=CLIP["image_size"], mode="bilinear", antialias=True) / 255
    frames = (frames - LOOK["mean"][0]) / LOOK["std"][0]
    words = sorted({word for spec in specs for caption in spec.captions for word in caption.split()})
    number = {word: i for i, word in enumerate(words)}
    texts = [[torch.tensor([number[w] for w in c.split()]) for c in spec.captions] for spec in specs]
    teacher, text = ClipTeacher(sizes=TEACHER).requires_grad_(True), nn.EmbeddingBag(len(words), WIDTH)
    scale = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([*teacher.parameters(), *text.parameters(), scale], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    tower, start = teacher.clip, time.perf_counter()
    for step in range(steps):
        clip = torch.randint(count, (batch,))
        image = frames[4 * clip + torch.randint(4, (batch,))]
        chosen = [texts[i][int(torch.randint(len(texts[i]), ()))] for i in clip.tolist()]
        offsets = torch.tensor([0, *map(len, chosen[:-1])]).cumsum(0)
        vectors = F.normalize(text(torch.cat(chosen), offsets), dim=-1)
        loss = contrastive_loss(vectors, F.normalize(tower(image).image_embeds, dim=-1), scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == 0:
            first = loss.item()
    about = {"steps": steps, "batch": batch, "first_loss": first, "last_loss": loss.item(),
             "chance": float(np.log(batch)), "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    return teacher.requires_grad_(False), about


def pretrain(clips: Clips, settings: Settings, seed: int, **options: Any) -> tuple[MaskedPretraining, dict]:
    """Trains on the clips without their labels; the losses, on held-out clips before and after."""
    seed_everything(seed, verbose=False)
    module = MaskedPretraining(**SIZE, **CLIP, **LOOK, target_dim=WIDTH, sampling="sparse", **PRETRAINING, **options)
    # What `train_clip` gave the teacher, in both variants.
    module.clip_mean.fill_(LOOK["mean"][0])
    module.clip_std.fill_(LOOK["std"][0])
    dataset = Pass(clips.train, clips.train_labels)
    record = Record(dataset)
    trainer = Trainer(max_epochs=settings.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[record])  # fmt: skip
    held_out = DataLoader(Pass([clips.test[::2]], clips.test_labels[::2]), 128)
    start = time.perf_counter()
    before = trainer.validate(module, held_out, verbose=False)[0]["val/loss"]
    trainer.fit(module, DataLoader(dataset, settings.batch_size, shuffle=True, drop_last=True))
    after = trainer.validate(module, held_out, verbose=False)[0]["val/loss"]
    trained = [epoch["train/loss"] for epoch in record.epochs]
    seconds = round(time.perf_counter() - start, 1)
    return module, {"seconds": seconds, "held_out_before": before, "held_out_after": after, "train": trained}


@torch.inference_mode()
def features(module: VideoClassifier, video: Tensor) -> tuple[Tensor, Tensor]:
    """Class tokens (N, D), and the frames' mean tokens side by side (N, T * D), of clips uint8 (N, 3, T, H, W)."""
    tokens = torch.cat([module.forward_features(part, pool=None) for part in video.split(64)])
    frames = tokens[:, 1:].unflatten(1, (CLIP["num_frames"], -1)).mean(dim=2)
    return tokens[:, 0].clone(), frames.flatten(1).clone()


def probe(module: VideoClassifier, clips: Clips) -> dict[str, float]:
    """Top-1 on held-out clips of linear classifiers on frozen features, by what is asked and of which features."""
    seen = [features(module, video) for video in clips.train]
    held_out = features(module, clips.test)
    asked = {"shape": (shapes("train", clips), shapes("test", clips)),
             "motion": (clips.train_labels, clips.test_labels)}  # fmt: skip
    return {
        f"{what}, {of}": linear(
            torch.cat([part[i] for part in seen]), labels.repeat(len(seen)), held_out[i], held_out_labels
        )
        for what, (labels, held_out_labels) in asked.items()
        for i, of in enumerate(("class token", "frames"))
    }


def shapes(split: str, clips: Clips) -> Tensor:
    """The shape of each clip, in the order of the folder: by class, then by number."""
    count = len(clips.train_labels if split == "train" else clips.test_labels)
    order = [i for name in clips.class_names for i in range(count) if CLASSES[i % len(CLASSES)] == name]
    return torch.tensor([list(SHAPES).index(clip_spec(0, split, i, CLASSES[i % len(CLASSES)]).shape) for i in order])


def linear(x: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, decay: float = 1e-3) -> float:
    """Accuracy of a logistic regression on standardised features, with a penalty on the squared weights."""
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, held_out = (x - mean) / std, (held_out - mean) / std
    head = nn.Linear(x.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), labels) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (head(held_out).argmax(dim=1) == held_out_labels).float().mean().item()


def losses(run: dict) -> str:
    if "pretraining" not in run:
        return ""
    p = run["pretraining"]
    return f"(held-out loss {p['held_out_before']:.3f} -> {p['held_out_after']:.3f}, {p['seconds']} s)"


def table(variants: dict[str, Any]) -> Table:
    shown = Table("start", title="Top-1 in % of linear probes on held-out clips, chance 12.5")
    for of in MEASURES:
        shown.add_column(of, justify="right")
    for name, result in variants.items():
        shown.add_row(name, *(f"{100 * result[of]['mean']:.1f} ± {100 * result[of]['std']:.1f}" for of in MEASURES))
    return shown


if __name__ == "__main__":
    main()
