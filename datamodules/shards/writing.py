"""Writing tar shards in the WebDataset format, and the index that `datamodules.shards.reading` reads.

A sample is a few members of one key, which any reader of the format takes:

    000000042.mp4    the file, byte by byte, or re-encoded
    000000042.cls    its class, or
    000000042.txt    its captions, one on each line
    000000042.json   the fields of its entry in the listing, and the file's name

A shard gets its name when it is complete, and the folder its index when all shards are. A journal beside them records
the complete shards, so an interrupted run resumes behind the last one.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch

from datamodules.annotations.lists import parse_json
from datamodules.errors import DataError
from datamodules.shards.reading import FORMAT, INDEX_SUFFIX, read_index
from datamodules.storage.files import read_bytes
from datamodules.storage.members import as_member, open_member
from datamodules.storage.processes import ProcessPool, after_fork, lock
from datamodules.storage.writing import written
from datamodules.video.encoding import reencode
from datamodules.video.opening import DecodeError
from datamodules.video.suffixes import IMAGE_SUFFIXES

__all__ = ["Source", "Written", "parse_size", "summary", "write_index", "write_shards"]


class Source(NamedTuple):
    """A sample to be written.

    Attributes:
        path: its file, a path, a URL or a member of another shard.
        name: what to call it.
        fields: the other fields of its entry in the listing, as JSON values.
    """

    path: str
    name: str
    fields: dict[str, Any]


class Written(NamedTuple):
    """Summary of the shards of a split.

    Attributes:
        samples: in all shards.
        shards: how many there are.
        bytes: of all shards.
        left_out: files that could not be read.
        kept: shards that an earlier run had written.
    """

    samples: int
    shards: int
    bytes: int
    left_out: int
    kept: int


class _File(NamedTuple):
    """Bytes and suffix of a sample's file, or why it cannot be read."""

    data: bytes
    suffix: str
    error: str | None = None


def write_shards(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    split: str,
    *,
    about: dict[str, Any],
    max_bytes: int = 10**9,
    shuffle_seed: int | None = None,
    short_side: int | None = None,
    crf: int = 23,
    num_workers: int = 0,
    on_files: Callable[[int, int], None] | None = None,
) -> Written:
    """Write ``<split>-000000.tar``, ... and ``<split>.index.jsonl`` into a folder, or resume an interrupted run.

    Files that cannot be read are left out, with a warning each.

    Args:
        sources: the samples; all have the same fields.
        out: the folder, made where it does not exist.
        split: "train", "val" or "test".
        about: facts of all samples for the index header, such as the names of the classes.
        max_bytes: start the next shard after this many bytes; single samples may be longer.
        shuffle_seed: write the samples in a random order; None keeps theirs.
        short_side: re-encode videos with a longer shorter side to this one, in pixels; None copies all files.
        crf: quality of that, lower is better, see `datamodules.video.encoding.reencode`.
        num_workers: processes that read and code files; 0 does it in this one.
        on_files: called with the number of finished samples and of all.

    Raises:
        DataError: there are shards of this split already, made of other samples or with other settings; no sample can
            be read; or another process is writing there.
    """
    if not sources:
        raise DataError(f"There are no samples of the {split} split to write.")
    order = list(range(len(sources)))
    if shuffle_seed is not None:
        order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
    fields = list(sources[0].fields)
    settings = {"max_bytes": max_bytes, "shuffle_seed": shuffle_seed, "short_side": short_side,
                "crf": crf if short_side else None}  # fmt: skip
    made_of = {**FORMAT, "split": split, "fields": fields, **about, "settings": settings, "sources": _digest(sources)}
    folder = Path(out)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{split}{INDEX_SUFFIX}"
    with _journal(folder / f".{split}.journal.jsonl", index, made_of) as journal:
        if journal is None:
            return summary(index, kept=None)
        kept, done = journal.shards, journal.samples
        report = on_files or (lambda done, total: None)
        report(done, len(sources))
        wanted = (sources[number] for number in order[done:])
        with ProcessPool(num_workers) if num_workers else contextlib.nullcontext() as pool:
            files = _files(wanted, short_side, crf, pool, num_workers)
            while done < len(sources):
                name = f"{split}-{journal.shards:06d}.tar"
                shard, taken = _write_shard(folder / name, files, fields, done, max_bytes,
                                            lambda done: report(done, len(sources)))  # fmt: skip
                done += taken
                journal.add(shard, taken)
        if not journal.written:
            journal.drop()
            raise DataError(f"Not one of the {len(sources)} {split} files can be read; nothing was written.")
        journal.finish()
    return summary(index, kept=kept)


def _digest(sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source).encode())
    return digest.hexdigest()


def summary(index: Path, kept: int | None) -> Written:
    """Return the summary of an index; `kept` None means that all shards existed before."""
    header = json.loads(index.read_text(encoding="utf-8").partition("\n")[0])
    return Written(header["samples"], header["shards"], header["bytes"], header["left_out"],
                   header["shards"] if kept is None else kept)  # fmt: skip


class _Journal:
    """Record of the finished shards of an unfinished folder: settings in the first line, then a line per shard."""

    def __init__(self, file: BinaryIO, index: Path, made_of: dict[str, Any]) -> None:
        self._file, self._index, self._made_of = file, index, made_of
        lines = _whole_lines(file)
        if lines and lines[0] != made_of:
            split, other = made_of["split"], _other(lines[0], made_of)
            raise DataError(f"{index.parent} holds the beginning of other {split} shards ({other}); repeat the command "
                            f"that began them, or remove {split}-*.tar and {Path(file.name).name} there.")  # fmt: skip
        if not all(isinstance(line, dict) and {"taken", "shard"} <= line.keys() for line in lines[1:]):
            raise DataError(f"{file.name} is damaged; remove it and the shards beside it to start again.")
        if not lines:
            self._append(made_of)
        self._lines = lines[1:]

    @property
    def shards(self) -> int:
        return sum(line["shard"] is not None for line in self._lines)

    @property
    def samples(self) -> int:
        """Samples that were taken, those left out included."""
        return sum(line["taken"] for line in self._lines)

    @property
    def written(self) -> int:
        return sum(len(line["shard"]["offset"]) for line in self._lines if line["shard"] is not None)

    def add(self, shard: dict[str, Any] | None, taken: int) -> None:
        self._lines.append({"taken": taken, "shard": shard})
        self._append(self._lines[-1])

    def finish(self) -> None:
        """Write the index, and remove the journal."""
        shards = [line["shard"] for line in self._lines if line["shard"] is not None]
        write_index(self._index, {**self._made_of, "left_out": self.samples - self.written}, shards)
        self.drop()

    def drop(self) -> None:
        """Remove the journal."""
        os.unlink(self._file.name)

    def _append(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def _journal(path: Path, index: Path, made_of: dict[str, Any]) -> Iterator[_Journal | None]:
    """Open and lock the journal; None if the index is complete already."""
    with _writing(path), open(path, "a+b") as file, _held_here(file.fileno()):
        if not lock(file, wait=False):
            raise DataError(f"Another process is writing {made_of['split']} shards to {path.parent}; let it finish.")
        if index.exists():
            path.unlink(missing_ok=True)
            there = read_index(str(index)).header
            if any(there.get(key) != value for key, value in made_of.items()):
                raise DataError(f"{index} exists, made of something else ({_other(there, made_of)}); remove it and its "
                                "shards, or choose another folder.")  # fmt: skip
            yield None
            return
        yield _Journal(file, index, made_of)


_held: set[int] = set()
"""Descriptors of the files that this process has locked."""


@contextlib.contextmanager
def _held_here(descriptor: int) -> Iterator[None]:
    """Make forked processes close the file: they share its lock, and would keep it when this process is killed."""
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)


def _let_go() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _held:
        os.dup2(nothing, descriptor)
    os.close(nothing)
    _held.clear()


after_fork(_let_go)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into a `DataError` that names the file."""
    try:
        yield
    except BrokenPipeError:  # the reader of the output has left
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}); make room on that disk or check its "
                        "permissions, and repeat the command to resume.") from error  # fmt: skip


def _other(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name the settings that differ."""
    settings = [key for key, value in here["settings"].items() if there.get("settings", {}).get(key) != value]
    others = [key for key, value in here.items() if key != "settings" and there.get(key) != value]
    names = {"sources": "files or labels", "class_names": "class names"}
    return "other " + ", ".join(names.get(key, key) for key in [*settings, *others])


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """Read the journal, and cut off a line that was being written when the process died."""
    file.seek(0)
    text = file.read()
    end = text.rfind(b"\n") + 1
    file.truncate(end)
    remedy = "remove it and the shards beside it to begin anew"
    return [parse_json(line.decode(errors="replace"), file.name, number, remedy=remedy)
            for number, line in enumerate(text[:end].splitlines(), 1)]  # fmt: skip


def write_index(path: Path, header: dict[str, Any], shards: Sequence[dict[str, Any]]) -> None:
    """Write an index, whole or not at all: the header with totals, then a line for each shard."""
    totals = {"samples": sum(len(shard["offset"]) for shard in shards), "shards": len(shards),
              "bytes": sum(shard["bytes"] for shard in shards)}  # fmt: skip
    with _writing(path), written(path, locked=True) as beside, open(beside, "wb") as file:
        for line in ({**header, **totals}, *shards):
            file.write(_json(line) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _json(value: object) -> bytes:
    """JSON in UTF-8; lone surrogates, from file names that are not UTF-8, become question marks."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _files(
    sources: Iterator[Source], short_side: int | None, crf: int, pool: Executor | None, num_workers: int
) -> Iterator[tuple[Source, _File]]:
    """Yield each sample with its file, in order."""
    if pool is None:
        yield from ((source, _converted(source.path, short_side, crf)) for source in sources)
        return
    waiting: deque[tuple[Source, Future[_File]]] = deque()
    for source in itertools.chain(sources, itertools.repeat(None)):
        if source is not None:
            try:
                waiting.append((source, pool.submit(_converted, source.path, short_side, crf)))
            except OSError as error:
                raise DataError(f"No process can be started ({error.strerror}); take fewer workers.") from error
        elif not waiting:
            return
        if source is None or len(waiting) > 2 * num_workers:
            first, future = waiting.popleft()
            try:
                yield first, future.result()
            except BrokenProcessPool as error:
                raise DataError(f"A process that reads files died, at {first.path} or one of the next (was memory "
                                "short?); repeat the command with fewer workers to resume.") from error  # fmt: skip


def _converted(path: str, short_side: int | None, crf: int) -> _File:
    member = as_member(path)
    suffix = os.path.splitext(member.name if member else path)[1].lower()
    try:
        if os.path.isdir(path) and short_side is None:
            return _File(b"", "", f"{path} is a folder of frames, which becomes a video where a short side is given.")
        if short_side is not None and suffix not in IMAGE_SUFFIXES:
            coded = reencode(path, short_side, crf=crf)
            if coded is not None:
                return _File(coded, ".mp4")
        if member is None:
            return _File(read_bytes(path), suffix)
        with contextlib.closing(open_member(member)) as file:
            return _File(file.read(), suffix)
    except (DataError, DecodeError, OSError) as error:
        return _File(b"", "", str(error))


class _Hashing:
    """A file for writing that hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _write_shard(
    path: Path,
    files: Iterator[tuple[Source, _File]],
    fields: Sequence[str],
    first: int,
    max_bytes: int,
    report: Callable[[int], None],
) -> tuple[dict[str, Any] | None, int]:
    """Write a shard; return its line of the index (None if no file could be read) and the number of samples used."""
    from webdataset.writer import TarWriter

    size, taken, kept = 0, 0, []
    with _writing(path), written(path, locked=True) as beside:
        with open(beside, "wb") as raw:
            hashing = _Hashing(raw)
            with TarWriter(cast(BinaryIO, hashing), encoder=False, mtime=0) as tar:
                for source, file in files:
                    taken += 1
                    if file.error is None and not file.data:
                        file = file._replace(error=f"{source.path} is empty (0 bytes); copy or download it again.")
                    if file.error is not None:
                        warnings.warn(f"{file.error.rstrip('.')} (left out).", stacklevel=2)
                    else:
                        size += tar.write(_sample(source, file, first + taken - 1))
                        kept.append(source)
                    report(first + taken)
                    if size >= max_bytes:
                        break
            raw.flush()
            os.fsync(raw.fileno())
        if not kept:
            beside.unlink()
            return None, taken
        line = _line(beside, path.name, hashing.digest.hexdigest())
        line |= {"name": [source.name for source in kept]}
        line |= {field: [source.fields[field] for source in kept] for field in fields}
        return line, taken


def _sample(source: Source, file: _File, number: int) -> dict[str, Any]:
    sample = {"__key__": f"{number:09d}", (file.suffix or ".bin")[1:]: file.data}
    sample["json"] = _json({"name": source.name, **source.fields})
    if "label" in source.fields:
        sample["cls"] = str(source.fields["label"]).encode()
    if "captions" in source.fields:
        sample["txt"] = "\n".join(source.fields["captions"]).encode(errors="replace")
    return sample


def _line(path: Path, name: str, sha256: str) -> dict[str, Any]:
    """The line of the index for a shard of ours, without names and fields."""
    with tarfile.open(path, "r:") as tar:
        media = [info for info in tar if os.path.splitext(info.name)[1] not in (".cls", ".json", ".txt")]
    return {"shard": name, "bytes": path.stat().st_size, "sha256": sha256,
            "offset": [info.offset_data for info in media], "size": [info.size for info in media]}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB, 1.5GB, 2GiB or 1000000.

    Raises:
        DataError: not a size, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    size = found and int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))
    if not size:
        raise DataError(f"{text!r} is no size; write for example 500MB or 1GB.")
    return size
