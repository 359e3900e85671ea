"""What the subcommands that fill tables share: who does the work, which share of it, and what they say at the end."""

import argparse
import os
from typing import TYPE_CHECKING, Any, Protocol

from zoo.commands.console import print_json, show
from zoo.errors import ZooError
from zoo.inference.precision import PRECISIONS
from zoo.limits import SHARDS, WORKERS, check_range

if TYPE_CHECKING:
    from zoo.tables.fill import Done

__all__ = ["add_engine", "add_precision", "check_engine", "show_done"]

# (rank, processes), as torchrun and SLURM's srun tell them.
_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


class TakesOptions(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Declare an option, see `argparse`."""


def add_engine(parser: TakesOptions) -> None:
    """Declare the options."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read videos (default: cores, up to 4)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="let a Ray cluster do it: auto for the one that is there or a new one on this "
        "machine, or HOST:PORT; every node has to see the videos",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="auto", help="share the files out among the processes that torchrun or SLURM has started"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare ``--precision``."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16 multiplies matrices in bfloat16: faster on GPUs "
        "and on CPUs with avx512_bf16 or AMX, with slightly other results (default fp32)",
    )  # fmt: skip


def check_engine(args: argparse.Namespace) -> tuple[int, int]:
    """Return (k, n): this is process k of n, from 1.

    Raises:
        ZooError: a wrong option.
    """
    check_range("--workers", args.workers or 0, WORKERS)
    if args.ray is not None:
        from zoo.tables.ray_data import check_ray

        check_ray()
        if not args.ray.strip():
            raise ZooError("--ray is empty; write auto, or the address of a cluster, HOST:PORT.")
        if args.shard is not None:
            raise ZooError("--ray and --shard both share the work out; omit one of them.")
    if args.shard is None:
        return 1, 1
    if args.shard != "auto":
        raise ZooError(f"--shard {args.shard} is gone; start a command without it, which uses all cores, with --ray "
                       "auto for several machines, or with --shard auto under torchrun or SLURM.")  # fmt: skip
    for rank, count in _VARIABLES:
        texts = os.environ.get(rank, ""), os.environ.get(count, "")
        if all(text.isdecimal() and len(text) < 6 for text in texts):
            number, processes = map(int, texts)
            check_range(count, processes, SHARDS)
            check_range(rank, number, (0, processes - 1))
            return number + 1, processes
    raise ZooError("--shard auto reads RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_NTASKS, and they are not set; "
                   "start the command with torchrun --no-python or srun.")  # fmt: skip


def show_done(args: argparse.Namespace, content: str, verb: str, done: "Done") -> None:
    """Print what was done to a table, as a sentence or with ``--json``.

    Args:
        args: of the command; ``out`` is the table.
        content: what the table holds, "features".
        verb: what was done to a video, "extracted".
        done: what `zoo.tables.fill.fill` said.
    """
    if args.json:
        numbers = {"videos": done.videos, verb: done.read, "unreadable": done.unreadable, "kept": done.kept}
        print_json({content: args.out, **numbers, "dropped": done.dropped, "rows": done.rows})
        return
    show(
        f"{args.out}: {done.videos} videos: {done.read} {verb} now, {done.kept} kept, {done.unreadable} unreadable, "
        f"{done.dropped} dropped; {done.rows} rows."
    )
