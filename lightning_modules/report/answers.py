"""The report of a classification: what is collected of each sample, and what is written of all."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_modules.report import figures, numbers
from lightning_modules.report.page import Bar, Picture, Section, Shown, Table, Tile
from lightning_modules.training.metrics import distinct

__all__ = ["AnswerRows", "Answers", "Kind"]

BEST = 5
MATRIX = 40  # classes of a confusion matrix
LISTED = 10  # classes of the best and of the worst
ALL_LISTED = 20  # classes up to which all are in one table
MOST_CLASSES = 5000
MOST_SCORES = 2**26
"""Numbers of the scores that all processes keep together of a kind of answer: 256 MiB."""


class AnswerRows:
    """Collects one process's answers: of a sample the path, and by kind the true class and the five best ones.

    That is about 100 bytes. Average precision needs all K probabilities, 4 K bytes a sample; where they would take more
    than 256 MiB for all processes, they are dropped, and average precision is left out.

    Args:
        processes: how many collect together.
    """

    def __init__(self, processes: int) -> None:
        self.room = MOST_SCORES // processes
        self.samples: dict[str, list] = {"index": [], "path": [], "segment": []}
        self.unreadable: set[str] = set()
        self.kinds: dict[str, dict[str, list[Tensor]]] = {}  # without "scores" where they are too many
        self.names: dict[str, Sequence[str]] = {}

    def add(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Add what a test step returned for a batch.

        Args:
            outputs: by kind of answer, the main one first, "scores" with probabilities (B, K), "truth" with int64 (B,):
                0 .. K - 1, K for a class that the model does not have, -1 for samples without labels; and "names" with
                names of the classes, or None.
            batch: has "index" and "path" (docs/batches.md), and maybe "narration_id".
        """
        index = batch["index"].cpu()
        kept = (index >= 0).nonzero().flatten()
        self.unreadable |= {batch["path"][i] for i in (index < 0).nonzero().flatten().tolist()}
        self.samples["index"] += index[kept].tolist()
        self.samples["path"] += [batch["path"][i] for i in kept.tolist()]
        segments = batch.get("narration_id") or [""] * len(index)
        self.samples["segment"] += [segments[i] for i in kept.tolist()]
        for kind, scores in outputs["scores"].items():
            if scores.shape[1] > MOST_CLASSES:
                continue
            self.names[kind] = outputs["names"][kind] or [str(k) for k in range(scores.shape[1])]
            rows = self.kinds.setdefault(kind, {"truth": [], "best": [], "probability": [], "scores": []})
            # On the device of the scores: which of two equal ones is first may depend on it.
            best = scores.float().topk(min(BEST, scores.shape[1]), dim=1)
            found = {"truth": outputs["truth"][kind], "best": best.indices, "probability": best.values}
            for name, values in found.items():
                rows[name].append(values.cpu()[kept])
            if len(self.samples["index"]) * scores.shape[1] > self.room:
                rows.pop("scores", None)
            if "scores" in rows:
                rows["scores"].append(scores.float().cpu()[kept])

    def part(self) -> dict:
        """What this process has, as plain values to send to the first one."""
        kinds = {kind: {name: torch.cat(values) for name, values in rows.items()} for kind, rows in self.kinds.items()}
        return {"samples": self.samples, "unreadable": self.unreadable, "kinds": kinds, "names": self.names}

    def join(self, parts: Sequence[dict]) -> "Answers | None":
        """The report of what all processes have; each sample once, by its index. None without any sample."""
        parts = [part for part in parts if part["samples"]["index"]]
        if not parts:
            return None
        samples = {name: [value for part in parts for value in part["samples"][name]] for name in self.samples}
        kept = distinct(torch.tensor(samples["index"]))
        kinds = []
        for kind, names in parts[0]["names"].items():
            found = [part["kinds"][kind] for part in parts]
            common = set(found[0]).intersection(*found)  # some may have dropped the scores
            rows = {name: torch.cat([rows[name] for rows in found]) for name in common}
            labelled = kept[rows["truth"][kept] >= 0]
            chosen: dict[str, Any] = {name: values[labelled] for name, values in rows.items()}
            chosen |= {name: [values[i] for i in labelled.tolist()] for name, values in samples.items()}
            kinds.append(Kind(kind, names, **chosen))
        unreadable = set().union(*(part["unreadable"] for part in parts))
        return Answers(kinds, len(kept), len(unreadable)) if kinds else None


@dataclass(frozen=True, eq=False)
class Kind:
    """All answers of one kind: N samples with labels, K classes.

    Attributes:
        kind: what is answered: "class", "verb".
        names: of the classes.
        index: N positions in the data set, ascending.
        path: N files.
        segment: N names of annotations, or empty.
        truth: int64 (N,), 0 .. K.
        best: int64 (N, k), the best answers.
        probability: (N, k), theirs.
        scores: (N, K), all probabilities; None where they were too many.
    """

    kind: str
    names: Sequence[str]
    index: Sequence[int]
    path: Sequence[str]
    segment: Sequence[str]
    truth: Tensor
    best: Tensor
    probability: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def num_classes(self) -> int:
        """K, how many classes the model has."""
        return len(self.names)

    @cached_property
    def right(self) -> Tensor:
        """Whether the best answer is right, bool (N,)."""
        return self.best[:, 0] == self.truth

    @cached_property
    def per_class(self) -> numbers.PerClass:
        """Scores of each class by its best answers, (K,)."""
        return numbers.per_class(self.best[:, 0], self.truth, self.num_classes)

    @cached_property
    def average_precision(self) -> Tensor:
        """Area under the precision-recall curve of each class, (K,); nan where the probabilities were dropped."""
        if self.scores is None:
            return torch.full((self.num_classes,), math.nan)
        return numbers.average_precision(self.scores, self.truth)

    @cached_property
    def matrix(self) -> Tensor:
        """How often samples of a class (row) got an answer (column), int64 (K, K)."""
        return numbers.confusion(self.best[:, 0], self.truth, self.num_classes)

    @cached_property
    def calibration(self) -> numbers.Calibration:
        """How often best answers of a confidence are right."""
        return numbers.calibration(self.probability[:, 0], self.right)

    @property
    def shares(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy; no top-5 of five classes or fewer, which is 1."""
        hits = self.best == self.truth[:, None]
        ranks = (1, BEST) if self.num_classes > BEST else (1,)
        return {f"top{k}": float(hits[:, :k].any(dim=1).double().mean()) for k in ranks}

    @property
    def mistakes(self) -> list[int]:
        """Rows of wrong answers, the most confident first."""
        rows = (~self.right).nonzero().flatten()
        return rows[self.probability[rows, 0].argsort(descending=True, stable=True)].tolist()

    def name(self, number: int) -> str:
        """Return the name of a class; K stands for a class that the model does not have."""
        return self.names[number] if number < self.num_classes else "(no class of the model)"


class Answers:
    """The report of a classification.

    Args:
        kinds: all answers by kind, the main one first.
        samples: how many were judged.
        unreadable: how many videos could not be read.
    """

    def __init__(self, kinds: Sequence[Kind], samples: int, unreadable: int) -> None:
        self.kinds, self.samples, self.unreadable = [kind for kind in kinds if len(kind)], samples, unreadable

    @property
    def scores(self) -> dict[str, Any]:
        """For programs: by kind the shares with their intervals, the mean recall and the calibration error."""
        return {kind.kind: _scores(kind) for kind in self.kinds}

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the files beside the page."""
        yield "per_class.csv", self._table(_class_rows, ("class", "index", "count", "precision", "recall", "f1",
                                                         "average_precision"))  # fmt: skip
        answers = [f"{what}_{k}" for k in range(1, BEST + 1) for what in ("answer", "probability")]
        yield "mistakes.csv", self._table(_mistake_rows, ("path", "segment", "index", "truth", *answers))
        for number, kind in enumerate(self.kinds):
            yield f"confusion_{kind.kind}.png" if number else "confusion.png", figures.on_white(*_confusion(kind))

    def sections(self, clip_of: Callable[[int], bytes | None], worst: int) -> Iterator[Section]:
        """The parts of the page, with the `worst` clips, which `clip_of` gives by their positions in the data set."""
        for number, kind in enumerate(self.kinds):
            title = f"{kind.kind.capitalize()}: " if len(self.kinds) > 1 else ""
            yield Section(f"{title}Scores", tiles=_tiles(kind))
            yield Section(f"{title}Confusion", *_confusions(kind))
            yield Section(f"{title}Classes", tables=_class_tables(kind))
            yield Section(
                f"{title}Calibration",
                "A calibrated model is right in 80% of the answers that it gives a probability of 80%. The expected "
                f"calibration error is the mean distance from that: {kind.calibration.error:.1%}.",
                pictures=[Picture(figures.both(figures.draw_reliability, kind.calibration), "Calibration curve")],
            )
            if number == 0:
                yield _worst(kind, clip_of, worst)

    def _table(self, rows_of: Callable[[Kind], Iterator[Sequence[object]]], columns: Sequence[str]) -> bytes:
        several = len(self.kinds) > 1
        rows: list[list[object]] = [[*["kind"] * several, *columns]]
        rows += [[*[kind.kind] * several, *row] for kind in self.kinds for row in rows_of(kind)]
        return table(rows)


def table(rows: Sequence[Sequence[object]]) -> bytes:
    """A CSV file; of floats six digits, nothing for nan. Names of files that are not valid UTF-8 keep their bytes."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue().encode("utf-8", "surrogateescape")


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"


def _scores(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {"samples": len(kind), **kind.shares}
    found |= {f"{name}_interval": numbers.interval(share, len(kind)) for name, share in kind.shares.items()}
    recall = float(kind.per_class.recall.nanmean())
    return {**found, "mean_recall": recall, "calibration_error": kind.calibration.error}


def _class_rows(kind: Kind) -> Iterator[Sequence]:
    columns = (values.tolist() for values in (*kind.per_class[1:], kind.average_precision))
    counts = kind.per_class.count.long().tolist()
    yield from zip(kind.names, range(kind.num_classes), counts, *columns, strict=True)


def _mistake_rows(kind: Kind) -> Iterator[Sequence]:
    for row in kind.mistakes:
        pairs = zip(kind.best[row].tolist(), kind.probability[row].tolist(), strict=True)
        answers = [value for number, probability in pairs for value in (kind.name(number), probability)]
        answers += [""] * (2 * BEST - len(answers))
        truth = kind.name(int(kind.truth[row]))
        yield kind.path[row], kind.segment[row], kind.index[row], truth, *answers


def _tiles(kind: Kind) -> list[Tile]:
    tiles = []
    for name, share in kind.shares.items():
        low, high = numbers.interval(share, len(kind))
        remark = f"95% interval {low:.1%} to {high:.1%}"
        tiles.append(Tile(f"Top-{name.removeprefix('top')} accuracy", f"{share:.1%}", remark))
    classes = int((kind.per_class.count > 0).sum())
    return [
        *tiles,
        Tile("Mean recall of classes", f"{kind.per_class.recall.nanmean():.1%}", f"{classes:,} classes with samples"),
        Tile("Calibration error", f"{kind.calibration.error:.1%}", "expected"),
        Tile("Samples", f"{len(kind):,}", f"{len(kind.mistakes):,} wrong"),
    ]


def _confusion(kind: Kind) -> tuple:
    chosen = numbers.most_confused(kind.matrix, MATRIX)
    shown = kind.matrix[chosen][:, chosen]
    elsewhere = None if len(chosen) == kind.num_classes else kind.matrix[chosen].sum(dim=1) - shown.sum(dim=1)
    return figures.draw_confusion, shown, [kind.names[k] for k in chosen.tolist()], elsewhere


def _confusions(kind: Kind) -> tuple[str, Sequence[Tile], list[Picture], list[Table]]:
    wrong = kind.matrix - torch.diag(kind.matrix.diag())
    most = wrong.flatten().argsort(descending=True, stable=True)[:LISTED].tolist()
    pairs = [(place // kind.num_classes, place % kind.num_classes) for place in most]
    rows: list[tuple[str | int | Bar, ...]] = [
        (kind.names[row], kind.names[column], int(wrong[row, column]),
         Bar(float(wrong[row, column] / kind.matrix[row].sum())))
        for row, column in pairs if wrong[row, column] > 0
    ]  # fmt: skip
    text = "Rows are the true classes, columns the answers."
    if kind.num_classes > MATRIX:
        text += f" Of {kind.num_classes:,} classes the {MATRIX} that take part in the most mistakes are shown."
    picture = Picture(figures.both(*_confusion(kind)), "Confusion matrix", wide=True)
    columns = ("truth", "answer", "times", "of the class")
    return text, (), [picture], [Table("The most frequent mistakes", columns, rows)] if rows else []


def _class_tables(kind: Kind) -> list[Table]:
    found = kind.per_class
    rows = [k for k in range(kind.num_classes) if found.count[k] > 0]
    rows.sort(key=lambda k: (float(found.f1[k]), k))

    def table_of(title: str, chosen: Sequence[int]) -> Table:
        cells: list[tuple[str | int | Bar, ...]] = [
            (kind.names[k], int(found.count[k]), *(Bar(float(v[k])) for v in (*found[1:], kind.average_precision)))
            for k in chosen
        ]
        return Table(title, ("class", "samples", "precision", "recall", "F1", "average precision"), cells)

    if len(rows) <= ALL_LISTED:
        return [table_of("By F1, the worst first", rows)]
    return [table_of("The worst by F1", rows[:LISTED]), table_of("The best by F1", rows[::-1][:LISTED])]


def _worst(kind: Kind, clip_of: Callable[[int], bytes | None], worst: int) -> Section:
    rows = kind.mistakes[:worst]
    if not rows:
        return Section("Worst clips", "All answers are right.")
    clips = []
    for row in rows:
        truth = int(kind.truth[row])
        places = (kind.best[row] == truth).nonzero().flatten().tolist()
        chance = f" ({kind.probability[row, places[0]]:.1%})" if places else ""
        lines = [
            ("answer", f"{kind.name(int(kind.best[row, 0]))} ({kind.probability[row, 0]:.1%})"),
            ("truth", f"{kind.name(truth)}{chance}"),
        ]
        name = kind.path[row] + (f", {kind.segment[row]}" if kind.segment[row] else "")
        clips.append(Shown(clip_of(kind.index[row]), name, lines))
    return Section("Worst clips", "The wrong answers with the highest probabilities, as the model saw the clips.",
                   clips=clips)  # fmt: skip
