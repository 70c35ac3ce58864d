"""Layers, directions and dropout around one layer on a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qgru.ops import backends, builtin  # noqa: F401  (registers the backends)
from qgru.ops.call import CellGrids, LayerCall, LayerShape, Parameters
from qgru.ops.exact import quantize_real
from qgru.ops.library import gru_layer
from qgru.torch_private import any_nan

_FLOAT32 = 1 << 24


def quantized_gru(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Parameters],
    cells: Sequence[CellGrids],
    bidirectional: bool = False,
    active: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run a stack of quantized layers; they hand integers to each other.

    Args:
        x: (time, batch, input), real, any floating dtype.
        h0: (layers * directions, batch, hidden), real; None for zeros.
        parameters: for every layer and direction, in `nn.GRU`'s order, (weight_ih, weight_hh, bias_ih, bias_hh).
        cells: for every layer and direction, its grids.
        bidirectional: two entries a layer.
        active: (time, batch) bool, False on padding; None means all valid.
        dropout: probability between the layers; 0 outside training.

    Returns:
        output (time, batch, directions * hidden) and h_n (layers * directions, batch, hidden), of a type that holds
        them exactly. A NaN in a row's input or state makes that row NaN from there on; a NaN parameter makes
        everything NaN.
    """
    directions = 2 if bidirectional else 1
    tensors = [parameter for cell in parameters for parameter in cell]
    backend = backends.serving(_shape(x, tensors), [cell.plan for cell in cells], directions)
    diverged = any_nan(tensors) if len(parameters) > directions else None
    feed, finals = x, []
    for first in range(0, len(parameters), directions):
        of_layer = cells[first : first + directions]
        if first and dropout:
            feed = _dropped(feed, dropout, of_layer[0])
        start = h0 if h0 is None or diverged is None else h0[first : first + directions]
        call = LayerCall(
            feed,
            start,
            tensors[4 * first : 4 * (first + directions)],
            [cell.exponents(x) for cell in of_layer],
            active,
            diverged,
            [cell.plan for cell in of_layer],
            cells=of_layer,
        )
        feed, last = gru_layer(backend, call)
        finals.append(last)
    return feed, torch.cat(finals) if len(finals) > 1 else finals[0]


def _shape(x: Tensor, parameters: Sequence[Tensor]) -> LayerShape:
    dtypes = tuple([parameter.dtype for parameter in parameters])
    return LayerShape(*x.shape, parameters[1].shape[1], x.dtype, dtypes, x.device, torch.is_grad_enabled())


def _dropped(states: Tensor, dropout: float, cell: CellGrids) -> Tensor:
    """Apply dropout on the next layer's grid: float32 would round what is scaled, and that could move a tie."""
    inputs = quantize_real(F.dropout(states.double(), dropout), cell.grids["input.x"])
    return inputs.value.float() if cell.plan.size("input.x") <= _FLOAT32 else inputs.value
