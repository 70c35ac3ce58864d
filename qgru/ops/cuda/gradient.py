"""Backward of one layer and direction: the reverse walk in chunks of time steps, each followed by its products."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from qgru.ops.cuda.layer import Layer

_CHUNK_BYTES = 160 << 20


@dataclass(frozen=True)
class Saved:
    """What the forward left.

    Attributes:
        x: (time, batch, input), the real input.
        h0: (batch, hidden), the real initial state.
        parameters: W, R, bw, br, real.
        exponents: (4, 3 * hidden) int32.
        states: (time, batch, hidden), the output.
        workspace: the forward's.
    """

    x: Tensor
    h0: Tensor
    parameters: tuple[Tensor, Tensor, Tensor, Tensor]
    exponents: Tensor
    states: Tensor
    workspace: Tensor


class Backward:
    """One backward pass.

    Args:
        layer: that ran the forward.
        stream: the current stream.
        saved: the forward's tensors.
        reverse: the forward's direction.
    """

    def __init__(self, layer: Layer, stream: int, saved: Saved, reverse: bool) -> None:
        self.layer, self.stream, self.saved, self.reverse = layer, stream, saved, reverse
        self.base = saved.workspace.data_ptr()

    def run(self, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool) -> list[Tensor | None]:
        """Return the gradients of x (float32; None unless needed), h0, W, R, bw and br."""
        shape, saved = self.layer.shape, self.saved
        like, pairs = saved.h0, _pairs(shape.hidden)
        self.dh = torch.empty_like(like) if d_last is None else d_last.contiguous().clone()
        self.dh_is_zero = d_last is None
        self.d_bias = like.new_empty(self.layer.layout.groups, 4, shape.hidden)
        dx = like.new_empty(saved.x.shape) if needs_x else None
        weights = self._dequantized_W() if needs_x else None
        width = (
            12 * pairs
        )  # of the gates' gradients: (pairs, gates r z, 2 terms, 2 units), then (pairs, 2 terms, 2 units) for g
        steps = min(shape.time, max(1, _CHUNK_BYTES // (shape.batch * width * 4)))
        widths = (width, width, shape.input, 2 * pairs)
        buffers = [like.new_empty((steps * shape.batch, n), dtype=torch.bfloat16) for n in widths]
        sums: list[Tensor] = []
        for end in range(shape.time, 0, -steps):
            start = max(0, end - steps)
            rows = (end - start) * shape.batch
            dWx, dRh, x, h = (buffer[:rows] for buffer in buffers)
            self._walk(d_states, dWx, dRh, h, start, end)
            self.dh_is_zero = False
            first = shape.time - end if self.reverse else start
            self._operand(saved.x[first : first + end - start], x, None)
            factors = ((dWx, x), (dRh, h))
            if not sums:
                sums = [torch.mm(d.t(), m, out_dtype=torch.float32) for d, m in factors]
            else:
                zipped = zip(sums, factors, strict=True)
                for total, (d, m) in zipped:
                    torch.addmm(total, d.t(), m, out_dtype=torch.float32, out=total)
            if dx is not None:
                chunk = dx[first : first + end - start]
                chunk.view(rows, shape.input).copy_(torch.mm(dWx, weights, out_dtype=torch.float32))
        if dx is not None:
            self._operand(saved.x, None, dx)
        return [dx, self.dh, *self._parameters(*sums)]

    def _walk(self, d_states: Tensor | None, dWx: Tensor, dRh: Tensor, h: Tensor, start: int, end: int) -> None:
        """Go back over steps `start` to `end` of the walk; fill the gates' gradients and the states' integers."""
        layer, saved, shape, plan = self.layer, self.saved, self.layer.shape, self.layer.plan
        at = {name: self.base + offset for name, offset in layer.offsets.items()}
        d_strides = (0, 0) if d_states is None else d_states.stride()[:2]
        arguments = struct.pack(
            "@15P4q10i",
            *(at["Rt"], at["constants"], layer.tables[0].data_ptr(), layer.tables[1].data_ptr()),
            *(saved.h0.data_ptr(), at["codes"], at["flags"], at["bits"], saved.states.data_ptr()),
            0 if d_states is None else d_states.data_ptr(),
            *(t.data_ptr() for t in (self.dh, dWx, dRh, h, self.d_bias)),
            *saved.states.stride()[:2],
            *d_strides,
            *(shape.time, shape.batch, layer.layout.groups, self.reverse),
            *(start, end, *plan.table_starts[1:], self.dh_is_zero, 0),
        )
        c, m = plan.exponent("op.Rh_add_br"), plan.exponent("op.rRh")
        h, old = plan.exponent("output.h"), plan.exponent("op.old_contrib")
        exponents = (c - m, h - old, -c, -plan.exponent("op.new_contrib"), h - plan.exponent("matmul.Rh"))
        tail = struct.pack("@5f", *(2.0**e for e in exponents))
        layer.backward(self.stream, (layer.layout.groups * layer.layout.cluster, 1), arguments + layer.numbers + tail)

    def _operand(self, source: Tensor, integers: Tensor | None, masked: Tensor | None) -> None:
        """Write the input's integers, or put zeros where it is clamped."""
        plan = self.layer.plan
        arguments = struct.pack(
            "@3P2q4i3f",
            source.data_ptr(),
            0 if integers is None else integers.data_ptr(),
            0 if masked is None else masked.data_ptr(),
            *source.stride()[:2],
            *(*source.shape, 0),
            2.0 ** plan.exponent("input.x"),
            *plan.range("input.x"),
        )
        blocks = min(-(-source.shape[0] * source.shape[1] // 8), 1 << 12)
        kernel = self.layer.kernel("operand", (("CODE_BYTES", 1), *self.layer.input_macros), 256)
        kernel(self.stream, (blocks, 1), arguments)

    def _parameters(self, W_sums: Tensor, R_sums: Tensor) -> list[Tensor]:
        """Return the gradients of W, R, bw and br: zero where a parameter is clamped."""
        saved, plan, shape = self.saved, self.layer.plan, self.layer.shape
        gradients = [torch.empty_like(parameter) for parameter in saved.parameters]
        names = ("weight.W", "weight.R", "weight.bw", "weight.br")
        matrices = ((W_sums, "input.x"), (R_sums, "output.h"))
        packed = b""
        for i, (name, parameter, gradient) in enumerate(zip(names, saved.parameters, gradients, strict=True)):
            pointers = (parameter.data_ptr(), saved.exponents[i].data_ptr(), gradient.data_ptr())
            if i < 2:
                sums, operand = matrices[i]
                sizes = (parameter.shape[1], sums.shape[1])
                scale = 2.0 ** -plan.exponent(operand)
                packed += struct.pack("@4P2i3f4x", sums.data_ptr(), *pointers, *sizes, scale, *plan.range(name))
            else:
                packed += struct.pack("@3P2f", *pointers, *plan.range(name))
        packed += struct.pack("@P2i", self.d_bias.data_ptr(), shape.hidden, len(self.d_bias))
        kernel = self.layer.kernel("parameters", (("CODE_BYTES", 1), ("X_BYTES", 4)), 128)
        kernel(self.stream, (3 * shape.hidden + -(-4 * shape.hidden // 128), 1), packed)
        return gradients

    def _dequantized_W(self) -> Tensor:
        """Return the input weights in the order of the gates' gradients, (12 * pairs, input) bfloat16: exact."""
        layer, shape = self.layer, self.layer.shape
        start, rows, pairs = layer.offsets["W"], 3 * layer.layout.units, _pairs(shape.hidden)
        codes = self.saved.workspace[start : start + rows * layer.padded_input].view(torch.int8)
        codes = codes.view(3, layer.layout.units, layer.padded_input)[:, : 2 * pairs, : shape.input]
        steps = torch.exp2(-self.saved.exponents[0].float()).view(3, shape.hidden, 1)
        steps = torch.nn.functional.pad(steps, (0, 0, 0, 2 * pairs - shape.hidden))
        weights = (codes * steps).bfloat16().view(3, pairs, 1, 2, shape.input)
        rz = weights[:2].transpose(0, 1).expand(pairs, 2, 2, 2, shape.input).reshape(8 * pairs, shape.input)
        g = weights[2].expand(pairs, 2, 2, shape.input).reshape(4 * pairs, shape.input)
        return torch.cat((rz, g))


def _pairs(hidden: int) -> int:
    """Pairs of hidden units in the gates' gradients: even, for 16-byte stores."""
    return -(-hidden // 4) * 2
