"""The gradient of docs/numerics.md#gradients: float64 autograd through quantizers that pass what they did not clamp.

A loop over rows and steps in plain tensors, sharing no code with qgru; exact for the narrow grids it is used on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracle import OPTIONAL, OracleGrid
from tests.random_gru import Grids


class Quantizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, zero_point: int, qmin: int, qmax: int) -> Tensor:
        q = torch.round(value / scale) + zero_point
        ctx.save_for_backward((q >= qmin) & (q <= qmax))
        return (q.clamp(qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        return gradient * ctx.saved_tensors[0], None, None, None, None


def quantize(value: Tensor, grid: OracleGrid | list[OracleGrid]) -> Tensor:
    rows = grid if isinstance(grid, list) else [grid]
    scale = torch.tensor([2.0**-g.exp2_inv for g in rows], dtype=torch.float64)
    scale = scale.view(-1, *[1] * (value.dim() - 1)) if isinstance(grid, list) else scale
    return Quantizer.apply(value, scale, rows[0].zero_point, rows[0].qmin, rows[0].qmax)


def run_row(x: Tensor, h: Tensor, parameters: list[Tensor], grids: Grids) -> Tensor:
    """h_1 ... h_T of one row in one direction; x: (time, input), h: (hidden,)."""
    W, R, bw, br = (
        quantize(p, grids[name])
        for p, name in zip(parameters, ("weight.W", "weight.R", "weight.bw", "weight.br"), strict=True)
    )
    bw_r, bw_z, bw_g = bw.chunk(3)
    br_r, br_z, br_g = br.chunk(3)
    h = quantize(h, grids["output.h"])
    states = []
    for x_t in x:
        Wx = quantize(W @ quantize(x_t, grids["input.x"]), grids["matmul.Wx"]).chunk(3)
        Rh = quantize(R @ h, grids["matmul.Rh"]).chunk(3)
        r = quantize(torch.sigmoid(quantize(Wx[0] + Rh[0] + bw_r + br_r, grids["gate.r_pre"])), grids["gate.r_out"])
        z = quantize(torch.sigmoid(quantize(Wx[1] + Rh[1] + bw_z + br_z, grids["gate.z_pre"])), grids["gate.z_out"])
        c = quantize(Rh[2] + br_g, grids.get(OPTIONAL, grids["matmul.Rh"]))
        m = quantize(r * c, grids["op.rRh"])
        g = quantize(torch.tanh(quantize(Wx[2] + bw_g + m, grids["gate.g_pre"])), grids["gate.g_out"])
        old, new = quantize(z * h, grids["op.old_contrib"]), quantize((1 - z) * g, grids["op.new_contrib"])
        h = quantize(old + new, grids["output.h"])
        states.append(h)
    return torch.stack(states)


def run(
    gru: torch.nn.GRU,
    parameters: dict[str, Tensor],
    grids: list[list[Grids]],
    x: Tensor,
    lengths: list[int],
    h0: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output (batch, time, directions * hidden), zero in the padding, and h_n; float64, differentiable."""
    rows = [row[:length] for row, length in zip(x, lengths, strict=True)]
    last = []
    for layer, directions in enumerate(grids):
        halves = []
        for d, direction in enumerate(directions):
            suffix = f"l{layer}" + "_reverse" * d
            zeros = torch.zeros(3 * gru.hidden_size, dtype=torch.float64)
            names = [f"{kind}_{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            own = [parameters.get(name, zeros) for name in names]
            index = layer * len(directions) + d
            runs = [run_row(row.flip(0) if d else row, h0[index, b], own, direction) for b, row in enumerate(rows)]
            last.append(torch.stack([states[-1] for states in runs]))
            halves.append([states.flip(0) if d else states for states in runs])
        rows = [torch.cat(parts, -1) for parts in zip(*halves, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.stack(last)
