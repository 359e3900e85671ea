"""Search in your own videos: `index` writes vectors of them into a table, `search` compares texts and clips with it."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from datamodules.storage.files import is_url
from datamodules.storage.writing import written_folder
from lightning_modules.base import BaseModule
from zoo.errors import UnknownModelError, ZooError
from zoo.files import check_folder
from zoo.limits import BATCH, SECONDS, check_range, check_shard
from zoo.retrieval.embedder import WINDOW_SECONDS, VideoEmbedder, WindowReader
from zoo.retrieval.old_index import read_head, read_parts
from zoo.retrieval.table import COLUMNS, Hit, Index
from zoo.tables.fill import check_config, check_settings, check_weights, describe, fill, source_of
from zoo.tables.listing import list_videos
from zoo.tables.place import Place, absolute
from zoo.tables.table import check_place

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Summary", "check_queries", "convert_index", "index", "made_with", "optimise", "search"]


class Summary(NamedTuple):
    """Summary of a run of `index`, as `zoo.tables.fill.Done`; `vectors` counts those in the whole index now."""

    videos: int
    indexed: int
    unreadable: int
    kept: int
    dropped: int
    vectors: int


def index(
    model: BaseModule | str,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    window: float | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    ray: str | None = None,
    shard: tuple[int, int] = (1, 1),
    dtype: str | None = None,
    precision: str = "fp32",
    metadata: str | os.PathLike[str] | None = None,
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Summary:
    """Make an index of videos, or continue one.

    Files that are in it and have not changed (size, time of change) are skipped, files that have changed are read
    again, and files that are gone are dropped. A file that cannot be read is one warning; it is noted and tried again
    only when it has changed.

    Args:
        model: a text-video model or a classifier, which is put into eval mode, or anything `zoo.load` takes.
        sources: folders, searched at any depth, files, lists of files, and tar shards, see
            `zoo.tables.listing.list_videos`; local, or URLs that fsspec knows. What the index has from other folders
            stays.
        out: the index, a local folder or a URL (`s3://`, ...).
        window: longest stretch in seconds that one vector represents; longer videos are cut into equal stretches,
            ``math.inf`` never cuts. None is that of the index, 20 for a new one.
        batch_size: clips that the model sees at once.
        num_workers: processes that read videos; 0 reads in this one, None is one per core, at most 4.
        ray: address of a Ray cluster that reads and embeds, "auto" for the one that is there or a new one; None does it
            here.
        shard: (k, n): of n processes that index the same sources, this is number k, from 1; for local indices.
        dtype: "float32" or "float16" in the table; None is that of the index, float32 for a new one.
        precision: that of the model, as for `zoo.predict`.
        metadata: CSV file with a column ``path``, relative to the file's folder, absolute or a URL, and columns of
            yours, which the table gets.
        device: where the model runs; "auto" is a GPU where there is one.
        on_files: called with the number of finished files and of all files, as they change.

    Raises:
        ZooError: no videos; a model that makes no vectors; an index made with other weights or settings; a CSV that
            cannot be read; or LanceDB or Ray is not installed.
    """
    check_shard(shard)
    check_range("batch_size", batch_size, BATCH)
    if window not in (None, math.inf):
        check_range("window", window, SECONDS)
    out = os.fspath(out)
    if not is_url(out):
        check_folder(out)
    elif shard != (1, 1):
        raise ZooError(f"{out} is written by one process, since no lock protects it; omit --shard.")
    listing, roots = list_videos([sources] if isinstance(sources, str | os.PathLike) else sources)
    check_place(out)
    place = Place(out)
    described = None if metadata is None else _read_metadata(metadata, place)
    embedder = VideoEmbedder(model, batch_size=batch_size, precision=precision, device=device)
    target = _Target(out, embedder, source_of(model, place), window, dtype, described)
    done = fill(embedder, target, listing, roots, num_workers=num_workers, ray=ray, shard=shard,
                on_files=on_files)  # fmt: skip
    return Summary(done.videos, done.read, done.unreadable, done.kept, done.dropped, target.vectors)


class _Target:
    """An index that `fill` writes to, with the columns of a CSV."""

    def __init__(
        self,
        out: str,
        embedder: VideoEmbedder,
        source: str | None,
        window: float | None,
        dtype: str | None,
        described: "pyarrow.Table | None",
    ) -> None:
        self.shown, self.place, self.embedder, self.source = out, Place(out), embedder, source
        self.window, self.dtype, self.described, self.vectors = window, dtype, described, 0

    def open(self) -> Index:
        """The index that is there, if it was made in the same way, or a new one."""
        out, embedder = self.shown, self.embedder
        described = describe(embedder.model)
        index = Index.open(out) if Index.exists(out) else self._new(described)
        made, old = made_with(index), index.settings["window"] or math.inf
        check_weights(out, made["sha256"], described["sha256"], self.source or f"this {type(embedder.model).__name__}")
        check_config(out, made["config"], described["config"])
        check_settings(out, index.settings, {"precision": embedder.precision})
        if self.window not in (None, old) or self.dtype not in (None, index.dtype):
            raise ZooError(f"{out} was made with windows of {old:g} s in {index.dtype}; omit these options to update "
                           "it, or index into another folder.")  # fmt: skip
        embedder.reader.window = old
        return index

    def _new(self, described: Mapping[str, Any]) -> Index:
        window = WINDOW_SECONDS if self.window is None else None if math.isinf(self.window) else self.window
        model = {"source": self.source, **described}
        settings = {"window": window, "precision": self.embedder.precision, "model": model}
        try:
            return Index.create(self.shown, self.embedder.dims, self.dtype or "float32", settings)
        except ZooError:
            if not Index.exists(self.shown):
                raise
            return Index.open(self.shown)  # another process, with another share, was faster

    def finish(self, table: Index) -> int:
        if self.described is not None:
            table.describe(self.described)
        table.optimise()
        self.vectors = len(table)
        return table.count_rows()


def optimise(out: str | os.PathLike[str]) -> int:
    """Join the files of an index, and build its approximate index anew if it is large enough to have one.

    Return the number of vectors; raise `ZooError` where there is no index, or it cannot be written.
    """
    target = Index.open(out)
    target.optimise(rebuild=True)
    return len(target)


def convert_index(old: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Copy an index of the former format into a table; the old one stays. Return the number of vectors.

    Args:
        old: folder with index.json and part-*.safetensors.
        out: new folder, which appears complete or not at all.

    Raises:
        ZooError: the old one is damaged, or the new place is taken or cannot be written.
    """
    head = read_head(old)
    if is_url(os.fspath(out)):
        raise ZooError(f"{out} is a URL; convert into a local folder, and copy that.")
    out = check_folder(out).absolute()
    if out.exists() and any(out.iterdir()):
        raise ZooError(f"{out} exists and is not replaced; choose another name.")
    from_, to = Place(old), Place(out)
    model = head["model"]
    if isinstance(model, dict) and isinstance(model.get("source"), str) and model["source"].startswith("./"):
        model = model | {"source": to.source(from_.found(model["source"]))}
    if type(head["dims"]) is not int or not isinstance(head["dtype"], str):
        raise ZooError(f"{old} says dims {head['dims']!r} and dtype {head['dtype']!r}; make the index again.")
    settings = {"window": head["window"], "model": model}
    with written_folder(out) as beside:
        target = Index.create(beside, head["dims"], head["dtype"], settings)
        made_with(target)
        for records, vectors, files in read_parts(old, target.dims, target.dtype):
            moved = [record._replace(path=to.stored(from_.found(record.path))) for record in records]
            target.add(moved, vectors, [file._replace(path=to.stored(from_.found(file.path))) for file in files])
        target.optimise()
    return len(Index.open(out))


def search(
    index: Index | str | os.PathLike[str],
    queries: str | Sequence[str] = (),
    *,
    topk: int = 10,
    where: str | None = None,
    exact: bool = False,
    like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    model: BaseModule | str | None = None,
    device: str = "auto",
) -> list[list[Hit]]:
    """The stretches of video that fit each text or clip best, best first; their paths are absolute.

    Args:
        index: an index that `index` made.
        queries: one text or several.
        topk: how many for each.
        where: a condition in SQL on the columns of the table, such as ``"path LIKE '%kitchen%' AND start > 60"``.
        exact: compare all vectors, where an approximate index would be used.
        like: one video or several; the answers come after those to the texts. Of a long one all frames are considered,
            as one stretch.
        model: the model it was made with, loaded or as for `zoo.load`; None looks where it was then.
        device: where the model runs.

    Raises:
        ZooError: no such index, a model with other weights or without text side, a text without content, or a wrong
            condition.
        DecodeError: a video of `like` cannot be read.
    """
    queries = [queries] if isinstance(queries, str) else list(queries)
    clips = [absolute(path) for path in ([like] if isinstance(like, str | os.PathLike) else like)]
    if not queries and not clips:
        raise ZooError("There is nothing to search for; give a text, or a clip with --like.")
    check_queries(queries)
    check_range("topk", topk, (1, math.inf))
    index = index if isinstance(index, Index) else Index.open(index)
    if where is not None:
        index.count(where)  # a wrong condition is told before the model is loaded
    place, named = Place(index.folder), model if model is not None else made_with(index)["source"]
    if named is None:
        raise ZooError(f"{index.folder} was made with a model without a name; say which: --model.")
    if isinstance(named, str) and model is None and named.startswith(("./", "/")):
        named = place.found(named)
    try:
        embedder = VideoEmbedder(named, device=device)
    except UnknownModelError as error:
        raise ZooError(f"The model of {index.folder} is not at {named}; say where it is: --model.") from error
    name = source_of(named, place) or f"this {type(embedder.model).__name__}"
    check_weights(index.folder, made_with(index)["sha256"], describe(embedder.model)["sha256"], name)
    if queries and not embedder.compares_texts:
        raise ZooError(f"{index.folder} was made with a model that cannot compare texts with videos; search it by a "
                       "clip: --like CLIP.")  # fmt: skip
    vectors = [_vector(embedder, clip) for clip in clips]
    if queries:
        with torch.inference_mode():
            vectors.insert(0, embedder.model.encode_text(queries).float().cpu())
    found = index.search(torch.cat(vectors), topk, where=where, exact=exact)
    return [[hit._replace(path=place.found(hit.path)) for hit in hits] for hits in found]


def _vector(embedder: VideoEmbedder, path: str) -> Tensor:
    """The vector (1, dims) of a whole video."""
    reader = WindowReader(embedder.reader.clip, math.inf, 1)
    batches = list(reader.read([path]))
    broken = next((file.error for batch in batches for file in batch.files if file.error is not None), None)
    if broken is not None:
        raise ZooError(broken)
    return torch.cat([embedder.embed(batch.video) for batch in batches if batch.video is not None])


def check_queries(queries: Sequence[str]) -> None:
    """Raise `ZooError` for texts that say nothing, or are not valid Unicode, which no tokenizer reads."""
    for query in queries:
        if not query.strip():
            raise ZooError("A text to search for is empty; say what the video shows.")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise ZooError(f"The text {query!r} is not valid UTF-8; write it in another encoding.") from error


def _read_metadata(path: str | os.PathLike[str], place: Place) -> "pyarrow.Table":
    """The CSV as ``pyarrow.Table``, with paths as the index has them."""
    import pyarrow as pa
    from pyarrow import csv

    path = os.path.abspath(Path(path).expanduser())
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its writer
        raise ZooError(f"{path} cannot be read as CSV (it is not a regular file); write one line for each video.")
    try:
        strings = {"path": pa.string()}
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=strings))
        names: list[str] = table.column_names
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ZooError(f"{path} cannot be read as CSV ({reason}); write one line for each video.") from error
    taken = [name for name in names if name in COLUMNS[:1] + COLUMNS[2:] or name.startswith("_")]
    if "path" not in names or len(set(names)) < len(names) or len(names) < 2 or taken or not all(names):
        rule = f"each once, and none of {', '.join(COLUMNS[:1] + COLUMNS[2:])}"
        raise ZooError(f"{path} has the columns {', '.join(names)}; it needs path and further ones, {rule}.")
    folder = os.path.dirname(path)
    paths = [text if is_url(text or "") else os.path.normpath(os.path.join(folder, text or "")) for text in
             table.column("path").to_pylist()]  # fmt: skip
    if len(set(paths)) < len(paths):
        twice = next(one for number, one in enumerate(paths) if one in paths[:number])
        raise ZooError(f"{path} has two lines about {twice}; keep one of them.")
    columns = {"path": pa.array([place.stored(one) for one in paths], pa.string())}
    for name in names:
        if name != "path":  # a column without any value has no type
            column = table.column(name)
            columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return pa.table(columns)


def made_with(index: Index) -> dict[str, Any]:
    """Return what an index records about its model: `source`, `config` and `sha256`.

    Raises:
        ZooError: it was not made from videos by a model, or its settings have other types than
            docs/video_search.md says.
    """
    model, window = index.settings.get("model"), index.settings.get("window")
    if not isinstance(model, dict) or "window" not in index.settings:
        raise ZooError(f"{index.folder} was not made from videos by a model; use Index.search with vectors, or choose "
                       "another folder.")  # fmt: skip
    found = {key: model.get(key) for key in ("source", "config", "sha256")}
    config = found["config"] or {}
    if (
        not (window is None or (type(window) in (int, float) and 0 < window < math.inf))
        or not isinstance(found["source"], str | None)
        or not isinstance(found["sha256"], str)
        or not isinstance(config, dict)
        or not isinstance(config.get("init_args", {}), dict)
    ):
        raise ZooError(f"{index.folder} has a window or a model of the wrong type; make the index again.")
    return found
