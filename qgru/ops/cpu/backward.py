"""The backward pass of one direction: the kernel walks over time, torch's own products do the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qgru.ops.cpu import kernels
from qgru.ops.plan import Plan
from qgru.schema import WEIGHTS


def on_grid(value: Tensor, steps_per_unit: Tensor | float, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the dequantized value, float32, NaN as 0, and where it was not clamped.

    Args:
        value: real, float32.
        steps_per_unit: a power of two, or one that broadcasts.
        bounds: the smallest and largest mantissa.
    """
    steps = (value * steps_per_unit).round_()
    kept = steps.clamp(*bounds)
    inside = kept == steps
    return kept.nan_to_num_(0.0).div_(steps_per_unit), inside


class Backward:
    """The backward pass of one direction of a layer.

    Args:
        plan: its grids.
        parameters: weight_ih, weight_hh, bias_ih, bias_hh.
        exponents: (4, 3 * hidden) int32, of the four weight operators.
        direction: 0 or 1, which walks from the last time step to the first.
        own: the kernels.
        path: of theirs, an index.
    """

    def __init__(
        self,
        plan: Plan,
        parameters: Sequence[Tensor],
        exponents: Tensor,
        direction: int,
        own: kernels.Kernels,
        path: int,
    ) -> None:
        self.plan, self.direction, self.kernels, self.path = plan, direction, own, path
        steps = torch.exp2(exponents.double()).float()
        self.quantized = [
            on_grid(p.float().contiguous(), s.view(-1, *[1] * (p.dim() - 1)), plan.range(name))
            for p, s, name in zip(parameters, steps, WEIGHTS, strict=True)
        ]

    def run(
        self,
        d_states: Tensor | None,
        d_last: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        states: Tensor,
        kept: tuple[Tensor, Tensor],
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Return the gradients of x, h0 and the parameters, float32.

        Args:
            d_states: (time, batch, directions * hidden), contiguous.
            d_last: (batch, hidden), contiguous.
            x: (time, batch, input).
            h0: (batch, hidden); None for zeros.
            states: (time, batch, directions * hidden), without NaN.
            kept: the factors and flags of the forward pass.
            needs_x: False leaves x's gradient out.
        """
        (W, in_W), (R, in_R), (_, in_bw), (_, in_br) = self.quantized
        (time, batch, size), hidden = x.shape, R.shape[1]
        dWx, dRh, dh, biases = self._walk(d_states, d_last, R, kept, time, batch)
        inputs, in_x = on_grid(x, 2.0 ** self.plan.exponent("input.x"), self.plan.range("input.x"))
        rows = dWx.view(-1, 3 * hidden)
        dx = rows.mm(W).view(time, batch, size).mul_(in_x) if needs_x else None
        dW = rows.t().mm(inputs.view(-1, size)).mul_(in_W)
        dR, dh = self._recurrent(dRh, dh, h0, states.float())
        r, z, g, c = biases.sum(0).float()
        return dx, dh, [dW, dR.mul_(in_R), torch.cat((r, z, g)).mul_(in_bw), torch.cat((r, z, c)).mul_(in_br)]

    def _walk(
        self, d_states: Tensor | None, d_last: Tensor | None, R: Tensor, kept: tuple[Tensor, Tensor], *shape: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return dWx and dRh, (time, batch, 3 * hidden), dh (batch, hidden) and sums, (parts, 4, hidden)."""
        hidden, batch = R.shape[1], shape[1]
        dWx, dRh = R.new_empty(*shape, 3 * hidden), R.new_empty(*shape, 3 * hidden)
        dh = R.new_empty(batch, hidden)
        biases = torch.zeros(kernels.parts_of(batch), 4, hidden, dtype=torch.float64)
        call = kernels.Backward(*shape, hidden, self.direction > 0, len(biases))
        if d_states is not None:
            column = self.direction * hidden * d_states.element_size()
            call.d_states, call.row = d_states.data_ptr() + column, d_states.shape[2]
        call.d_last = None if d_last is None else d_last.data_ptr()
        call.R, call.factors, call.passed = R.data_ptr(), kept[0].data_ptr(), kept[1].data_ptr()
        call.dWx, call.dRh, call.dh, call.biases = (out.data_ptr() for out in (dWx, dRh, dh, biases))
        self.kernels.backward(call, self.path)
        return dWx, dRh, dh, biases

    def _recurrent(self, dRh: Tensor, dh: Tensor, h0: Tensor | None, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of R and h0."""
        hidden = dh.shape[1]
        own = states[..., self.direction * hidden : (self.direction + 1) * hidden]
        before, after = (own[1:], dRh[:-1]) if self.direction else (own[:-1], dRh[1:])
        dR = after.reshape(-1, 3 * hidden).t().mm(before.reshape(-1, hidden))
        if h0 is None:
            return dR, None
        start, inside = on_grid(h0, 2.0 ** self.plan.exponent("output.h"), self.plan.range("output.h"))
        return dR.addmm_(dRh[-1 if self.direction else 0].t(), start), dh.mul_(inside)
