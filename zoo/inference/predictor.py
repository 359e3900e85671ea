"""Labels of videos: a callable from paths to rows, for `zoo predict -o` and for engines that deal out batches."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from datamodules.video.views import load_views
from lightning_modules.base import BaseModule
from zoo.deploy.onnx_model import open_model
from zoo.inference.precision import check_precision, inference
from zoo.inference.predict import check_finite, classifier, rank, regressor, to_device, views_of
from zoo.limits import BATCH, TOPK, check_range, check_shard
from zoo.tables.fill import Done, fill
from zoo.tables.job import Job, Reader, Span
from zoo.tables.listing import list_videos
from zoo.tables.output import Output, check_output
from zoo.tables.table import Record

__all__ = ["VideoPredictor", "ViewReader", "predict_into"]


class ViewReader(Reader):
    """Reads videos, all views (V, 3, T, H, W) of one at a time, as `datamodules.video.views.load_views` does."""

    def __init__(self, views: Mapping[str, Any]) -> None:
        super().__init__(1)
        self.views = dict(views)

    @override
    def clips(self, path: str, span: Span) -> Iterator[tuple[Tensor, list[Record]]]:
        views = load_views(path, **self.views, spans=(span,))
        stretch = (0.0, views.duration) if span is None else span
        yield views.video, [Record(path, round(stretch[0], 6), round(stretch[1], 6))]


class VideoPredictor(Job):
    """A callable from a batch of videos to rows with their labels, the rows of the table that `zoo predict -o` writes.

    Args:
        model: a classifier or a regressor, anything `zoo.load` takes, or an ONNX file that `zoo.export` wrote.
        topk: how many classes; all if the model has fewer.
        num_clips: clips in time that are averaged; None as for `zoo.predict`.
        num_crops: square crops along the long side, 1 or 3; None as for `zoo.predict`.
        batch_size: views that the model sees at once.
        precision: as for `zoo.predict`.
        device: where the model runs; "auto" is a GPU where there is one.

    Attributes:
        columns: ``labels``, best first, and their ``probabilities``, in [0, 1]; of a regressor ``value``.

    Raises:
        ZooError: the model neither classifies nor predicts a number, or a number is out of range.
    """

    kind, left_out = "predictions", "no prediction of it"

    def __init__(
        self,
        model: BaseModule | str | os.PathLike[str],
        *,
        topk: int = 5,
        num_clips: int | None = None,
        num_crops: int | None = None,
        batch_size: int = 8,
        precision: str = "fp32",
        device: str = "auto",
    ) -> None:
        check_range("topk", topk, TOPK)
        check_range("batch_size", batch_size, BATCH)
        model = open_model(model) if isinstance(model, str | os.PathLike) else model
        self.predicts_number = hasattr(model, "value_name")
        model = (regressor if self.predicts_number else classifier)(model)
        self.columns = ("value",) if self.predicts_number else ("labels", "probabilities")
        views = views_of(model, num_clips, num_crops)
        self.reader = ViewReader(views)
        self.model, self.topk, self.batch_size = to_device(model, device).eval(), topk, batch_size
        check_precision(precision, self.model.device)
        self.settings = {name: views[name] for name in ("num_clips", "num_crops")} | {"precision": precision}
        if not self.predicts_number:
            self.settings["topk"] = topk

    @override
    def types(self) -> dict[str, Any]:
        import pyarrow as pa

        if self.predicts_number:
            return {"value": pa.float64()}
        return {"labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float32())}

    @override
    def answer(self, video: Tensor) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        with inference(self.settings["precision"], self.model.device):
            for views in video:
                parts = [self.model(part.to(self.model.device)).float() for part in views.split(self.batch_size)]
                answers = torch.cat(parts).cpu()
                if self.predicts_number:
                    found.append((check_finite(answers.mean(0)).item(),))
                    continue
                best = rank(self.model, check_finite(answers.softmax(dim=1).mean(0)), self.topk)
                found.append(([one.label for one in best], [one.probability for one in best]))
        return found


def predict_into(
    make_model: Callable[[], BaseModule],
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    topk: int = 5,
    num_clips: int | None = None,
    num_crops: int | None = None,
    precision: str = "fp32",
    num_workers: int | None = None,
    ray: str | None = None,
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Done:
    """Write labels of all videos of the sources into a table, or continue one, see `zoo.tables.fill.fill`.

    Args:
        make_model: called for the model once the sources and the table have been found right.
        sources: see `zoo.tables.listing.list_videos`.
        out: the table, a file .parquet or a folder or URL .lance.
        name: of the model, to be recorded in the table.
        topk: as for `VideoPredictor`, and so are the next three.
        num_workers: as for `fill`, and so are the rest.

    Raises:
        ZooError: no videos, a model that predicts nothing, or a table made with other weights or settings.
    """
    check_shard(shard)
    out = check_output(out, shard)
    listing, roots = list_videos(sources)
    job = VideoPredictor(make_model(), topk=topk, num_clips=num_clips, num_crops=num_crops, precision=precision,
                         device=device)  # fmt: skip
    return fill(job, Output(out, job, name), listing, roots, num_workers=num_workers, ray=ray, shard=shard,
                on_files=on_files)  # fmt: skip
