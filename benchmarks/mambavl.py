"""MambaVL on a generated kitchen: the published fusion beside others, what questions tell, and what fusion costs.

    python benchmarks/mambavl.py [--seeds 3] [--epochs 20] [--variants NAME ...] [--task recognition]
                                 [--skip-cost | --skip-training] [--output FILE.json]

**Training.** Videos in EPIC-KITCHENS format (datamodules/synthetic/kitchen.py): an action is one of 8 motions (verbs)
of one of 8 shapes (nouns); 160 videos of 8 actions to train, 60 others to validate. The vision tokens are those of the
shipped videomamba-nano-motion, frozen, which knows motions and was never asked about shapes; they are computed once (of
each training segment --draws random clips). Text model, fusion and heads start from scratch, as in the recipes
mambavl-demo and mambavl-joint-demo. Each variant is trained with the same seeds, which decide on weights, order, clips
and questions, and is scored once, after the last epoch.

The published family, fusions "published", "disjoint" and "transformer", reads two questions beside each segment:

- under its own name trained on questions written from the labels (datamodules/synthetic/questions.py). Scored twice:
  with the two generic questions, and with those of the labels (`leaked`), as its authors score;
- with "generic" behind its name trained and scored with the generic questions.

This zoo's own family is scored under the neutral question:

- "joint": one A for both modalities, questions;
- "separate": an A for each, questions;
- "no questions": one A, and only the neutral question in training;
- and on demand "concat", "cross_attention", "late".

Chance is 1/8 for verb and noun and 1/64 for the action. `answers` (own family) is the share of validation segments
whose best answer out of all 22 + actions is the right one, asked with the first wording of each kind.

**Cost.** Forward pass over N vision tokens, width 192, batch 1, one thread: of one fusion block of the own family with
16 language tokens; of the published fusion with two questions of 40.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, fastest, machine, peak_memory, save
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, default_collate

import zoo
from datamodules.annotations.questions import KINDS, QUESTIONS, answer_number, draw_question
from datamodules.epic_kitchens import EpicKitchens100
from datamodules.loading import Draw
from datamodules.synthetic.kitchen import generate_kitchen
from lightning_modules.base import BaseModule
from lightning_modules.nets.mambavl import MambaVL
from lightning_modules.nets.mambavl_joint import CrossAttentionBlock, FusionBlock
from lightning_modules.nets.roberta import RobertaWords, build_roberta
from lightning_modules.tasks.mambavl import ActionRecognition
from zoo.recipe import find_recipe, read_recipe

# Fusion, and whether training asks (own family) or reads what was written from the labels (published family).
PUBLISHED = {
    f"{fusion}{'' if told else ' generic'}": (fusion, told)
    for fusion in ("published", "disjoint", "transformer")
    for told in (True, False)
}
OWN = {
    "joint": ("joint", True),
    "separate": ("separate", True),
    "no questions": ("joint", False),
    "concat": ("concat", True),
    "cross_attention": ("cross_attention", True),
    "late": ("late", True),
}
VARIANTS = PUBLISHED | OWN
DEFAULT = (*PUBLISHED, "joint", "separate", "no questions")
LENGTHS = (1024, 2048, 4096, 8192, 16384)
WIDTH, LANGUAGE = 192, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--draws", type=int, default=3, help="random clips of each training segment")
    parser.add_argument("--videos", type=int, nargs=2, default=(160, 60), metavar=("TRAIN", "VAL"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--task", choices=("recognition", "anticipation"), default="recognition")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="vision tokens of the cost")
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result: dict[str, Any] = {"machine": machine()}
    if not arguments.skip_cost:
        result["cost"] = cost(arguments.lengths)
        print_cost(result["cost"])
    if not arguments.skip_training:
        with tempfile.TemporaryDirectory() as folder:
            train, val = arguments.videos
            root = generate_kitchen(Path(folder) / "kitchen", num_train=train, num_val=val, num_test=0, progress=False)
            data = Tokens(root, arguments.task, arguments.draws)
        runs = [
            run(data, name, seed, arguments.epochs) for seed in range(arguments.seeds) for name in arguments.variants
        ]
        result |= {"task": arguments.task, "epochs": arguments.epochs, "videos": [train, val], "runs": runs}
        print_runs(runs)
    save(result, arguments.output or RESULTS / f"mambavl_{arguments.task}.json")


# Training ------------------------------------------------------------------------------------------------------------


class Tokens(LightningDataModule):
    """The tokens of all segments in memory, in the place of their clips."""

    def __init__(self, root: Path, task: str, draws: int) -> None:
        super().__init__()
        recipe = read_recipe(
            find_recipe("mambavl-joint-demo" if task == "recognition" else "mambavl-joint-demo-anticipation")
        )
        self.arguments = {
            "own": recipe["model"]["init_args"],
            "published": read_recipe(find_recipe("mambavl-demo"))["model"]["init_args"] | {"task": task},
        }
        tower = zoo.load(self.arguments["own"]["init_from"])
        given = {**recipe["data"]["init_args"], "root": root, "num_workers": 0, "task": task, **tower.preprocessing}
        files = [f"EPIC_100_{split}_questions.csv" for split in ("train", "validation")]
        self.epic = EpicKitchens100(**given, questions="as_published", question_files=files)
        self.epic.setup("fit")
        self.task, self.asks = task, True
        self.questions = "generic"
        self.batch_size = given["batch_size"]
        self.verb_names, self.noun_names, self.actions = self.epic.verb_names, self.epic.noun_names, self.epic.actions
        self.captions = self.epic.captions
        self.sets = {"train": self._encode(tower, "train", draws), "val": self._encode(tower, "val", 1)}

    @torch.inference_mode()
    def _encode(self, tower: BaseModule, split: str, draws: int) -> list[dict]:
        """Items with `tokens` (draws, N, width) in place of `video`."""
        dataset, items = self.epic.datasets[split], []
        for index in range(len(dataset)):
            if split == "train":
                found = [dataset[Draw(index, 1000 * index + draw)] for draw in range(draws)]
            else:
                found = [dataset[index]]
            clips = torch.stack([item.pop("video") for item in found])
            items.append({**found[0], "tokens": tower.forward_features(clips, pool=None).clone()})
        return items

    def _collate(self, items: Sequence[dict], training: bool) -> dict:
        kept = ("verb", "noun", "action", "unseen", "tail", "index", "path", "narration_id")
        batch = default_collate([{key: item[key] for key in kept} for item in items])
        draws = [int(torch.randint(len(item["tokens"]), ())) if training else 0 for item in items]
        batch["features"] = torch.stack([item["tokens"][draw] for item, draw in zip(items, draws, strict=True)])
        if self.asks if training else self.questions == "as_published":
            batch |= {name: [item[name] for item in items] for name in ("verb_question", "noun_question")}
        if training:
            asked = [draw_question(KINDS if self.asks else (), 0.5) for _ in items]
            batch["question"] = [question.text for question in asked]
            batch["answer"] = torch.tensor([self.answer(q.kind, i["index"]) for q, i in zip(asked, items, strict=True)])
        return batch

    def answer(self, kind: str, index: int, split: str = "train") -> int:
        segment = self.epic.datasets[split].samples[index]
        labels = (segment.verb, segment.nouns, segment.action)
        return answer_number(kind, *labels, len(self.verb_names), len(self.noun_names))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.sets["train"], self.batch_size, shuffle=True, drop_last=True,
                          collate_fn=partial(self._collate, training=True))  # fmt: skip

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.sets["val"], 64, collate_fn=partial(self._collate, training=False))


def run(data: Tokens, name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Trains one variant with one seed; its scores, and the seconds it took."""
    fusion, data.asks = VARIANTS[name]
    data.questions = "generic"
    own = name in OWN
    fresh = {"fusion": fusion, "num_classes": len(data.actions), "init_from": None}
    fresh["vision"] = {"tower": "features", "feature_dim": data.sets["val"][0]["tokens"].shape[-1]}
    seed_everything(seed, verbose=False)
    model = ActionRecognition(**{**data.arguments["own" if own else "published"], **fresh})
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, **quiet)
    start = time.perf_counter()
    trainer.fit(model, datamodule=data)
    seconds = time.perf_counter() - start
    found = _test(trainer, model, data)
    record = {"variant": name, "seed": seed, "seconds": round(seconds), "scores": found, "leaked": None}
    record["answers"] = answers(model, data) if own and data.asks and data.task == "recognition" else None
    if not own and data.asks:
        data.questions = "as_published"
        record["leaked"] = _test(trainer, model, data)
    shown = [scores and {key: scores[key] for key in _shown(data.task)} for scores in (found, record["leaked"])]
    print(name, seed, *shown, record["answers"], f"{seconds:.0f} s", flush=True)
    return record


def _test(trainer: Trainer, model: ActionRecognition, data: Tokens) -> dict[str, float]:
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    return {key.removeprefix("test/"): round(value, 4) for key, value in scores.items()}


@torch.inference_mode()
def answers(model: ActionRecognition, data: Tokens) -> dict[str, float]:
    """Share of right answers to the first wording of each kind of question, over the segments that have one."""
    model.eval()
    right: dict[str, list[bool]] = {kind: [] for kind in QUESTIONS}
    for batch in data.test_dataloader():
        for kind, wordings in QUESTIONS.items():
            best = model.forward_heads(batch["features"], [wordings[0]] * len(batch["verb"]))["answer"].argmax(dim=1)
            for found, index in zip(best.tolist(), batch["index"].tolist(), strict=True):
                wanted = data.answer(kind, index, "val")
                if wanted >= 0:
                    right[kind].append(found == wanted)
    return {kind: round(statistics.fmean(hits), 4) for kind, hits in right.items()}


def _shown(task: str) -> tuple[str, ...]:
    measure = "top1" if task == "recognition" else "recall5"
    return tuple(f"{part}_{measure}" for part in ("verb", "noun", "action", "pair"))


def print_runs(runs: Sequence[dict[str, Any]]) -> None:
    """Mean and spread over the seeds."""
    keys = _shown("recognition" if "verb_top1" in runs[0]["scores"] else "anticipation")
    table = Table("variant", "seeds", *keys, "answers (verb / noun / action / place)")
    for name in dict.fromkeys(run["variant"] for run in runs):
        those = [run for run in runs if run["variant"] == name]
        cells = [_spread([run["scores"][key] for run in those]) for key in keys]
        told = [run["answers"] for run in those if run["answers"]]
        means = " / ".join(f"{statistics.mean(t[kind] for t in told):.1%}" for kind in QUESTIONS) if told else "-"
        table.add_row(name, str(len(those)), *cells, means)
        leaked = [run["leaked"] for run in those if run["leaked"]]
        if leaked:
            cells = [_spread([scores[key] for scores in leaked]) for key in keys]
            table.add_row(f"{name}, reading the labels' questions", str(len(leaked)), *cells, "-")
    Console().print(table)


def _spread(values: Sequence[float]) -> str:
    deviation = f" +- {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{deviation}"


# Cost ----------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def cost(lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds and MiB of one block over so many vision tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = {"joint": FusionBlock(WIDTH), "separate": FusionBlock(WIDTH, "separate")}
    blocks["cross_attention"] = CrossAttentionBlock(WIDTH)
    text = build_roberta({"vocab_size": 261, "hidden_size": 64, "num_attention_heads": 2})
    published = MambaVL(None, WIDTH, text, RobertaWords(261, 40), 8, 8).eval()
    questions = torch.randn(2, 40, 64)
    rows = []
    for length in lengths:
        vision, language = torch.randn(1, length, WIDTH), torch.randn(1, LANGUAGE, WIDTH)
        mask = torch.ones(1, LANGUAGE, dtype=torch.bool)
        calls = {"published": partial(_published, published, vision, questions)}
        calls |= {name: partial(block, vision, language, mask) for name, block in blocks.items()}
        for name, call in calls.items():
            milliseconds = 1e3 * fastest(call, budget_seconds=1.0, most=10)
            mib, _ = peak_memory(call)
            rows.append({"block": name, "tokens": length, "ms": round(milliseconds, 2),
                         "mib": None if mib is None else round(mib, 1)})  # fmt: skip
    torch.set_num_threads(threads)
    return rows


def _published(net: MambaVL, vision: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    return net.fuse(net.read_vision(vision), net.read_text(questions))


def print_cost(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each length."""
    names = list(dict.fromkeys(row["block"] for row in rows))
    table = Table("vision tokens", *(f"{name}, ms" for name in names), *(f"{name}, MiB" for name in names))
    for length in dict.fromkeys(row["tokens"] for row in rows):
        of = {row["block"]: row for row in rows if row["tokens"] == length}
        memory = ["-" if of[name]["mib"] is None else f"{of[name]['mib']:.0f}" for name in names]
        table.add_row(str(length), *(f"{of[name]['ms']:.1f}" for name in names), *memory)
    Console().print(table)


if __name__ == "__main__":
    main()
