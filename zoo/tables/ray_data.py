"""A job's answers, made by Ray Data: tasks on the CPUs of a cluster decode, actors with the model answer.

    driver      lists chunks of files                               commits the rows
    CPUs          task: chunk -> batches of clips
    GPUs, or one a node      actor with the model: batch -> rows

Ray repeats what was lost with a worker or a node. Rows reach the table in the driver alone, a chunk of files at a time,
so each is there once.
"""

import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import ZooError
from zoo.extras import need
from zoo.tables.job import Job, Reader
from zoo.tables.table import File, Record

if TYPE_CHECKING:
    import ray

__all__ = ["Answered", "answered_on_ray", "check_ray"]

MOST_BLOCKS = 10_000
"""Tasks of a run; above, each decodes several chunks."""


class Answered(NamedTuple):
    """Rows about a batch.

    Attributes:
        reader: who read it; the batches of one come in order.
        rows: records with their values.
        files: those that were finished.
        is_last: what came of this reader since the last such batch can be saved.
    """

    reader: int
    rows: list[tuple[Record, tuple[Any, ...]]]
    files: list[File]
    is_last: bool


def check_ray() -> None:
    """Raise `ZooError` where Ray is not installed, which is not imported here."""
    need("ray", "ray", "--ray needs Ray")


def answered_on_ray(job: Job, chunks: Sequence[Sequence[str]], address: str) -> Iterator[Answered]:
    """Yield what a job says about chunks of files, each in its order.

    Args:
        job: with its model on any device; the actors have copies, on GPUs where the cluster has some.
        chunks: paths that all nodes can read.
        address: of a running cluster; "auto" is the one that RAY_ADDRESS or this machine knows, or a new one here.

    Raises:
        ZooError: Ray cannot be reached, or it gave up.
    """
    if not chunks:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use over the network otherwise
    import ray
    import ray.data

    remedy = f"check the cluster at {address}, and run the same command again, which does what is missing"
    begun = not ray.is_initialized()
    with _results_only():
        try:
            if begun:
                try:
                    ray.init(None if address == "auto" else address, log_to_driver=False)
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise ZooError(f"Ray cannot be reached ({_first_line(error)}); {remedy}.") from error
            yield from _in_order(_pipeline(job, chunks))
        except ray.exceptions.RayError as error:
            raise ZooError(f"Ray gave up ({_first_line(error)}); {remedy}.") from error
        finally:
            if begun:
                ray.shutdown()


@contextmanager
def _results_only() -> Iterator[None]:
    """Lead the standard output to the error output, below Python too: Ray's threads tell of dead nodes there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(".: ")


def _pipeline(job: Job, chunks: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Parts of chunks as they come, in any order between chunks."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    # Without GPUs the models take no CPU from the decoders: where one CPU is left of a cluster, both still run.
    known = ray.nodes()
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in known)
    items = [{"chunk": number, "paths": pickle.dumps(list(chunk))} for number, chunk in enumerate(chunks)]
    listed = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))
    data = listed.map_batches(_Decode(job.reader), batch_size=1, num_cpus=1)
    data = data.map_batches(
        _Answer,
        fn_constructor_args=(ray.put(job), gpus > 0, int(os.environ.get("OMP_NUM_THREADS", 0))),
        batch_size=1,
        num_cpus=0,
        num_gpus=1 if gpus else None,
        concurrency=(1, max(gpus or nodes, 1)),
    )
    for block in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for chunk, number, is_last, part in zip(*(block[name] for name in _COLUMNS), strict=True):
            yield {"chunk": int(chunk), "number": int(number), "is_last": bool(is_last), "part": pickle.loads(part)}


_COLUMNS = ("chunk", "number", "is_last", "part")


def _in_order(parts: Iterator[dict[str, Any]]) -> Iterator[Answered]:
    """The parts of each chunk that is complete."""
    waiting: dict[int, dict[int, dict[str, Any]]] = {}
    for part in parts:
        if isinstance(part["part"], str):
            raise ZooError(part["part"])
        mine = waiting.setdefault(part["chunk"], {})
        mine[part["number"]] = part
        last = next((number for number, one in mine.items() if one["is_last"]), None)
        if last is not None and len(mine) == last + 1:
            for number in range(last + 1):
                rows, files, is_last = mine[number]["part"]
                yield Answered(part["chunk"], rows, files, is_last)
            del waiting[part["chunk"]]


class _Decode:
    """A function for Ray: a chunk of paths to batches of clips."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, rows: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        (chunk,), (paths,) = rows["chunk"], map(pickle.loads, rows["paths"])
        for number, batch in enumerate(self.reader.read(paths)):
            ends = batch.is_last and batch.files[-1].path == paths[-1]
            yield _row(chunk, number, ends, batch)


class _Answer:
    """An actor for Ray: batches of clips to rows."""

    def __init__(self, job: "ray.ObjectRef[Job]", on_gpu: bool, threads: int) -> None:
        import ray
        import torch

        self.job: Job = ray.get(job)
        self.job.model.to("cuda" if on_gpu else "cpu")
        torch.set_num_threads(threads or os.cpu_count() or 1)  # Ray has set it to the CPUs of the actor

    def __call__(self, rows: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for chunk, number, is_last, part in zip(*(rows[name] for name in _COLUMNS), strict=True):
            batch = pickle.loads(part)
            try:
                values = [] if batch.video is None else self.job.answer(batch.video)
            except ZooError as error:  # the driver raises it
                yield _row(chunk, number, is_last, str(error))
                continue
            pairs = list(zip(batch.records, values, strict=True))
            yield _row(chunk, number, is_last, (pairs, batch.files, batch.is_last))


def _row(chunk: int, number: int, is_last: bool, part: object) -> dict[str, list[Any]]:
    values = (chunk, number, is_last, pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
    return {name: [value] for name, value in zip(_COLUMNS, values, strict=True)}
