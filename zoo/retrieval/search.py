"""Search in your own videos: `index` writes vectors of them into a table, `search` compares texts and clips with it.

A model is anything with ``encode_text(texts)`` and ``forward(video)`` that give unit vectors (M, D) and (B, D), and the
``preprocessing`` of docs/batches.md; or a classifier, whose features find videos that look like a clip.
"""

import csv
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.storage.files import is_url, resolve, status
from hub.checkpoint import fingerprint
from zoo.build import load
from zoo.errors import UnknownModelError, ZooError
from zoo.files import UNFINISHED, check_folder
from zoo.inference.predict import UnreadableVideo
from zoo.limits import BATCH, SECONDS, WORKERS, check_range, check_shard, in_share
from zoo.printable import printable
from zoo.registry import info
from zoo.retrieval.embedder import WINDOW_SECONDS, Batch, VideoEmbedder, WindowReader
from zoo.retrieval.old_index import read_head, read_parts
from zoo.retrieval.table import COLUMNS, File, Hit, Index, Record, check_place
from zoo.sources import find_videos, refuse_empty

__all__ = ["Summary", "check_queries", "convert_index", "index", "made_with", "optimise", "search"]

SAVE_SECONDS = 1.0
"""Time between two commits: what a killed process loses."""
WAIT_SECONDS = 1.0
"""How often a loader process that waits for its share looks whether its parent lives."""


class Summary(NamedTuple):
    """Summary of a run of `index`.

    Attributes:
        videos: found in the folders (with ``shard``, this process's share of them); the sum of the next three.
        indexed: read now.
        unreadable: could not be read, now or by an earlier run; those of earlier runs are not tried again.
        kept: were in the index already.
        dropped: removed from the index, since they are gone or have changed.
        vectors: in the whole index now.
    """

    videos: int
    indexed: int
    unreadable: int
    kept: int
    dropped: int
    vectors: int


def index(
    model: nn.Module | str,
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    window: float | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    shard: tuple[int, int] = (1, 1),
    dtype: str | None = None,
    metadata: str | os.PathLike | None = None,
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Summary:
    """Make an index of videos, or continue one: files that are in it and have not changed (size, time of change) are
    skipped, files that have changed are read again, and files that are gone are dropped.

    A file that cannot be read is one warning; it is noted and tried again only when it has changed.

    Args:
        model: a text-video model or a classifier, which is put into eval mode, or anything `zoo.load` takes.
        sources: folders, searched at any depth, and files; local, or URLs that fsspec knows. What the index has from
            other folders stays.
        out: the index, a local folder or a URL (`s3://`, ...).
        window: longest stretch in seconds that one vector represents; longer videos are cut into equal stretches,
            ``math.inf`` never cuts. None is that of the index, 20 for a new one.
        batch_size: clips that the model sees at once.
        num_workers: processes that read videos; 0 reads in this one, None is one per core, at most 4.
        shard: (k, n): of n processes that index the same sources, this is number k, from 1; for local indices.
        dtype: "float32" or "float16" in the table; None is that of the index, float32 for a new one.
        metadata: CSV file with a column ``path``, relative to the file's folder, absolute or a URL, and columns of
            yours, which the table gets.
        device: where the model runs; "auto" is a GPU where there is one.
        on_files: called with the number of finished files and of all files, as they change.

    Raises:
        ZooError: no videos; a model that makes no vectors; an index made with other weights or settings; a CSV that
            cannot be read; or LanceDB is not installed.
    """
    check_shard(shard)
    check_range("batch_size", batch_size, BATCH)
    check_range("num_workers", num_workers or 0, WORKERS)
    if window not in (None, math.inf):
        check_range("window", window, SECONDS)
    out = os.fspath(out)
    if not is_url(out):
        check_folder(out)
    elif shard != (1, 1):
        raise ZooError(f"{out} is written by one process, since no lock protects it; omit --shard.")
    sources = [sources] if _is_path(sources) else sources
    refuse_empty(sources)
    roots = [_absolute(source) for source in sources]
    listing = sorted(find_videos(roots, urls=True))
    check_place(out)
    place = _Place(out)
    described = None if metadata is None else _read_metadata(metadata, place)
    name, embedder = _embedder(model, out, device, batch_size)
    num, count = shard
    mine = [path for path in listing if in_share(place.stored(path), shard)]
    # Cut before leaving out what is done: a chunk has the same files however far an earlier run came.
    chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    workers = min(os.cpu_count() or 1, 4) if num_workers is None else num_workers
    with _Readers(min(workers, len(chunks))) as readers:
        # Loader processes have started: LanceDB's threads would not be there after a fork.
        target = _open(out, name, embedder, window, dtype)
        with target.locked(f"shard-{num}-of-{count}", wait=False) as alone:
            if not alone or _others(target, count):
                raise ZooError(f"Another process is indexing into {out}; let it finish, or share the files out with "
                               "--shard 1/N, 2/N and so on.")  # fmt: skip
            known = target.files
            done = {path for path in mine if _is_same(known.get(place.stored(path)), path)}
            gone = {p for p in known if in_share(p, shard) and _below(place.found(p), roots)}
            gone -= {place.stored(path) for path in done}
            target.drop(sorted(gone))
            chunks = [left for chunk in chunks if (left := [path for path in chunk if path not in done])]
            embedder.reader.window = target.settings["window"] or math.inf
            broken_before = sum(known[place.stored(path)].error is not None for path in done)
            batches = readers.read(embedder.reader, chunks)
            broken = _fill(target, place, embedder, batches, (len(done), len(mine)), on_files)
            if described is not None:
                target.describe(described)
            target.optimise()
            vectors = len(target)
    indexed, kept = len(mine) - len(done) - broken, len(done) - broken_before
    return Summary(len(mine), indexed, broken_before + broken, kept, len(gone), vectors)


def optimise(out: str | os.PathLike) -> int:
    """Join the files of an index and build its approximate index anew, if it is large enough to have one; return the
    number of vectors.

    Raises:
        ZooError: there is no index, or it cannot be written.
    """
    target = Index.open(out)
    target.optimise(rebuild=True)
    return len(target)


def convert_index(old: str | os.PathLike, out: str | os.PathLike) -> int:
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
    from_, to = _Place(old), _Place(out)
    model = head["model"]
    if isinstance(model, dict) and isinstance(model.get("source"), str) and model["source"].startswith("./"):
        model = model | {"source": to.source(from_.found(model["source"]))}
    beside = out.with_name(f".{out.name[:40]}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        settings = {"window": head["window"], "model": model}
        if type(head["dims"]) is not int or not isinstance(head["dtype"], str):
            raise ZooError(f"{old} says dims {head['dims']!r} and dtype {head['dtype']!r}; make the index again.")
        target = Index.create(beside, head["dims"], head["dtype"], settings)
        made_with(target)
        for records, vectors, files in read_parts(old, target.dims, target.dtype):
            moved = [record._replace(path=to.stored(from_.found(record.path))) for record in records]
            target.add(moved, vectors, [file._replace(path=to.stored(from_.found(file.path))) for file in files])
        target.optimise()
        if out.exists():
            out.rmdir()
        beside.replace(out)
        return len(Index.open(out))
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def search(
    index: Index | str | os.PathLike,
    queries: str | Sequence[str] = (),
    *,
    topk: int = 10,
    where: str | None = None,
    exact: bool = False,
    like: str | os.PathLike | Sequence[str | os.PathLike] = (),
    model: nn.Module | str | None = None,
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
    clips = [_absolute(path) for path in ([like] if _is_path(like) else like)]
    if not queries and not clips:
        raise ZooError("There is nothing to search for; give a text, or a clip with --like.")
    check_queries(queries)
    check_range("topk", topk, (1, math.inf))
    index = index if isinstance(index, Index) else Index.open(index)
    if where is not None:
        index.count(where)  # a wrong condition is told before the model is loaded
    place, source = _Place(index.folder), model if model is not None else made_with(index)["source"]
    if source is None:
        raise ZooError(f"{index.folder} was made with a model without a name; say which: --model.")
    if model is None and source.startswith(("./", "/")):
        source = place.found(source)
    try:
        source, embedder = _embedder(source, index.folder, device)
    except UnknownModelError as error:
        raise ZooError(f"The model of {index.folder} is not at {source}; say where it is: --model.") from error
    _check_weights(index, _describe(embedder.model)["sha256"], source or f"this {type(embedder.model).__name__}")
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
    """Refuse texts that say nothing, or are not valid Unicode, which no tokenizer reads.

    Raises:
        ZooError: see above.
    """
    for query in queries:
        if not query.strip():
            raise ZooError("A text to search for is empty; say what the video shows.")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise ZooError(f"The text {query!r} is not valid UTF-8; write it in another encoding.") from error


class _Place:
    """Paths as the index has them: relative to the folder that holds it where they lie below that, else absolute. An
    index that is moved together with its videos stays valid. At a URL, all are absolute."""

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = os.fspath(folder)
        self.parent = None if is_url(folder) else os.path.dirname(os.path.abspath(folder))

    def stored(self, path: str) -> str:
        if is_url(path) or self.parent is None:
            return path
        below = _below(path, [self.parent])
        return (path[len(self.parent) :].lstrip(os.sep) if below else path).replace(os.sep, "/")

    def source(self, path: str) -> str:
        """A path of a model, which differs from a name."""
        stored = self.stored(path)
        return stored if os.path.isabs(stored) else f"./{stored}"

    def found(self, stored: str) -> str:
        return stored if is_url(stored) else os.path.normpath(os.path.join(self.parent or "", stored))


class _Given(NamedTuple):
    """A batch, and which reader it is of."""

    reader: int
    batch: Batch


class _Readers:
    """Loader processes that start before they know what to read. A context manager."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pipes = [multiprocessing.Pipe(duplex=False) for _ in range(number)]
        self._waiting = set(range(number))
        self._batches: Iterator[_Given] = iter(())

    def __enter__(self) -> "_Readers":
        if self.number:
            files = _Files([receiver for receiver, _ in self._pipes])
            loader = DataLoader(
                files, None, num_workers=self.number, collate_fn=_as_it_is, worker_init_fn=_warn_plainly
            )
            with warnings.catch_warnings():
                # Where an earlier call has imported LanceDB: these processes do not use it.
                warnings.filterwarnings("ignore", "lancedb fork support")
                self._batches = iter(loader)
        return self

    def __exit__(self, *_: object) -> None:
        for number in sorted(self._waiting):  # nothing to do; they end
            self._send(number, (None, []))
        for connection in (end for pipe in self._pipes for end in pipe):
            connection.close()
        self._batches = iter(())  # the loader ends its processes when nothing refers to it

    def read(self, reader: WindowReader, chunks: list[list[str]]) -> Iterator[_Given]:
        """Yield the batches of the chunks, each read by one process."""
        if not self.number:
            for chunk in chunks:
                yield from (_Given(0, batch) for batch in reader.read(chunk))
            return
        for number in range(self.number):
            self._send(number, (reader, chunks[number :: self.number]))
        yield from self._batches

    def _send(self, number: int, share: tuple[WindowReader | None, list[list[str]]]) -> None:
        self._waiting.discard(number)
        try:
            self._pipes[number][1].send(share)
        except OSError:  # the process is dead, which the loader tells
            return


class _Files(IterableDataset):
    """Batches of what comes through a pipe, one for each loader process."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes, self.parent = pipes, os.getpid()

    def __iter__(self) -> Iterator[_Given]:
        number = get_worker_info().id
        # Other loader processes hold the writing ends too, so the end of the parent is not the end of the pipe.
        while not self.pipes[number].poll(WAIT_SECONDS):
            if os.getppid() != self.parent:
                return
        reader, chunks = self.pipes[number].recv()
        for chunk in chunks:
            yield from (_Given(number, batch) for batch in reader.read(chunk))


def _fill(
    target: Index,
    place: _Place,
    embedder: VideoEmbedder,
    batches: Iterator[_Given],
    progress: tuple[int, int],
    on_files: Callable[[int, int], None] | None,
) -> int:
    """Add the vectors of what the loader yields to the index; return the number of unreadable files."""
    done, total = progress
    report = on_files or (lambda done, total: None)
    report(done, total)
    unreadable, saved_at = 0, -math.inf
    # The batches of several readers come in turns.
    begun: dict[int, _Unsaved] = {}
    whole = _Unsaved([], [], [])
    for reader, batch in batches:
        mine = begun.setdefault(reader, _Unsaved([], [], []))
        if batch.video is not None:
            mine.vectors.append(embedder.embed(batch.video))
        mine.records.extend(batch.records)
        mine.files.extend(batch.files)
        if batch.is_last:
            _move(begun.pop(reader), whole)
        if whole.files and time.monotonic() - saved_at >= SAVE_SECONDS:
            whole = _save(target, place, whole)
            saved_at = time.monotonic()
        for file in batch.files:
            if file.error is not None:
                unreadable += 1
                warnings.warn(f"{file.error.rstrip('.')} (left out of the index).", UnreadableVideo)
        done += len(batch.files)
        report(done, total)
    _save(target, place, whole)
    return unreadable


class _Unsaved(NamedTuple):
    """What waits for the next commit; the vectors are (n, dims) each."""

    records: list[Record]
    vectors: list[Tensor]
    files: list[File]


def _move(some: _Unsaved, whole: _Unsaved) -> None:
    """Add what belongs together; of a file that turned out to be damaged on the way, nothing but that."""
    broken = {file.path for file in some.files if file.error is not None}
    kept = [number for number, record in enumerate(some.records) if record.path not in broken]
    if kept:
        whole.vectors.append(torch.cat(some.vectors)[kept])
    whole.records.extend(some.records[number] for number in kept)
    whole.files.extend(some.files)


def _save(target: Index, place: _Place, whole: _Unsaved) -> _Unsaved:
    """Make a commit; return an empty start for the next one."""
    target.add(
        [record._replace(path=place.stored(record.path)) for record in whole.records],
        torch.cat(whole.vectors) if whole.vectors else torch.empty(0, target.dims),
        [file._replace(path=place.stored(file.path)) for file in whole.files],
    )
    target.optimise_if_many()
    return _Unsaved([], [], [])


def _as_it_is(given: _Given) -> _Given:
    return given


def _warn_plainly(worker: int) -> None:
    """Bypass the progress bar of the main process, which may have been forked while it held its lock."""
    warnings.showwarning = lambda message, *_: print(f"zoo: {printable(str(message))}", file=sys.__stderr__)


def _read_metadata(path: str | os.PathLike, place: _Place):
    """The CSV as ``pyarrow.Table``, with paths as the index has them.

    Raises:
        ZooError: it cannot be read, or lacks paths, or has a column of the table.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    path = os.path.abspath(Path(path).expanduser())
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its writer
        raise ZooError(f"{path} cannot be read as CSV (it is not a regular file); write one line for each video.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        strings = {"path": pa.string()}
        table = arrow_csv.read_csv(path, convert_options=arrow_csv.ConvertOptions(column_types=strings))
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
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
    stored = pa.array([place.stored(one) for one in paths], pa.string())
    columns = {"path": stored}
    for name in table.column_names:
        if name != "path":  # a column without any value has no type
            column = table.column(name)
            columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return pa.table(columns)


def _embedder(
    model: nn.Module | str | os.PathLike, out: str | os.PathLike, device: str, batch_size: int = 8
) -> tuple[str | None, VideoEmbedder]:
    """Return a path or name that finds the model again, and what makes vectors with it.

    Raises:
        ZooError: it makes none.
    """
    source = None
    if _is_path(model):
        name = os.fspath(model)
        local = Path(name).expanduser()
        # As for zoo.load, a registered name wins over a folder of that name.
        is_name = isinstance(model, str) and _is_registered(name)
        source = name if is_name or not local.exists() else _Place(out).source(os.path.abspath(local))
        model = load(model)
    return source, VideoEmbedder(model, batch_size=batch_size, device=device)


def _is_registered(name: str) -> bool:
    try:
        info(name)
    except UnknownModelError:
        return False
    return True


def _describe(model: nn.Module) -> dict:
    """Identify a model by its config and the SHA-256 of its weights."""
    config = json.loads(json.dumps(getattr(model, "config", None)))
    return {"config": config, "sha256": fingerprint(model.state_dict())}


def _open(out: str, source: str | None, embedder: VideoEmbedder, window: float | None, dtype: str | None) -> Index:
    """The index that is there, if it was made in the same way, or a new one."""
    described = _describe(embedder.model)
    if not Index.exists(out):
        seconds = WINDOW_SECONDS if window is None else None if math.isinf(window) else window
        settings = {"window": seconds, "model": {"source": source, **described}}
        try:
            return Index.create(out, embedder.dims, dtype or "float32", settings)
        except ZooError:
            if not Index.exists(out):  # otherwise another process, with another share, was faster
                raise
    found = Index.open(out)
    made = made_with(found)
    _check_weights(found, described["sha256"], source or f"this {type(embedder.model).__name__}")
    there, wanted = made["config"] or {}, described["config"] or {}
    if there != wanted:
        sides = there.get("init_args", {}), wanted.get("init_args", {})
        keys = [key for key in sides[0] | sides[1] if sides[0].get(key) != sides[1].get(key)]
        raise ZooError(f"{out} was made with another {' and '.join(keys) or 'class'} of the model; index into another "
                       "folder.")  # fmt: skip
    old = found.settings["window"] or math.inf
    if window not in (None, old) or dtype not in (None, found.dtype):
        raise ZooError(f"{out} was made with windows of {old:g} s in {found.dtype}; omit these options to update it, "
                       "or index into another folder.")  # fmt: skip
    return found


def made_with(index: Index) -> dict:
    """Return what an index records about its model: `source`, `config` and `sha256`.

    Raises:
        ZooError: it was not made from videos by a model, or its settings have other types than docs/search.md says.
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


def _check_weights(found: Index, here: str, name: str) -> None:
    there = made_with(found)["sha256"]
    if there != here:
        raise ZooError(f"{found.folder} was made with other weights (SHA-256 {there[:12]}...) than {name} has "
                       f"({here[:12]}...); use those, or index into another folder.")  # fmt: skip


def _others(target: Index, count: int) -> bool:
    """Whether processes run that share the files out in another way."""
    if is_url(target.folder):
        return False
    for lock in Path(target.folder).glob(".shard-*-of-*.lock"):
        name = lock.name[1 : -len(".lock")]
        if not name.endswith(f"-of-{count}"):
            with target.locked(name, wait=False) as free:
                if not free:
                    return True
    return False


def _is_same(known: File | None, path: str) -> bool:
    """Whether a file is as it was when it was read."""
    if known is None:
        return False
    try:
        return (known.size, known.mtime_ns) == status(path)
    except OSError:
        return False


def _absolute(source: str | os.PathLike) -> str:
    source = resolve(source)
    return source if is_url(source) else os.path.abspath(source)


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)
