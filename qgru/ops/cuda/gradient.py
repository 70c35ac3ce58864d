"""Backward of one layer and direction: in chunks of time steps, last first, what can be parallel around the walk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.ops.cuda.compile import Kernel
from qgru.ops.cuda.layer import Layer
from qgru.schema import OPTIONAL, WEIGHTS

_BYTES = 8  # of a chunk's buffers, for every element of the whole sequence
_ONE_CHUNK_BYTES = 52 << 20  # below it a second chunk saves less memory than it costs time
_BLOCKS = 1 << 13  # of 256 threads that go over a chunk's elements
_PARTIALS = 528  # of a bias's sum, for all tiles together
CHUNK = struct.Struct("@13P4q4i")
"""A chunk's tensors and place, as the kernels' `Chunk`."""

_PARAMETERS = struct.Struct("@12P")
_FINISH = ("parameters", (), 128)


class Saved(NamedTuple):
    """What the forward read and left.

    Attributes:
        x: (time, batch, input), the real input.
        h0: (batch, hidden), the real initial state, or None for zeros.
        parameters: W, R, bw, br, real.
        exponents: (4, 3 * hidden) int32.
        states: (time, batch, hidden), the output.
        workspace: address of the forward's.
    """

    x: Tensor
    h0: Tensor | None
    parameters: Sequence[Tensor]
    exponents: Tensor
    states: Tensor
    workspace: int


class Gradient:
    """The backward of a layer: everything that no tensor's values decide.

    Args:
        layer: that ran the forward.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer, plan, shape = layer, layer.plan, layer.shape
        self.pairs = -(-shape.hidden // 4) * 2  # of hidden units, even: 16-byte stores
        self.x_width = -(-shape.input // 8) * 8  # for the products' alignment
        self.x_terms, self.h_terms, self.W_terms = map(plan.limbs, ("input.x", "output.h", "weight.W"))
        row_bytes = (
            2 * (24 * self.pairs + self.x_terms * self.x_width + 2 * self.h_terms * self.pairs) + 4 * shape.hidden
        )
        rows = shape.time * shape.batch
        size = _BYTES * rows * shape.hidden if rows * row_bytes > _ONE_CHUNK_BYTES else _ONE_CHUNK_BYTES
        self.steps = min(shape.time, max(1, size // (shape.batch * row_bytes)))
        across = -(-layer.layout.tiles // 8) + 1
        self.pieces_grid = (min(self.steps * layer.layout.groups, max(16, _PARTIALS // across)), across)
        slots = self.steps * layer.layout.groups * layer.layout.tiles
        self.factors_grid = (min(-(-slots // 8), _BLOCKS), 1)

    def run(
        self, stream: int, saved: Saved, reverse: bool, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """Return the gradients of x (float32; None unless needed), of the initial state, and of W, R, bw and br.

        Args:
            stream: the current stream.
            saved: the forward's tensors.
            reverse: the forward's direction.
            d_states: gradient of the states, or None for zeros; neighbours in the last dimension are in memory, too.
            d_last: gradient of the last state, contiguous, or None for zeros.
            needs_x: the input's is wanted.
        """
        shape, like = self.layer.shape, saved.states
        time, batch, hidden, device = shape.time, shape.batch, shape.hidden, like.device
        rows, width = self.steps * batch, 12 * self.pairs
        dh, floats = batch * hidden, self.pieces_grid[0] * 4 * hidden
        buffer = torch.empty(dh + floats + rows * hidden, dtype=torch.float32, device=device)
        d_start = buffer.data_ptr()
        d_bias, d = d_start + 4 * dh, d_start + 4 * (dh + floats)
        dWx, dRh = torch.empty((2, rows, width), dtype=torch.bfloat16, device=device).unbind()
        x = torch.empty((rows, self.x_terms * self.x_width), dtype=torch.bfloat16, device=device)
        h = torch.empty((rows, self.h_terms * 2 * self.pairs), dtype=torch.bfloat16, device=device)
        dx = torch.empty((time, batch, shape.input), dtype=torch.float32, device=device) if needs_x else None
        weights = self._input_weights(stream, saved) if needs_x else None
        d_strides = (0, 0) if d_states is None else d_states.stride()[:2]
        fixed = (saved.workspace, _address(saved.h0), like.data_ptr(), _address(d_states))
        gates = dWx.data_ptr()  # before they are there, the walk's factors
        outputs = (gates, d, gates, dRh.data_ptr(), h.data_ptr(), x.data_ptr(), d_bias)
        sums: list[Tensor] = []
        for end in range(time, 0, -self.steps):
            start = max(0, end - self.steps)
            first, used = time - end if reverse else start, (end - start) * batch
            dh_in = _address(d_last) if end == time else d_start
            places = (*like.stride()[:2], *d_strides, start, end, reverse, first)
            chunk = CHUNK.pack(*fixed, dh_in, d_start, *outputs, *places)
            for kernel, grid, constants in self._launches:
                kernel(stream, grid, chunk + constants)
            if used < rows:
                dWx, dRh, x, h = dWx[:used], dRh[:used], x[:used], h[:used]
            if not sums:
                sums = [torch.mm(a.t(), b, out_dtype=torch.float32) for a, b in ((dWx, x), (dRh, h))]
            else:
                for total, a, b in zip(sums, (dWx, dRh), (x, h), strict=True):
                    torch.addmm(total, a.t(), b, out_dtype=torch.float32, out=total)
            if dx is not None and weights is not None:
                products = torch.mm(dWx, weights, out_dtype=torch.float32)
                self._input_gradient(stream, saved, products, dx[first : first + end - start], first)
        return dx, buffer[:dh].view(batch, hidden), self._parameters(stream, saved, sums, d_bias)

    @cached_property
    def _launches(self) -> tuple[tuple[Kernel, tuple[int, int], bytes], ...]:
        layer, walk = self.layer, self.layer.walk
        assert walk is not None
        element = (*layer.numeric, ("ROWS", layer.layout.rows))
        terms = (("X_LIMBS", self.x_terms), ("H_LIMBS", self.h_terms))
        shape = (("HIDDEN", layer.shape.hidden), ("R_LIMBS", layer.plan.limbs("weight.R")), ("LIMBS", layer.limbs))
        macros = (*walk.macros, *shape)
        kernels = layer.kernels(
            ("factors", element, 256),
            ("walk", macros, walk.threads, walk.shared_bytes(layer.widths), walk.cluster),
            ("pieces", (*element, *terms), 256),
            _FINISH,
        )
        grids = (self.factors_grid, (walk.groups * walk.cluster, 1), self.pieces_grid)
        elements = self._element_constants()
        return tuple(zip(kernels[:3], grids, (elements, self._walk_constants(), elements), strict=True))

    def _element_constants(self) -> bytes:
        layer, plan, shape, layout = self.layer, self.layer.plan, self.layer.shape, self.layer.layout
        sections = (layer.offsets[name] for name in ("codes", "flags", "bits", "constants", "x"))
        sizes = (shape.time, shape.batch, shape.hidden, layout.units, layout.tiles, layout.groups)
        inputs = (shape.input, layer.projection.padded, self.x_width, -plan.offset("input.x"))
        tables = (*plan.table_starts[1:], plan.table_entries)
        packed = struct.pack("@5qP14i", *sections, layer.tables.data_ptr(), *sizes, *tables, *inputs, 0)
        c, m = plan.exponent(OPTIONAL), plan.exponent("op.rRh")
        h, old = plan.exponent("output.h"), plan.exponent("op.old_contrib")
        exponents = (c - m, h - old, -c, -plan.exponent("op.new_contrib"))
        return packed + layer.numbers + struct.pack("@4f", *(2.0**e for e in exponents))

    def _walk_constants(self) -> bytes:
        plan, shape = self.layer.plan, self.layer.shape
        h = plan.exponent("output.h")
        reals = (2.0 ** (h - plan.exponent("matmul.Rh")), 2.0**h, *plan.range("output.h"))
        return struct.pack("@qi4fi", self.layer.offsets["Rt"], shape.batch, *reals, 0)

    def _parameters(self, stream: int, saved: Saved, sums: Sequence[Tensor], d_bias: int) -> list[Tensor]:
        """Return the gradients of W, R, bw and br: zero where a parameter is clamped."""
        gradients = [torch.empty_like(parameter) for parameter in saved.parameters]
        tensors = (*sums, *saved.parameters, saved.exponents, *gradients)
        kernel, grid, constants = self._finish
        kernel(stream, grid, _PARAMETERS.pack(*[tensor.data_ptr() for tensor in tensors], d_bias) + constants)
        return gradients

    @cached_property
    def _finish(self) -> tuple[Kernel, tuple[int, int], bytes]:
        plan, shape = self.layer.plan, self.layer.shape
        sizes = (shape.hidden, self.pieces_grid[0], shape.input, self.x_terms, self.x_width)
        steps = (2.0 ** -plan.exponent("input.x"), 2.0 ** -plan.exponent("output.h"))
        ranges = [plan.range(name) for name in WEIGHTS]
        bounds = (*[lo for lo, _ in ranges], *[hi for _, hi in ranges])
        constants = struct.pack("@7i10fi", *sizes, self.h_terms, 2 * self.pairs, *steps, *bounds, 0)
        return self.layer.kernel(*_FINISH), (4 * shape.hidden, 1), constants

    def _input_weights(self, stream: int, saved: Saved) -> Tensor:
        """Return W's integers as real numbers in the order of the gates' gradients, (12 * pairs, terms * width)."""
        size = (12 * self.pairs, self.W_terms * self.x_width)
        weights = torch.empty(size, dtype=torch.bfloat16, device=saved.states.device)
        self._launch_input("input_weights", stream, saved, (12 * self.pairs, 1), weights=weights.data_ptr())
        return weights

    def _input_gradient(self, stream: int, saved: Saved, products: Tensor, dx: Tensor, first: int) -> None:
        x, rows = saved.x, len(products)
        address = x.data_ptr() + first * x.stride(0) * x.element_size()
        grid = (min(-(-rows // 8), 1 << 12), 1)
        tensors = {"x": address, "products": products.data_ptr(), "dx": dx.data_ptr(), "rows": rows}
        self._launch_input("input_gradient", stream, saved, grid, **tensors)

    def _launch_input(
        self, name: str, stream: int, saved: Saved, grid: tuple[int, int], weights: int = 0, x: int = 0,
        products: int = 0, dx: int = 0, rows: int = 0,
    ) -> None:  # fmt: skip
        layer, shape, plan = self.layer, self.layer.shape, self.layer.plan
        addresses = (saved.workspace, saved.exponents.data_ptr(), weights, x, products, dx)
        sizes = (shape.batch, shape.input, self.x_width, shape.hidden, layer.layout.units, layer.projection.padded)
        grids = (2.0 ** plan.exponent("input.x"), *plan.range("input.x"), 0)
        strides = saved.x.stride()[:2]
        arguments = struct.pack("@6P2q2iq6i3fi", *addresses, *strides, rows, 0, layer.offsets["W"], *sizes, *grids)
        macros = (*layer.input_macros, ("W_LIMBS", self.W_terms))
        layer.kernel(name, macros, 128 if name == "input_weights" else 256)(stream, grid, arguments)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
