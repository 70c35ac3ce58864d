"""Backward of one layer and direction: in chunks of time steps, last first, what can be parallel around the walk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.ops.cuda import constants
from qgru.ops.cuda.compile import Kernel
from qgru.ops.cuda.layer import Layer
from qgru.ops.cuda.macros import Macros
from qgru.ops.cuda.structs import CHUNK, INPUT_TENSORS, PARAMETER_TENSORS

_BYTES = 8  # of the states' codes and a chunk's buffers, for every element of the whole sequence
_ONE_CHUNK_BYTES = 52 << 20  # below it a second chunk saves less memory than it costs time
_BLOCKS = 1 << 13  # CTAs that go over a chunk's elements
_PARTIALS = 528  # of a bias's sum, for all tiles together
_ELEMENT_WARPS = 8  # of a CTA of the elementwise kernels
_ROW_WARPS = 4  # of a CTA that has a row of a matrix


class Saved(NamedTuple):
    """What the forward read and left.

    Attributes:
        x: (time, batch, input), the real input.
        h0: (batch, hidden), the real initial state, or None for zeros.
        parameters: W, R, bw, br, real.
        exponents: (4, 3 * hidden) int32.
        workspace: address of the forward's.
    """

    x: Tensor
    h0: Tensor | None
    parameters: Sequence[Tensor]
    exponents: Tensor
    workspace: int


class Backward:
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
        left = _BYTES - plan.limbs("output.h")
        size = left * rows * shape.hidden if rows * row_bytes > _ONE_CHUNK_BYTES else _ONE_CHUNK_BYTES
        self.steps = min(shape.time, max(1, size // (shape.batch * row_bytes)))
        across = -(-layer.layout.tiles // _ELEMENT_WARPS) + 1
        self.operands_grid = (min(self.steps * layer.layout.groups, max(16, _PARTIALS // across)), across)
        slots = self.steps * layer.layout.groups * layer.layout.tiles
        self.factors_grid = (min(-(-slots // _ELEMENT_WARPS), _BLOCKS), 1)

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
        shape, device = self.layer.shape, saved.x.device
        time, batch, hidden = shape.time, shape.batch, shape.hidden
        rows, width = self.steps * batch, 12 * self.pairs
        dh, floats = batch * hidden, self.operands_grid[0] * 4 * hidden
        buffer = torch.empty(dh + floats + rows * hidden, dtype=torch.float32, device=device)
        d_start = buffer.data_ptr()
        d_bias, d = d_start + 4 * dh, d_start + 4 * (dh + floats)
        dWx, dRh = torch.empty((2, rows, width), dtype=torch.bfloat16, device=device).unbind()
        x = torch.empty((rows, self.x_terms * self.x_width), dtype=torch.bfloat16, device=device)
        h = torch.empty((rows, self.h_terms * 2 * self.pairs), dtype=torch.bfloat16, device=device)
        dx = torch.empty((time, batch, shape.input), dtype=torch.float32, device=device) if needs_x else None
        weights = self._input_weights(stream, saved) if needs_x else None
        d_strides = (0, 0) if d_states is None else d_states.stride()[:2]
        fixed = (saved.workspace, _address(saved.h0), _address(d_states))
        gates = dWx.data_ptr()  # before they are there, the walk's factors
        outputs = (gates, d, gates, dRh.data_ptr(), h.data_ptr(), x.data_ptr(), d_bias)
        sums: list[Tensor] = []
        for end in range(time, 0, -self.steps):
            start = max(0, end - self.steps)
            first, used = time - end if reverse else start, (end - start) * batch
            dh_in = _address(d_last) if end == time else d_start
            places = (*d_strides, start, end, reverse, first)
            chunk = CHUNK.pack(*fixed, dh_in, d_start, *outputs, *places)
            for kernel, grid, known in self._launches:
                kernel(stream, grid, chunk + known)
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
    def macros(self) -> dict[str, Macros]:
        """What each of backward's kernels is compiled with."""
        layer, walk = self.layer, self.layer.walk
        assert walk is not None
        warps = {"factors": _ELEMENT_WARPS, "operands": _ELEMENT_WARPS, "parameters": _ROW_WARPS}
        warps |= {"input_weights": _ROW_WARPS, "input_gradient": _ELEMENT_WARPS}
        chosen = {name: layer.choose(name, WARPS=count) for name, count in warps.items()}
        return {**chosen, "walk": layer.choose("walk", **walk.macros(layer.widths), LIMBS=layer.limbs)}

    def _kernels(self, *names: str) -> list[Kernel]:
        return self.layer.kernels({name: self.macros[name] for name in names})

    @cached_property
    def _launches(self) -> tuple[tuple[Kernel, tuple[int, int], bytes], ...]:
        walk, elements = self.layer.walk, constants.elements(self)
        assert walk is not None
        kernels = self._kernels("factors", "walk", "operands")
        grids = (self.factors_grid, (walk.groups * walk.cluster, 1), self.operands_grid)
        return tuple(zip(kernels, grids, (elements, constants.walk(self.layer), elements), strict=True))

    def _parameters(self, stream: int, saved: Saved, sums: Sequence[Tensor], d_bias: int) -> list[Tensor]:
        """Return the gradients of W, R, bw and br: zero where a parameter is clamped."""
        gradients = [torch.empty_like(parameter) for parameter in saved.parameters]
        tensors = (*sums, *saved.parameters, saved.exponents, *gradients)
        kernel, grid, known = self._finish
        kernel(stream, grid, PARAMETER_TENSORS.pack(*[tensor.data_ptr() for tensor in tensors], d_bias) + known)
        return gradients

    @cached_property
    def _finish(self) -> tuple[Kernel, tuple[int, int], bytes]:
        return self._kernels("parameters")[0], (4 * self.layer.shape.hidden, 1), constants.parameters(self)

    def _input_weights(self, stream: int, saved: Saved) -> Tensor:
        """Return W's integers as real numbers in the order of the gates' gradients, (12 * pairs, terms * width)."""
        size = (12 * self.pairs, self.W_terms * self.x_width)
        weights = torch.empty(size, dtype=torch.bfloat16, device=saved.x.device)
        tensors = (weights.data_ptr(), 0, 0, 0, 0, 0, 0)
        self._launch_input(0, stream, saved, (12 * self.pairs, 1), tensors)
        return weights

    def _input_gradient(self, stream: int, saved: Saved, products: Tensor, dx: Tensor, first: int) -> None:
        x, rows = saved.x, len(products)
        address = x.data_ptr() + first * x.stride(0) * x.element_size()
        grid = (min(-(-rows // _ELEMENT_WARPS), 1 << 12), 1)
        tensors = (0, address, products.data_ptr(), dx.data_ptr(), *x.stride()[:2], rows)
        self._launch_input(1, stream, saved, grid, tensors)

    def _launch_input(
        self, which: int, stream: int, saved: Saved, grid: tuple[int, int], tensors: Sequence[int]
    ) -> None:
        head = INPUT_TENSORS.pack(saved.workspace, saved.exponents.data_ptr(), *tensors)
        kernels, known = self._inputs
        kernels[which](stream, grid, head + known)

    @cached_property
    def _inputs(self) -> tuple[list[Kernel], bytes]:
        return self._kernels("input_weights", "input_gradient"), constants.inputs(self)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
