"""A test whose scores are known, with a report: ``python report_run.py FOLDER PROCESSES KIND...``.

Scores depend on the index of an item alone, so that any number of processes finds the same ones. One item is a
placeholder, as for an unreadable video.
"""

import sys

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from datamodules.retrieval import collate_captions
from lightning_modules.callbacks import Report
from lightning_modules.training.metrics import RetrievalRanks, SampleAccuracy

BROKEN = 4


class Items(Dataset):
    """Videos whose pixels are their index; captions for a retrieval."""

    def __init__(self, samples: int, classes: int) -> None:
        self.truth = np.random.default_rng(1).integers(0, classes, samples)
        self.reads: list[int] = []
        self.gone = False

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, number: int) -> dict:
        self.reads.append(number)
        if self.gone:
            raise OSError("the disk is gone")
        index = -1 if number == BROKEN else number
        video = torch.full((2, 3, 4, 20, 24), number, dtype=torch.uint8)
        captions = [f"caption {k} of <b>{number}</b>" for k in range(1 + number % 3)]
        return {"video": video, "label": int(self.truth[number]), "index": index, "video_index": index,
                "path": f"videos/<i>{number}</i>.mp4", "text": captions}  # fmt: skip


def scores_of(index: int, classes: int, truth: int | None = None) -> torch.Tensor:
    """Probabilities of an item, which know a little."""
    logits = np.random.default_rng((7, index)).normal(size=classes)
    if truth is not None:
        logits[truth] += 1.5
    return torch.from_numpy(logits).float().softmax(dim=0)


def vectors_of(index: int, captions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of a video and of its captions."""
    rng = np.random.default_rng((8, index))
    video = rng.normal(size=8)
    text = video + rng.normal(size=(captions, 8))
    return tuple(torch.nn.functional.normalize(torch.from_numpy(v).float(), dim=-1) for v in (video, text))


class Known(LightningModule):
    """Gives the scores above; `kinds` are those of a classification, and without any it is a retrieval."""

    def __init__(self, classes: int, kinds: tuple[str, ...], dual_softmax: bool = False) -> None:
        super().__init__()
        self.classes, self.kinds, self.dual_softmax = classes, kinds, dual_softmax
        self.before_the_end = lambda: None
        self.accuracy, self.ranks = SampleAccuracy(classes), RetrievalRanks(dual_softmax)

    def test_step(self, batch: dict, batch_idx: int) -> dict:
        numbers = batch["video"][:, 0, 0, 0, 0, 0].tolist()
        if self.kinds:
            label = batch["label"]
            scores = torch.stack([scores_of(i, self.classes, t) for i, t in zip(numbers, label.tolist(), strict=True)])
            self.accuracy.update(scores, label, batch["index"], torch.zeros(len(label)))
            names = [f"class <{k}>" for k in range(self.classes)]
            return {
                "scores": {kind: scores.roll(shift, dims=1) for shift, kind in enumerate(self.kinds)},
                "truth": {kind: (label + shift) % self.classes for shift, kind in enumerate(self.kinds)},
                "names": {kind: names if shift == 0 else None for shift, kind in enumerate(self.kinds)},
            }
        found = [vectors_of(i, len(texts)) for i, texts in zip(numbers, batch["text"], strict=True)]
        video, text = torch.stack([v for v, _ in found]), torch.cat([t for _, t in found])
        self.ranks.update(video, batch["video_index"], 5 * text, torch.tensor([len(t) for t in batch["text"]]))
        return {"video_vectors": video, "text_vectors": text, "scale": 5.0, "dual_softmax": self.dual_softmax}

    def on_test_epoch_end(self) -> None:
        self.before_the_end()
        metric = self.accuracy if self.kinds else self.ranks
        self.log_dict({f"test/{name}": value for name, value in metric.compute().items()}, sync_dist=True)


def run(kind: str, folder: str, processes: int = 1, *, samples: int = 25, classes: int = 7, worst: int = 5,
        before=lambda items: None, **options) -> tuple[Items, Known]:  # fmt: skip
    """Tests a module: "class", "action,verb,noun", "retrieval" or "dual"."""
    items = Items(samples, classes)
    kinds = () if kind in ("retrieval", "dual") else tuple(kind.split(","))
    module = Known(classes, kinds, kind == "dual")
    options = {"logger": CSVLogger(folder, name="known", version="test_0"), **options}
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
        callbacks=[Report(worst)], enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **options,
    )  # fmt: skip
    loader = DataLoader(items, batch_size=3, collate_fn=collate_captions)
    module.before_the_end = lambda: before(items)
    trainer.test(module, loader, verbose=False)
    return items, module


if __name__ == "__main__":
    for kind in sys.argv[3:]:
        run(kind, f"{sys.argv[1]}/{kind}", int(sys.argv[2]))
