"""A quantized forward on integers alone, for chains of fixed-point stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru.grid import Grid
from qgru.layout import standardize
from qgru.ops.call import CellGrids, Parameters
from qgru.ops.stack import quantized_gru

_FLOAT_BITS = 24


@torch.no_grad()
def forward_integers(
    gru: nn.GRU,
    parameters: Sequence[Parameters],
    cells: Sequence[CellGrids],
    x_q: Tensor | PackedSequence,
    hx_q: Tensor | None,
) -> tuple[Any, Tensor]:
    """Run a layer on integers; see `QuantGRU.forward_integers`.

    Args:
        gru: the layer, for its shape and layout.
        parameters: of every layer and direction.
        cells: likewise, the grids.
        x_q: the input.
        hx_q: the initial states.
    """
    _check_type("x_q", x_q.data if isinstance(x_q, PackedSequence) else x_q)
    if hx_q is not None:
        _check_type("hx_q", hx_q)
    x, h0, layout = standardize(gru, x_q, hx_q, integers=True)
    state_grids = [cell.grids["output.h"] for cell in cells]
    x_real = _real("x_q", x, cells[0].grids["input.x"])
    h_real = None if h0 is None else torch.stack([_real("hx_q", h, g) for h, g in zip(h0, state_grids, strict=True)])
    output, h_n = quantized_gru(x_real, h_real, parameters, cells, gru.bidirectional, layout.active)
    if bool(torch.isnan(h_n).any()):
        raise ValueError("forward_integers: a parameter is NaN, which no integer can show")
    directions = len(cells) // gru.num_layers
    parts = zip(output.chunk(directions, -1), state_grids[-directions:], strict=True)
    integers = torch.cat([_integers(part, grid) for part, grid in parts], -1)
    last = torch.stack([_integers(h, grid) for h, grid in zip(h_n, state_grids, strict=True)])
    return layout.output(integers), layout.hidden(last)


def output_grid(grids: Sequence[Grid]) -> Grid | tuple[Grid, ...]:
    """Return one direction's grid, or a tuple of both."""
    return grids[0] if len(grids) == 1 else tuple(grids)


def _check_type(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} is {tensor.dtype}; expected integers")


def _real(name: str, integers: Tensor, grid: Grid) -> Tensor:
    """Return the integers' values: float32 where it holds them exactly, or float64."""
    low, high = (int(end) for end in integers.aminmax()) if integers.numel() else (grid.zero_point,) * 2
    if low < grid.qmin or high > grid.qmax:
        raise ValueError(f"{name} holds integers from {low} to {high}; expected {grid.qmin} to {grid.qmax}")
    real = grid.dequantize(integers.long())
    return real.float() if grid.bitwidth < _FLOAT_BITS else real


def _integers(states: Tensor, grid: Grid) -> Tensor:
    return grid.quantize(states.double()).to(torch.int32 if grid.qmax < 1 << 31 else torch.int64)
