"""Search in one's own videos by text: `index` makes vectors of them with a text-video model, `search` compares a text.

A model is anything with ``encode_text(texts)`` and ``forward(video)`` that give unit vectors (M, D) and (B, D), and the
``preprocessing`` of docs/batches.md.

Videos are read in chunks of the sorted listing, each by one loader process, which cuts them into windows and gives out
batches. Batches end where what they belong to is saved, so what a vector is made of, and with it every bit of it, does
not depend on where an earlier run was killed:

    files      a b c d | e f g h | ...         chunks of as many files as a batch has clips
    windows    aabbccc   ddd               batches of up to 4; saved at the end of a file that completes 4 or more
               [  ][ ]   [ ]               windows since the last saving, and at the end of the chunk
                     ^     ^
"""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.clips import ClipFormat
from datamodules.retrieval import frame_positions
from datamodules.video.frames import open_video
from datamodules.video.opening import DecodeError
from datamodules.video.resize import center_crop, to_clip
from hub.checkpoint import fingerprint
from zoo.build import load
from zoo.errors import UnknownModelError, ZooError
from zoo.files import check_folder
from zoo.inference.predict import UnreadableVideo, to_device
from zoo.limits import BATCH, SECONDS, WORKERS, TooManyWindows, check_range, check_shard, check_windows, in_share
from zoo.printable import printable
from zoo.registry import info
from zoo.retrieval.vector_index import HEAD, File, Hit, Index, Record
from zoo.sources import find_videos, refuse_empty

__all__ = ["WINDOW_SECONDS", "Summary", "check_queries", "index", "made_with", "search"]

WINDOW_SECONDS = 20.0
"""Longest stretch that one vector represents: the clips that the published models were trained on have 2 to 30 s."""


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
    folders: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    window: float | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    shard: tuple[int, int] = (1, 1),
    dtype: str | None = None,
    device: str = "auto",
    on_files: Callable[[int, int], None] | None = None,
) -> Summary:
    """Make an index of the videos in folders, or continue one: files that are in it and have not changed (size,
    time of change) are skipped, files that have changed are read again, and files that are gone are dropped.

    A file that cannot be read is one warning; it is noted and tried again only when it has changed.

    Args:
        model: a text-video model, which is put into eval mode, or anything `zoo.load` takes.
        folders: searched at any depth; files are taken too. What the index has from other folders stays.
        out: the index's folder.
        window: longest stretch in seconds that one vector represents; longer videos are cut into equal stretches,
            ``math.inf`` never cuts. None is that of the index, 20 for a new one.
        batch_size: clips that the model sees at once.
        num_workers: processes that read videos; 0 reads in this one, None is one per core, at most 4.
        shard: (k, n): of n processes that index the same folders, this is number k, from 1.
        dtype: "float32" or "float16" on disk; None is that of the index, float32 for a new one.
        device: where the model runs; "auto" is a GPU where there is one.
        on_files: called with the number of finished files and of all files, as they change.

    Raises:
        ZooError: no videos; a model without text side; or an index made with other weights or settings.
    """
    check_shard(shard)
    check_range("batch_size", batch_size, BATCH)
    check_range("num_workers", num_workers or 0, WORKERS)
    if window not in (None, math.inf):
        check_range("window", window, SECONDS)
    out = check_folder(out)
    folders = [folders] if _is_path(folders) else folders
    refuse_empty(folders)
    roots = [os.path.abspath(Path(folder).expanduser()) for folder in folders]
    listing = sorted(find_videos(roots))
    source, model = _load(model, out)
    place = _Place(out)
    target = _open(out, source, model, window, dtype)
    num, count = shard
    with target.locked(f"shard-{num}-of-{count}", wait=False) as alone:
        if not alone or _others(target, count):
            raise ZooError(f"Another process is indexing into {out}; let it finish, or share the files out with "
                           "--shard 1/N, 2/N and so on.")  # fmt: skip
        known = target.files
        mine = [path for path in listing if in_share(place.stored(path), shard)]
        done = {path for path in mine if _is_same(known.get(place.stored(path)), path)}
        gone = {p for p in known if in_share(p, shard) and _below(place.found(p), roots)}
        gone -= {place.stored(path) for path in done}
        target.tidy(gone)
        # Cut before leaving out what is done: a chunk has the same files however far an earlier run came.
        chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        chunks = [left for chunk in chunks if (left := [path for path in chunk if path not in done])]
        seconds = target.settings["window"] or math.inf
        windows = _Windows(chunks, ClipFormat(**model.preprocessing), seconds, batch_size)
        workers = min(os.cpu_count() or 1, 4) if num_workers is None else num_workers
        workers = min(workers, len(chunks))
        loader = DataLoader(
            windows, None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=_warn_plainly if workers else None
        )
        broken_before = sum(known[place.stored(path)].error is not None for path in done)
        broken = _fill(target, place, to_device(model, device), loader, (len(done), len(mine)), on_files)
        target.tidy()
    indexed, kept = len(mine) - len(done) - broken, len(done) - broken_before
    return Summary(len(mine), indexed, broken_before + broken, kept, len(gone), len(target))


def search(
    index: Index | str | os.PathLike,
    queries: str | Sequence[str],
    *,
    topk: int = 10,
    model: nn.Module | str | None = None,
    device: str = "auto",
) -> list[list[Hit]]:
    """The stretches of video that fit each text best, best first; their paths are absolute.

    Args:
        index: an index that `index` made.
        queries: one text or several.
        topk: how many for each.
        model: the model it was made with, loaded or as for `zoo.load`; None looks where it was then.
        device: where the model runs.

    Raises:
        ZooError: no such index, a model with other weights, or a text without content.
    """
    queries = [queries] if isinstance(queries, str) else list(queries)
    check_queries(queries)
    check_range("topk", topk, (1, math.inf))
    index = index if isinstance(index, Index) else Index.open(index)
    place, source = _Place(index.folder), model if model is not None else made_with(index)["source"]
    if source is None:
        raise ZooError(f"{index.folder} was made with a model without a name; say which: --model.")
    if model is None and source.startswith(("./", "/")):
        source = place.found(source)
    try:
        source, model = _load(source, index.folder)
    except UnknownModelError as error:
        raise ZooError(f"The model of {index.folder} is not at {source}; say where it is: --model.") from error
    _check_weights(index, _describe(model)["sha256"], source or f"this {type(model).__name__}")
    with torch.inference_mode():
        vectors = to_device(model, device).encode_text(queries)
    return [[hit._replace(path=place.found(hit.path)) for hit in hits] for hits in index.search(vectors, topk)]


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
    index that is moved together with its videos stays valid."""

    def __init__(self, folder: Path) -> None:
        self.parent = os.path.dirname(os.path.abspath(folder))

    def stored(self, path: str) -> str:
        below = _below(path, [self.parent])
        return (path[len(self.parent) :].lstrip(os.sep) if below else path).replace(os.sep, "/")

    def found(self, stored: str) -> str:
        return os.path.normpath(os.path.join(self.parent, stored))


class _Batch(NamedTuple):
    """Windows from the loader.

    Attributes:
        reader: number of the process.
        video: uint8 (n, 3, T, H, W), or None.
        records: what they are.
        files: those that were finished.
        is_last: what came since the last such batch can be saved.
    """

    reader: int
    video: Tensor | None
    records: list[Record]
    files: list[File]
    is_last: bool


class _Windows(IterableDataset):
    """Windows of videos as `_Batch`, each chunk of files by one process; see the head of this module."""

    def __init__(self, chunks: list[list[str]], clip: ClipFormat, window: float, batch_size: int) -> None:
        self.chunks, self.clip, self.window, self.batch_size = chunks, clip, window, batch_size

    def __iter__(self) -> Iterator[_Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for chunk in self.chunks[first::step]:
            yield from self._batches(first, chunk)

    def _batches(self, reader: int, chunk: list[str]) -> Iterator[_Batch]:
        clips, records, files, unsaved = [], [], [], 0

        def batch(is_last: bool) -> _Batch:
            made = _Batch(reader, torch.stack(clips) if clips else None, records[:], files[:], is_last)
            clips.clear(), records.clear(), files.clear()
            return made

        for path in chunk:
            state = File(path)
            try:
                status = os.stat(path)
                state = File(path, status.st_size, status.st_mtime_ns)
                for clip, record in self._windows(path):
                    clips.append(clip)
                    records.append(record)
                    unsaved += 1
                    if len(clips) == self.batch_size:
                        yield batch(is_last=False)
            except (DecodeError, OSError, TooManyWindows) as error:
                state = state._replace(error=" ".join(str(error).split()))
            files.append(state)
            if unsaved >= self.batch_size or path == chunk[-1]:
                yield batch(is_last=True)
                unsaved = 0

    def _windows(self, path: str) -> Iterator[tuple[Tensor, Record]]:
        clip = self.clip
        with open_video(path) as reader:
            duration = reader.duration_seconds
            check_windows(path, duration, self.window)
            number = max(math.ceil(duration / self.window - 1e-6), 1)
            for k in range(number):
                span = (k * duration / number, (k + 1) * duration / number)
                positions = frame_positions(reader.pts_seconds, clip, span=span if number > 1 else None)
                frames = clip.read(reader, positions)
                # Sums of frames' lengths are a bit off: 1.9999999999999998.
                record = Record(path, *(round(seconds, 6) for seconds in span))
                yield to_clip(center_crop(frames, clip.image_size)), record


def _fill(
    target: Index,
    place: _Place,
    model: nn.Module,
    loader: DataLoader,
    progress: tuple[int, int],
    on_files: Callable[[int, int], None] | None,
) -> int:
    """Add the vectors of what the loader yields to the index; return the number of unreadable files."""
    done, total = progress
    report = on_files or (lambda done, total: None)
    report(done, total)
    unreadable = 0
    # The batches of several readers come in turns.
    unsaved: dict[int, tuple[list[Record], list[Tensor], list[File]]] = {}
    with torch.inference_mode():
        for batch in loader:
            records, vectors, files = unsaved.setdefault(batch.reader, ([], [], []))
            if batch.video is not None:
                vectors.append(model(batch.video.to(next(model.parameters()).device)).float().cpu())
            records += batch.records
            files += batch.files
            if batch.is_last:
                _save(target, place, records, torch.cat(vectors) if vectors else torch.empty(0, target.dims), files)
                unsaved.pop(batch.reader)
            for file in batch.files:
                if file.error is not None:
                    unreadable += 1
                    warnings.warn(f"{file.error.rstrip('.')} (left out of the index).", UnreadableVideo)
            done += len(batch.files)
            report(done, total)
    return unreadable


def _save(target: Index, place: _Place, records: list[Record], vectors: Tensor, files: list[File]) -> None:
    """Add what belongs together; of a file that turned out to be damaged on the way, nothing but that."""
    broken = {file.path for file in files if file.error is not None}
    kept = [number for number, record in enumerate(records) if record.path not in broken]
    target.add(
        [records[number]._replace(path=place.stored(records[number].path)) for number in kept],
        vectors[kept],
        [file._replace(path=place.stored(file.path)) for file in files],
    )
    target.tidy_if_many()


def _as_it_is(batch: _Batch) -> _Batch:
    return batch


def _warn_plainly(worker: int) -> None:
    """Bypass the progress bar of the main process, which may have been forked while it held its lock."""
    warnings.showwarning = lambda message, *_: print(f"zoo: {printable(str(message))}", file=sys.__stderr__)


def _load(model: nn.Module | str | os.PathLike, out: Path) -> tuple[str | None, nn.Module]:
    """Return a path or name that finds the model again, and the model.

    Raises:
        ZooError: it cannot compare texts with videos.
    """
    source, name = None, type(model).__name__
    if _is_path(model):
        name = os.fspath(model)
        local = Path(name).expanduser()
        # As for zoo.load, a registered name wins over a folder of that name.
        is_name = isinstance(model, str) and _is_registered(name)
        source = name if is_name or not local.exists() else _Place(out).stored(os.path.abspath(local))
        source = source if source is name or os.path.isabs(source) else f"./{source}"
        model = load(model)
    missing = [part for part in ("encode_text", "forward", "preprocessing") if not hasattr(model, part)]
    if missing:
        raise ZooError(f"{name} cannot compare texts with videos (it has no {missing[0]}); use a text-video model, "
                       "such as a trained TextVideoRetrieval.")  # fmt: skip
    return source, model.eval()


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


def _open(out: Path, source: str | None, model: nn.Module, window: float | None, dtype: str | None) -> Index:
    """The index that is there, if it was made in the same way, or a new one."""
    described = _describe(model)
    if not (out / HEAD).is_file():
        with torch.inference_mode():
            dims = model.encode_text(["a video"]).shape[-1]
        seconds = WINDOW_SECONDS if window is None else None if math.isinf(window) else window
        settings = {"window": seconds, "model": {"source": source, **described}}
        try:
            return Index.create(out, dims, dtype or "float32", settings)
        except ZooError:
            if not (out / HEAD).is_file():  # otherwise another process, with another share, was faster
                raise
    found = Index.open(out)
    made = made_with(found)
    _check_weights(found, described["sha256"], source or f"this {type(model).__name__}")
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
        ZooError: it was not made from videos by a model, or its index.json has other types than docs/search.md says.
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
        raise ZooError(f"{index.folder / HEAD} has a window or a model of the wrong type; make the index again.")
    return found


def _check_weights(found: Index, here: str, name: str) -> None:
    there = made_with(found)["sha256"]
    if there != here:
        raise ZooError(f"{found.folder} was made with other weights (SHA-256 {there[:12]}...) than {name} has "
                       f"({here[:12]}...); use those, or index into another folder.")  # fmt: skip


def _others(target: Index, count: int) -> bool:
    """Whether processes run that share the files out in another way."""
    for lock in target.folder.glob(".shard-*-of-*.lock"):
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
        status = os.stat(path)
    except OSError:
        return False
    return (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)
