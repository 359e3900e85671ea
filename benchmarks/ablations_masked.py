"""Does masked pretraining help, what of it does, and which variant? On generated motions, on one CPU core.

    python benchmarks/ablations_masked.py [--seeds 3] [--epochs 32] [--tuning-epochs 10] [--output FOLDER]

Four starts of the same small network, each once per seed, on the same clips:

    random weights    no pretraining
    random teacher    `all_blocks` with a teacher of random weights: what aligning does, whatever the teacher
    official          masked pretraining as the published code has it: the last block learns nothing, and the teacher's
                      features do not pass its last norm
    all_blocks        the default of `MaskedPretraining`

No label is seen before the measurement. The teacher is a small CLIP, made here first: an image tower and a bag of words
for the text, trained on single frames of other clips and words that say what a frame shows: colours, texture and shape,
where it is, how large, and which way it points. Nothing moves in a frame, and no word says so.

Measured is what a `VideoClassifier` that starts from the weights (as with `init_from`) knows without training, by ridge
regressions, with the penalty that is best on a fifth of their training clips, and what it learns in a short training:

    shape, linear       top-1 of the eight shapes, from the class token
    motion, linear      top-1 of the eight motions, from the mean token
    motion, grid        the same from tokens averaged over quarters of each frame, side by side
    place, size, angle  R2 of the shape's state at a time (a point on a circle each; place is x and y), from the mean of
                        that time's tokens
    motion, by states   top-1 of the motion whose attribute moves on most from time to time, in the states so estimated:
                        the linear part never sees a motion
    ..., all tokens     the same four from all tokens of the time, side by side
    motion, fine-tuned  top-1 after a few epochs on the clips with their labels

Why states. A frame shows nothing of the motion, and the attributes start anywhere on their circles, so the mean of all
that a frame's tokens say is the same for all motions: whatever describes frames, however well, leaves a linear
classifier of motions at chance (its loss is convex, and flat where it ignores its input). What is linear in it is where
things are; that something moves follows from two times.

Saved to results/ablations_masked.json after each seed, and drawn with --plot FILE.png. (The paper fine-tunes
VideoMamba-M: 70.2 % against 67.3 % without masked pretraining on Something-Something V2, 8 frames.)
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import CLIP, LOOK, TRAINING, Pass, Record, summary
from common import RESULTS, machine, save
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.synthetic.motion import CLASSES, MOTIONS, SHAPES, ClipSpec, clip_spec, render, trajectory
from lightning_modules import MaskedPretraining, VideoClassifier
from lightning_modules.nets import ClipTeacher
from lightning_modules.training.losses import contrastive_loss

SIZE = {"embed_dim": 64, "depth": 4, "patch_size": 12, "tubelet_size": 2}
TIMES = CLIP["num_frames"] // SIZE["tubelet_size"]
GRID = CLIP["image_size"] // SIZE["patch_size"]
WIDTH = 32  # of CLIP's joint space
TOWER = {"image_size": CLIP["image_size"], "patch_size": 12, "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 3, "num_attention_heads": 4}  # fmt: skip
TEACHER = {"projection_dim": WIDTH, "vision_config": TOWER}
PRETRAINING = {"mask_type": "attention", "mask_ratio": 0.8, "optim": {"lr": 3e-3, "warmup_epochs": 1}}
CLIP_CLIPS, CLIPS = 1, 3  # seeds of the clips that CLIP learns from, and of the others
PLACES = (("left", "midleft", "midright", "right"), ("top", "upper", "lower", "bottom"))
SIZES = ("tiny", "small", "large", "huge")
WAYS = ("east", "southeast", "south", "southwest", "west", "northwest", "north", "northeast")
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)
BY_STATES = "motion, by states"
STATES = ("place", "size", "angle")
ALL = ", all tokens"
CLASSED = ("shape, linear", "motion, linear", "motion, grid", BY_STATES, BY_STATES + ALL, "motion, fine-tuned")
EXPLAINED = (*STATES, *(of + ALL for of in STATES))


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    seeds: int = 3
    clip_steps: int = 1000
    epochs: int = 32
    tuning_epochs: int = 10
    train: int = 1024
    test: int = 512
    batch_size: int = 32


@dataclass
class Scenes:
    """Clips and all that is known of them.

    Attributes:
        video: uint8 (N, 3, T, H, W).
        motion: class, int64 (N,).
        shape: int64 (N,).
        states: x, y, size and angle at each of the network's times, as points on the unit circle: cosines, then sines,
            float32 (N, times, 8).
    """

    video: Tensor
    motion: Tensor
    shape: Tensor
    states: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for ablations_masked.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the saved results; nothing is measured")
    arguments = parser.parse_args()
    file, report = arguments.output / "ablations_masked.json", Console()
    if arguments.plot:
        starts = json.loads(file.read_text(encoding="utf-8"))["starts"]
        report.print(table(starts))
        plot(starts, arguments.plot)
        return
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(Settings())})
    with report.status("drawing clips"):
        train, test = scenes("train", settings.train), scenes("test", settings.test)
    seed_everything(0, verbose=False)
    ignorant = ClipTeacher(sizes=TEACHER)
    teacher, about = train_clip(settings.clip_steps)
    report.print(f"CLIP: {about}")
    options: dict[str, dict[str, Any] | None] = {
        "random weights": None,
        "random teacher": {"teacher": ignorant},
        "official": {"variant": "official", "teacher": teacher},
        "all_blocks": {"teacher": teacher},
    }
    starts: dict[str, Any] = {name: {"runs": []} for name in options}
    result = {"machine": machine(), "settings": asdict(settings), "model": SIZE, "teacher_model": TEACHER,
              "pretraining": PRETRAINING, "fine_tuning": TRAINING, "clip": about, "starts": starts}  # fmt: skip
    for seed in range(settings.seeds):
        for name, how in options.items():
            run = measure(train, test, settings, seed, how)
            starts[name]["runs"].append(run)
            for of in (*CLASSED, *EXPLAINED):
                starts[name][of] = summary([r[of] for r in starts[name]["runs"]])
            report.print(f"{name}, seed {seed}: " + ", ".join(f"{of} {run[of]:.1%}" for of in (*CLASSED, *EXPLAINED)))
        save(result, file)
    report.print(table(starts))


def measure(train: Scenes, test: Scenes, settings: Settings, seed: int, options: dict[str, Any] | None) -> dict:
    """Pretrains with these options of `MaskedPretraining` (None: not at all), probes and fine-tunes."""
    seed_everything(seed, verbose=False)
    start = VideoClassifier(len(CLASSES), **SIZE, **CLIP, **LOOK, **TRAINING)
    run: dict[str, Any] = {"seed": seed}
    if options is not None:
        module, run["pretraining"] = pretrain(train, test, settings, seed, **options)
        weights = module.classifier_weights(module.state_dict(), module.hparams)
        start.load_state_dict(weights, strict=False)  # the head stays as it is
    run |= probe(start.eval(), train, test)
    run["motion, fine-tuned"], run["fine_tuning"] = fine_tune(start, train, test, settings, seed)
    return run


# Clips and teacher ---------------------------------------------------------------------------------------------------


def scenes(split: str, count: int) -> Scenes:
    """Clips of one frame from each eighth of a video: any one for training, the middle one of the others."""
    random = np.random.default_rng(0)
    specs = [clip_spec(CLIPS, split, i, CLASSES[i % len(CLASSES)]) for i in range(count)]
    videos, states = [], []
    for spec in specs:
        length = spec.num_frames // CLIP["num_frames"]
        within = random.integers(length, size=CLIP["num_frames"]) if split == "train" else length // 2
        seen = length * np.arange(CLIP["num_frames"]) + within
        videos.append(frames(render(spec)[seen]).transpose(0, 1))
        # As the teacher, at the middle frame of each tubelet.
        states.append(trajectory(spec)[seen][SIZE["tubelet_size"] // 2 :: SIZE["tubelet_size"]])
    angle = 2 * torch.pi * torch.from_numpy(np.stack(states)).float()
    motion = torch.arange(count) % len(CLASSES)
    shape = torch.tensor([list(SHAPES).index(spec.shape) for spec in specs])
    return Scenes(torch.stack(videos), motion, shape, torch.cat([angle.cos(), angle.sin()], dim=-1))


def frames(video: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) -> the network's size, uint8 (T, 3, H, W)."""
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, size=CLIP["image_size"], mode="bilinear", antialias=True).round().byte()


def words(spec: ClipSpec, time: int, random: np.random.Generator) -> list[str]:
    """What a caption may say of a frame: on average two thirds of it, in no order, and the shape if nothing else."""
    x, y, size, angle = trajectory(spec)[time]
    said = [spec.colour, spec.shape, spec.background_colour, spec.background, PLACES[0][int(4 * x)],
            PLACES[1][int(4 * y)], SIZES[int(4 * size)], WAYS[round(8 * angle) % 8]]  # fmt: skip
    return [word for word, kept in zip(said, random.random(8) < 0.7, strict=True) if kept] or [spec.shape]


def train_clip(steps: int, count: int = 2048, batch: int = 128, peak: float = 2e-3) -> tuple[ClipTeacher, dict]:
    """A CLIP of single frames and what is said of them: an image tower, and words whose vectors are added up."""
    random, each = np.random.default_rng(0), 4
    specs = [clip_spec(CLIP_CLIPS, "train", i, CLASSES[i % 8], num_frames=each) for i in range(count)]
    pixels = torch.cat([frames(render(spec)) for spec in specs])
    number: dict[str, int] = {}
    teacher, text = ClipTeacher(sizes=TEACHER).requires_grad_(True), nn.EmbeddingBag(64, WIDTH)
    scale = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([*teacher.parameters(), *text.parameters(), scale], lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        clip, moment = torch.randint(count, (batch,)), torch.randint(each, (batch,))
        image = (pixels[each * clip + moment] / 255 - LOOK["mean"][0]) / LOOK["std"][0]
        said = [words(specs[i], t, random) for i, t in zip(clip.tolist(), moment.tolist(), strict=True)]
        ids = torch.tensor([number.setdefault(word, len(number)) for caption in said for word in caption])
        offsets = torch.tensor([0, *map(len, said[:-1])]).cumsum(0)
        vectors = F.normalize(text(ids, offsets), dim=-1)
        loss = contrastive_loss(vectors, F.normalize(teacher.clip(image).image_embeds, dim=-1), scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    about = {"steps": steps, "batch": batch, "first_loss": losses[0], "last_loss": float(np.mean(losses[-50:])),
             "chance": float(np.log(batch)), "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    return teacher.requires_grad_(False), about


# Training ------------------------------------------------------------------------------------------------------------


def pretrain(train: Scenes, test: Scenes, settings: Settings, seed: int, **options: Any) -> tuple[Any, dict]:
    """Trains on the clips without their labels; the losses, on held-out clips before and after."""
    seed_everything(seed, verbose=False)
    module = MaskedPretraining(**SIZE, **CLIP, **LOOK, target_dim=WIDTH, sampling="sparse", **PRETRAINING, **options)
    # What `train_clip` gave the teacher, in both variants.
    module.clip_mean.fill_(LOOK["mean"][0])
    module.clip_std.fill_(LOOK["std"][0])
    held_out = DataLoader(Pass([test.video[:256]], test.motion[:256]), 128)
    quiet = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    before = quiet.validate(module, held_out, verbose=False)[0]["val/loss"]
    losses, seconds = fit(module, Pass([train.video], train.motion), settings.epochs, settings)
    after = quiet.validate(module, held_out, verbose=False)[0]["val/loss"]
    return module, {"seconds": seconds, "held_out_before": before, "held_out_after": after, "train": losses}


def fine_tune(
    module: VideoClassifier, train: Scenes, test: Scenes, settings: Settings, seed: int
) -> tuple[float, dict[str, Any]]:
    """Trains all of a classifier on the clips and their motions -> top-1 on held-out ones, and losses and time."""
    seed_everything(seed, verbose=False)
    losses, seconds = fit(module.train(), Pass([train.video], train.motion), settings.tuning_epochs, settings)
    module.eval()
    with torch.inference_mode():
        answers = torch.cat([module(part).argmax(dim=1) for part in test.video.split(128)])
    return _share(answers == test.motion), {"train": losses, "seconds": seconds}


def fit(module: LightningModule, clips: Pass, epochs: int, settings: Settings) -> tuple[list[float], float]:
    """Mean training loss of each epoch, and the seconds it took."""
    record, start = Record(clips), time.perf_counter()
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[record])  # fmt: skip
    trainer.fit(module, DataLoader(clips, settings.batch_size, shuffle=True, drop_last=True))
    return [epoch["train/loss"] for epoch in record.epochs], round(time.perf_counter() - start, 1)


# Probes --------------------------------------------------------------------------------------------------------------


def probe(module: VideoClassifier, train: Scenes, test: Scenes) -> dict[str, float]:
    """What linear maps of frozen features tell of held-out clips: top-1 for classes, R2 for states."""
    (cls, tokens), (test_cls, test_tokens) = features(module, train.video), features(module, test.video)

    def top1(x: Tensor, labels: Tensor, test_x: Tensor, test_labels: Tensor) -> float:
        target = F.one_hot(labels, 8).float() - 1 / 8
        return _share(ridge(x, target, test_x).argmax(dim=1) == test_labels)

    def quarters(x: Tensor) -> Tensor:
        cells = x.unflatten(2, (2, GRID // 2, 2, GRID // 2))
        return cells.mean(dim=(3, 5)).flatten(1)

    def states(x: Tensor, test_x: Tensor, which: str) -> dict[str, float]:
        found = ridge(x, train.states, test_x)
        missed = (found - test.states).square().mean(dim=(0, 1)) / test.states.square().mean(dim=(0, 1))
        explained = (1 - missed).view(2, 4).mean(dim=0)
        values = (explained[:2].mean().item(), explained[2].item(), explained[3].item())
        scores = {of + which: value for of, value in zip(STATES, values, strict=True)}
        return {**scores, BY_STATES + which: _share(motion_of(found) == test.motion)}

    return {
        "shape, linear": top1(cls, train.shape, test_cls, test.shape),
        "motion, linear": top1(tokens.mean(dim=(1, 2)), train.motion, test_tokens.mean(dim=(1, 2)), test.motion),
        "motion, grid": top1(quarters(tokens), train.motion, quarters(test_tokens), test.motion),
        **states(tokens.mean(dim=2), test_tokens.mean(dim=2), ""),
        **states(tokens.flatten(2), test_tokens.flatten(2), ALL),
    }


@torch.inference_mode()
def features(module: VideoClassifier, video: Tensor) -> tuple[Tensor, Tensor]:
    """Clips uint8 (N, 3, T, H, W) -> class tokens (N, D), and the others (N, times, patches of a frame, D)."""
    tokens = torch.cat([module.forward_features(part, pool=None) for part in video.split(64)])
    return tokens[:, 0].clone(), tokens[:, 1:].unflatten(1, (TIMES, GRID**2)).clone()


def ridge(x: Tensor, target: Tensor, test_x: Tensor) -> Tensor:
    """Linear map of standardised features (N, ..., F) to targets (N, ..., K), applied to others.

    The penalty is the one of `PENALTIES` with the smallest error on the last fifth of the clips.
    """
    mean, std = x.flatten(0, -2).mean(dim=0), x.flatten(0, -2).std(dim=0) + 1e-6
    x, test_x = (x - mean) / std, (test_x - mean) / std
    first = len(x) * 4 // 5

    def solve(count: int, penalties: tuple[float, ...]) -> list[Tensor]:
        rows, wanted = x[:count].flatten(0, -2), target[:count].flatten(0, -2)
        products, right = rows.mT @ rows, rows.mT @ wanted
        return [torch.linalg.solve(products + penalty * torch.eye(x.shape[-1]), right) for penalty in penalties]

    errors = [(x[first:] @ weights - target[first:]).square().mean().item() for weights in solve(first, PENALTIES)]
    (weights,) = solve(len(x), (PENALTIES[int(np.argmin(errors))],))
    return test_x @ weights


def motion_of(states: Tensor) -> Tensor:
    """Estimated states (N, times, 8) -> the motion whose attribute moves on most, by the mean sine of its steps."""
    point = torch.complex(states[..., :4], states[..., 4:])
    step = point[:, 1:] * point[:, :-1].conj()
    advance = (step / step.abs()).imag.mean(dim=1)
    return torch.stack([MOTIONS[name].sign * advance[:, MOTIONS[name].axis] for name in CLASSES], dim=1).argmax(dim=1)


def _share(right: Tensor) -> float:
    return right.float().mean().item()


# Reports -------------------------------------------------------------------------------------------------------------


def table(starts: dict[str, Any]) -> Table:
    shown = Table("measure", title="Top-1 in %, chance 12.5; R2 in % of place, size, angle; on held-out clips")
    for name in starts:
        shown.add_column(name, justify="right")
    for of in (*CLASSED, *EXPLAINED):
        shown.add_row(of, *(f"{100 * r[of]['mean']:.1f} ± {100 * r[of]['std']:.1f}" for r in starts.values()))
    return shown


def plot(starts: dict[str, Any], file: Path) -> None:
    """A bar for each start and measure, with a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[len(CLASSED), len(STATES)])
    colours = ("0.75", "0.5", "tab:orange", "tab:blue")
    for axes, measures in ((left, CLASSED), (right, STATES)):
        for i, ((name, result), colour) in enumerate(zip(starts.items(), colours, strict=True)):
            places = np.arange(len(measures)) + 0.2 * (i - 1.5)
            axes.bar(places, [100 * result[of]["mean"] for of in measures], 0.18, color=colour, label=name)
            for run in result["runs"]:
                axes.plot(places, [100 * run[of] for of in measures], ".", color="black", markersize=3)
        axes.set_xticks(range(len(measures)), [of.replace(", ", "\n") for of in measures])
        axes.spines[["top", "right"]].set_visible(False)
    left.axhline(12.5, color="0.4", linewidth=0.8, linestyle=":")
    left.set_ylabel("top-1 on held-out clips, %")
    left.legend(frameon=False, fontsize="small")
    right.set_ylabel("R2 of states from a time's mean token, %")
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
