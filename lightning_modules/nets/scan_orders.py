"""The orders in which VideoMamba scans the tokens of a clip (arXiv 2403.06977, section 3.2 and figure 4).

Tokens lie frame by frame, in raster order within a frame, behind the class token. That is one of two ways through the
clip; here for three frames of two tokens, numbers saying when a token is visited::

    spatial first: frame after frame        temporal first: place after place
                  place 0  place 1                        place 0  place 1
         frame 0     1        2                  frame 0     1        4
         frame 1     3        4                  frame 1     2        5
         frame 2     5        6                  frame 2     3        6

Every scan goes both ways, and the class token is first in both orders (number 0; figure 4 leaves it out). Positions
were added before, so the weights are the same, by name and shape, for all orders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.checks import check_choice
from lightning_modules.nets.bimamba import BiMamba, Norm, mixer_weights
from lightning_modules.ops import mix

__all__ = ["SCAN_ORDERS", "FullCrossScan", "HalfCrossScan", "block_orders", "temporal_first"]

# What the first half of the blocks does (rounded down), and the second.
_HALVES = {
    "spatial_first": ("spatial", "spatial"),
    "temporal_first": ("temporal", "temporal"),
    "spatiotemporal_v1": ("half", "half"),
    "spatiotemporal_v2": ("full", "full"),
    "spatial_then_temporal": ("spatial", "temporal"),
    "temporal_then_spatial": ("temporal", "spatial"),
}
SCAN_ORDERS = (*_HALVES, "alternating")


def block_orders(scan_order: str, depth: int) -> list[str]:
    """What each block does: "spatial" or "temporal", or "half" or "full", a `HalfCrossScan` or a `FullCrossScan`.

    The paper calls spatial_then_temporal and temporal_then_spatial Half-SF + Half-TF and Half-TF + Half-SF;
    alternating is spatial first in blocks 0, 2, 4, ..., temporal first in the others.

    Raises:
        ModelError: there is no such order.
    """
    check_choice("scan_order", scan_order, SCAN_ORDERS)
    if scan_order == "alternating":
        return ["temporal" if i % 2 else "spatial" for i in range(depth)]
    first, second = _HALVES[scan_order]
    return [first] * (depth // 2) + [second] * (depth - depth // 2)


def temporal_first(frames: int, places: int) -> tuple[Tensor, Tensor]:
    """Index maps between the two orders, int64 (1 + frames * places,) each.

    Returns:
        Where each token of the temporal-first sequence lies in the spatial-first one, and the other way round.
    """
    number = 1 + torch.arange(frames * places)
    first = torch.zeros(1, dtype=torch.long)
    to_temporal = torch.cat([first, number.view(frames, places).T.flatten()])
    to_spatial = torch.cat([first, number.view(places, frames).T.flatten()])
    return to_temporal, to_spatial


class HalfCrossScan(BiMamba):
    """BiMamba that scans in both orders within one block: the first spatiotemporal scan of figure 4.

    The paper says that v1 conducts half of the two bidirectional scans and v2 all of them, at twice the computation; no
    code of them was published. Read as: from the first token in spatial-first order, from the last token in
    temporal-first order.
    """

    def forward(  # type: ignore[override]  # blocks hand it the maps, see `bimamba.Block`
        self, h: Tensor, to_temporal: Tensor, to_spatial: Tensor, norm: Norm | None = None
    ) -> Tensor:
        """(B, L, D) in spatial-first order, and the maps of `temporal_first` -> (B, L, D) in the same order."""
        x, z = self.project(h, norm).chunk(2, dim=-1)
        y, y_t = self._scans(x, x.index_select(1, to_temporal))
        return self.out_proj((y + y_t.index_select(1, to_spatial)) * F.silu(z))

    def _scans(self, x: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Without the gate, in the order of each: (B, L, E) twice."""
        y = mix(x, None, mixer_weights(self, self.A_log), recompute=self.recompute)
        return y, mix(x_t, None, mixer_weights(self, self.A_b_log, "_b"), reverse=True, recompute=self.recompute)


class FullCrossScan(HalfCrossScan):
    """v2: from both ends in both orders, with the same weights; the four results are added."""

    def _scans(self, x: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        return self.scan(x), self.scan(x_t)
