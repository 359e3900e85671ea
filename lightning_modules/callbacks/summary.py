"""What is trained: parts, parameters and operations, as a table before the training starts."""

from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich import get_console
from rich.table import Table
from torch import nn
from typing_extensions import override

from lightning_modules.nets.flops import count_flops

__all__ = ["Summary"]


class Summary(Callback):
    """Prints a table of the parts of ``net``: parameters, trainable ones, operations of one clip's forward pass.

    The clip has the frames and the size that the module is trained with (``preprocessing``). An addition and a
    multiplication are two operations; see `lightning_modules.nets.flops`.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Here and not in on_fit_start: a sharding strategy has taken the parameters apart by then.
        if stage == "fit" and trainer.is_global_zero:
            get_console().print(summary_table(pl_module))


def summary_table(module: LightningModule) -> Table:
    """The table for a module with ``net`` and ``preprocessing`` whose forward takes clips (B, 3, T, H, W)."""
    prepared: dict[str, Any] = module.preprocessing  # type: ignore[assignment]  # of `BaseModule`, which stands above
    frames, size = prepared["num_frames"], prepared["image_size"]
    try:
        clip = torch.empty(1, 3, frames, size, size, dtype=torch.uint8, device="meta")
        counts: Counter[str] | None = count_flops(module, clip)
    except Exception as error:  # a user's own network may raise anything, and the training counts more
        rank_zero_warn(f"The operations of {type(module).__name__} cannot be counted: {error}")
        counts = None
    table = Table(
        title=f"{type(module).__name__}, one clip of {frames} x {size} x {size} px",
        caption=None if counts is None else "forward only; a multiply-add, which papers count once, is 2 operations",
    )
    table.add_column("part of net")
    for column in ("parameters", "trainable", "operations"):
        table.add_column(column, justify="right")

    def add_row(title: str, parameters: list[nn.Parameter], operations: int, style: str | None = None) -> None:
        numbers = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        table.add_row(title, *(f"{n:,}" for n in numbers), "?" if counts is None else readable(operations), style=style)

    net = module.net
    assert isinstance(net, nn.Module)
    own = list(net.parameters(recurse=False))
    if own:
        add_row(", ".join(name for name, _ in net.named_parameters(recurse=False)), own, 0)
    for name, part in net.named_children():
        parameters = list(part.parameters())
        if parameters:
            prefix = f"net.{name}"
            # A list of blocks is not called itself, so it has no count of its own.
            inside = [prefix] if not isinstance(part, nn.ModuleList) else [f"{prefix}.{i}" for i in range(len(part))]
            add_row(_title(name, part), parameters, sum((counts or Counter[str]())[key] for key in inside))
    table.add_section()
    add_row("total", list(net.parameters()), (counts or Counter[str]())[""], style="bold")
    return table


def readable(operations: int) -> str:
    """4_321_000_000 -> "4.32 G"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= factor:
            return f"{operations / factor:.3g} {unit}"
    return str(operations)


def _title(name: str, part: nn.Module) -> str:
    if not isinstance(part, nn.ModuleList):
        return name
    kinds = sorted({type(block).__name__ for block in part})
    return f"{name}: {len(part)} x {' / '.join(kinds)}"
