"""The definition: one layer and direction of a quantized GRU in differentiable PyTorch, exact in its integers.

Names follow the equations of ``docs/numerics.md#one-time-step``: ``Wx``, ``Rh`` are the two matrix products, ``z``,
``r``, ``g`` the update, reset and new gate; PyTorch's gate order is r, z, g. Every ``quantize`` rounds once what was
computed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.exact import Exact, add, matmul, multiply, one_minus, quantize, quantize_real
from qgru.ops.plan import TABLE_BITS, Plan, plan_of
from qgru.schema import OPTIONAL, WEIGHTS

FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
_SLOPES = {"sigmoid": lambda y: y * (1 - y), "tanh": lambda y: 1 - y * y}


class Gates(NamedTuple):
    """What a time step reads of one gate or of all, in PyTorch's order; each (batch, hidden)."""

    r: Exact
    z: Exact
    g: Exact


@dataclass(frozen=True)
class Cell:
    """The quantized parameters and the grids of one layer and direction.

    Attributes:
        W: (3 * hidden, input) input weights.
        R: (3 * hidden, hidden) recurrent weights.
        bw: (3 * hidden,) input biases.
        br: (3 * hidden,) recurrent biases.
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
        plan: the bounds that follow from the grids.
    """

    W: Exact
    R: Exact
    bw: Exact
    br: Exact
    grids: Mapping[str, Grid]
    plan: Plan

    @classmethod
    def from_parameters(cls, parameters: Sequence[Tensor], grids: Mapping[str, Grid]) -> Cell:
        """Quantize (weight_ih, weight_hh, bias_ih, bias_hh), real tensors of any dtype, onto their grids."""
        quantized = [quantize_real(p.double(), grids[name]) for p, name in zip(parameters, WEIGHTS, strict=True)]
        return cls(*quantized, grids, plan_of(grids))

    def sum(self, name: str, *terms: Exact) -> Exact:
        """Return the exact sum that the operator `name` rounds, or a part of it."""
        return add(*terms, exponent=self.plan.unrounded_exponent(name), bound=self.plan.bound(name))

    def product(self, name: str, a: Exact, b: Exact) -> Exact:
        """Return the exact product, element by element, that the operator `name` rounds."""
        return multiply(a, b, self.plan.bound(name))

    def inner_product(self, name: str, a: Exact, weight: Exact) -> Exact:
        """Return the exact ``a @ weight.T`` that the operator `name` rounds."""
        return matmul(a, weight, self.plan.bound(name, a.value.shape[-1]))


def gru_layer(x: Exact, h0: Exact, cell: Cell, active: Tensor | None = None, reverse: bool = False) -> Exact:
    """Run one layer in one direction.

    Args:
        x: (time, batch, input) on the grid ``input.x``.
        h0: (batch, hidden) on the grid ``output.h``.
        cell: parameters and grids.
        active: (time, batch) bool, False on padding, where the state stays as it is; None means all valid.
        reverse: walk from the last time step to the first.

    Returns:
        (time, batch, hidden) on the grid ``output.h``: the state after every step. The final state is the last
        entry of the walk.
    """
    steps = project_input(x, cell)
    order = range(len(steps))[::-1] if reverse else range(len(steps))
    h, states = h0, [h0] * len(steps)
    for t in order:
        updated = step(steps[t], h, cell)
        h = updated if active is None else _keep_padding(active[t], updated, h)
        states[t] = h
    return Exact(torch.stack([state.value for state in states]), h0.exponent)


def project_input(x: Exact, cell: Cell) -> list[Gates]:
    """Return, for every time step, what does not depend on the state.

    That is ``Wx + bw + br`` of the reset and update gate and ``Wx + bw`` of the new gate, exact sums.
    """
    hidden = cell.R.value.shape[1]
    Wx = quantize(cell.inner_product("matmul.Wx", x, cell.W), cell.grids["matmul.Wx"])
    (Wx_r, Wx_z, Wx_g), bw, br = Wx.split(hidden), cell.bw.split(hidden), cell.br.split(hidden)
    r, z = cell.sum("gate.r_pre", Wx_r, bw[0], br[0]), cell.sum("gate.z_pre", Wx_z, bw[1], br[1])
    g = cell.sum("gate.g_pre", Wx_g, bw[2])
    return [Gates(*gates) for gates in zip(r.unbind(), z.unbind(), g.unbind(), strict=True)]


def step(projected: Gates, h: Exact, cell: Cell) -> Exact:
    """Return the next state: one time step of the definition."""
    grids = cell.grids
    Rh = quantize(cell.inner_product("matmul.Rh", h, cell.R), grids["matmul.Rh"])
    Rh_r, Rh_z, Rh_g = Rh.split(h.value.shape[-1])
    br_g = cell.br.split(h.value.shape[-1])[2]

    z = activate("sigmoid", quantize(cell.sum("gate.z_pre", projected.z, Rh_z), grids["gate.z_pre"]), grids, "gate.z")
    r = activate("sigmoid", quantize(cell.sum("gate.r_pre", projected.r, Rh_r), grids["gate.r_pre"]), grids, "gate.r")
    c = quantize(cell.sum(OPTIONAL, Rh_g, br_g), grids[OPTIONAL])
    m = quantize(cell.product("op.rRh", r, c), grids["op.rRh"])
    g = activate("tanh", quantize(cell.sum("gate.g_pre", projected.g, m), grids["gate.g_pre"]), grids, "gate.g")

    old_contrib = quantize(cell.product("op.old_contrib", z, h), grids["op.old_contrib"])
    complement = one_minus(z, cell.plan.complement)
    new_contrib = quantize(cell.product("op.new_contrib", complement, g), grids["op.new_contrib"])
    return quantize(cell.sum("output.h", old_contrib, new_contrib), grids["output.h"])


def activate(function: str, pre: Exact, grids: Mapping[str, Grid], gate: str) -> Exact:
    """Apply ``"sigmoid"`` or ``"tanh"`` to a pre-activation on ``<gate>_pre``; the result is on ``<gate>_out``."""
    pre_grid, out_grid = grids[f"{gate}_pre"], grids[f"{gate}_out"]
    if pre_grid.bitwidth > TABLE_BITS:
        return quantize_real(FUNCTIONS[function](pre.value), out_grid)
    values, slopes = tables(function, pre_grid, out_grid, pre.value.device)
    result = Lookup.apply(pre.value, values, slopes, pre_grid.scale, -pre_grid.mantissas[0])
    return Exact(result, out_grid.exp2_inv)


def activation_table(function: str, pre: Grid, out: Grid) -> Tensor:
    """Return the integers of ``function`` for every integer of a pre-activation's grid.

    Args:
        function: ``"sigmoid"`` or ``"tanh"``, evaluated in float64.
        pre: grid of the pre-activation, at most 16 bits.
        out: grid of the output.

    Returns:
        int64, (2**pre.bitwidth,) on the CPU; index 0 belongs to ``pre.qmin``.
    """
    return out.quantize(FUNCTIONS[function](pre.dequantize(torch.arange(pre.qmin, pre.qmax + 1))))


@lru_cache(maxsize=256)
def tables(function: str, pre: Grid, out: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return dequantized outputs and the derivative (0 where the output is clamped) for every grid point.

    Built on the CPU, so that every device has the same integers.
    """
    with torch.inference_mode(False), torch.no_grad():
        real = FUNCTIONS[function](pre.dequantize(torch.arange(pre.qmin, pre.qmax + 1)))
        steps = (real * out.steps_per_unit(real)).round() + out.zero_point
        inside = (steps >= out.qmin) & (steps <= out.qmax)
        values = out.dequantize(activation_table(function, pre, out))
        return values.to(device), (_SLOPES[function](real) * inside).to(device)


class Lookup(torch.autograd.Function):
    """A table of a function's values, differentiated through a table of its slopes."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, values: Tensor, slopes: Tensor, scale: float, offset: int) -> Tensor:
        """Return ``values[pre / scale + offset]``, of pre's shape."""
        index = (pre / scale).long() + offset
        ctx.save_for_backward(index, slopes)
        return values[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient times the slope at each element's grid point."""
        index, slopes = ctx.saved_tensors
        return gradient * slopes[index], None, None, None, None


def _keep_padding(active: Tensor, updated: Exact, h: Exact) -> Exact:
    return Exact(torch.where(active.unsqueeze(-1), updated.value, h.value), h.exponent)
