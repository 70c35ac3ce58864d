"""Every inner value of a float GRU, for all time steps at once: given the states, there is no loop left."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from qgru.ops.call import Parameters
from qgru.torch_private import gru as float_gru


def inner_values(
    x: Tensor, h0: Tensor, parameters: list[Parameters], bidirectional: bool, active: Tensor | None
) -> Iterator[dict[str, list[Tensor]]]:
    """Run a stack of float layers and yield what each layer and direction computes inside.

    Args:
        x: (time, batch, input), floating.
        h0: (layers * directions, batch, hidden).
        parameters: for every layer and direction, (weight_ih, weight_hh, bias_ih, bias_hh).
        bidirectional: two entries a layer.
        active: (time, batch) bool, False on padding; None means all valid.

    Yields:
        for every layer and direction, canonical operator name to tensors of values, padding left out; weights are not
        among them. ``input.x`` comes with a layer's first direction only, for both share its grid.
    """
    directions = 2 if bidirectional else 1
    feed = x.flatten(0, 1) if active is None else x[active]
    for first in range(0, len(parameters), directions):
        cells = parameters[first : first + directions]
        start = h0[first : first + directions]
        states = _float_layer(feed, x.shape[:2], active, start, cells)
        for direction, (cell, own) in enumerate(zip(cells, states.chunk(directions, -1), strict=True)):
            previous = _previous_states(own, start[direction], x.shape[:2], active, reverse=direction == 1)
            shared = {"input.x": [feed]} if direction == 0 else {}
            own_states = {"output.h": [start[direction], own]}
            yield shared | own_states | {op: [value] for op, value in _operators(feed, previous, cell).items()}
        feed = states


def _float_layer(rows: Tensor, shape: torch.Size, active: Tensor | None, h0: Tensor, cells: list[Parameters]) -> Tensor:
    """Run one layer on the valid rows (valid, features) with torch's own kernel; returns its output likewise."""
    options = ([parameter for cell in cells for parameter in cell], True, 1, 0.0, False, len(cells) == 2)
    with warnings.catch_warnings():  # cuDNN's, that one layer's weights are not its whole flat buffer
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        if active is None:
            return float_gru(rows.view(*shape, -1), h0, *options, False)[0].flatten(0, 1)
        return float_gru(rows, active.sum(1).cpu(), h0, *options)[0]


def _previous_states(states: Tensor, h0: Tensor, shape: torch.Size, active: Tensor | None, reverse: bool) -> Tensor:
    """Return, for every valid row, the state that its step started from."""
    start = h0.unsqueeze(0)
    if active is None:
        steps = states.reshape(*shape, -1)
        return torch.cat([steps[1:], start] if reverse else [start, steps[:-1]]).flatten(0, 1)
    padded = states.new_zeros(*shape, states.shape[-1])
    padded[active] = states
    if not reverse:
        return torch.cat([start, padded[:-1]])[active]
    followed = torch.cat([active[1:], torch.zeros_like(active[:1])])
    following = torch.cat([padded[1:], start])
    return torch.where(followed.unsqueeze(-1), following, start)[active]


def _operators(x: Tensor, h: Tensor, parameters: Parameters) -> dict[str, Tensor]:
    W, R, bw, br = parameters
    Wx, Rh = F.linear(x, W), F.linear(h, R)
    r_in, z_in, g_in = (Wx + bw).chunk(3, -1)
    br_r, br_z, br_g = br.chunk(3)
    Rh_r, Rh_z, Rh_g = Rh.chunk(3, -1)
    r_pre, z_pre, c = r_in + Rh_r + br_r, z_in + Rh_z + br_z, Rh_g + br_g
    r, z = torch.sigmoid(r_pre), torch.sigmoid(z_pre)
    g_pre = g_in + r * c
    g = torch.tanh(g_pre)
    return {
        "matmul.Wx": Wx,
        "matmul.Rh": Rh,
        "gate.z_pre": z_pre,
        "gate.z_out": z,
        "gate.r_pre": r_pre,
        "gate.r_out": r,
        "gate.g_pre": g_pre,
        "gate.g_out": g,
        "op.rRh": r * c,
        "op.old_contrib": z * h,
        "op.new_contrib": (1 - z) * g,
        "op.Rh_add_br": c,
    }
