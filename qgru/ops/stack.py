"""Layers, directions, padding and non-finite rows around the one-layer op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qgru.grid import Grid
from qgru.ops import library
from qgru.ops.exact import quantize_real
from qgru.ops.reference import Cell, gru_layer

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


def quantized_gru(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Parameters],
    grids: Sequence[Mapping[str, Grid]],
    bidirectional: bool = False,
    active: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run a stack of quantized layers; they hand integers to each other.

    Args:
        x: (time, batch, input), real, any floating dtype.
        h0: (layers * directions, batch, hidden), real; None for zeros.
        parameters: for every layer and direction, in `nn.GRU`'s order, (weight_ih, weight_hh, bias_ih, bias_hh).
        grids: for every layer and direction, canonical operator name to grid, ``op.Rh_add_br`` included.
        bidirectional: two entries a layer.
        active: (time, batch) bool, False on padding; None means all valid.
        dropout: probability between the layers; 0 outside training.

    Returns:
        output (time, batch, directions * hidden) and h_n (layers * directions, batch, hidden), float64, or float32
        from the kernels where it is exact in it. A NaN in a row's input or state makes that row NaN from there on;
        a NaN parameter makes everything NaN.
    """
    directions = 2 if bidirectional else 1
    kernels = library.kernels_for(x, parameters, grids, directions)
    if kernels is not None:
        return _on_kernels(x, h0, parameters, grids, kernels, directions, active, dropout)
    if h0 is None:
        h0 = x.new_zeros(len(parameters), x.shape[1], parameters[0][1].shape[1])
    lost = torch.isnan(x).any(-1)
    feed, finals = _without_nan(x), []
    for first in range(0, len(parameters), directions):
        if first and dropout:
            feed = F.dropout(feed, dropout)
        inputs = quantize_real(feed, grids[first]["input.x"])
        states, losses = [], []
        for index in range(first, first + directions):
            reverse = index > first
            cell = Cell.from_parameters(tuple(map(_without_nan, parameters[index])), grids[index])
            start = quantize_real(_without_nan(h0[index]), grids[index]["output.h"])
            states.append(gru_layer(inputs, start, cell, active, reverse).value)
            losses.append(_lost_from_there_on(lost, torch.isnan(h0[index]).any(-1), reverse))
            finals.append(_with_nan(states[-1], losses[-1])[0 if reverse else -1])
        feed, lost = torch.cat(states, -1), torch.stack(losses).any(0)
    output = torch.cat([_with_nan(s, loss) for s, loss in zip(states, losses, strict=True)], -1)
    diverged = torch.stack([torch.isnan(parameter).any() for cell in parameters for parameter in cell]).any()
    return _with_nan(output, diverged), _with_nan(torch.stack(finals), diverged)


def _on_kernels(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Parameters],
    grids: Sequence[Mapping[str, Grid]],
    kernels: Sequence[library.Kernels],
    directions: int,
    active: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Run the stack on the kernels, whose type holds the states exactly; they see to NaN in what they read."""
    feed, finals, diverged = x, [], None
    if len(kernels) > 1:
        sizes = torch._foreach_norm([p.detach() for cell in parameters for p in cell], torch.inf)
        diverged = torch.isnan(torch.stack(sizes)).any()
    for layer, of_layer in enumerate(kernels):
        first = layer * directions
        if first and dropout:  # float32 would round what dropout scales, and that could move a tie
            inputs = quantize_real(F.dropout(feed.double(), dropout), grids[first]["input.x"])
            feed = inputs.value.float() if inputs.bound <= 1 << 24 else inputs.value
        cells = [parameter for cell in parameters[first : first + directions] for parameter in cell]
        start = h0 if h0 is None or len(kernels) == 1 else h0[first : first + directions]
        feed, last = library.gru_layer(feed, start, cells, of_layer, active, diverged)
        finals.append(last)
    return feed, torch.cat(finals) if len(finals) > 1 else finals[0]


def _without_nan(tensor: Tensor) -> Tensor:
    """Return float64 with 0 for NaN: integers have none, so a mask stands for it until the end."""
    return torch.where(torch.isnan(tensor), 0.0, tensor).double()


def _with_nan(tensor: Tensor, lost: Tensor) -> Tensor:
    return tensor.masked_fill(lost.unsqueeze(-1), torch.nan)


def _lost_from_there_on(lost: Tensor, lost_at_start: Tensor, reverse: bool) -> Tensor:
    """Spread (time, batch) flags along the walk; `lost_at_start` (batch,) holds for every step."""
    walk = lost.flip(0) if reverse else lost
    spread = (walk.cumsum(0) > 0) | lost_at_start
    return spread.flip(0) if reverse else spread
