"""One time step a call, on weights that were prepared before: as little as possible is done in Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qgru.ops.backends import Stepper
from qgru.ops.call import CellGrids, Parameters
from qgru.ops.cpu import kernels
from qgru.ops.cpu.weights import constants_of, prepared_once

_REGION = 1 << 16
_WINDOW = 16  # a call reads at most 1 MiB of weights to see whether they have changed


class CpuStepper(Stepper):
    """A stack of one-directional layers.

    Args:
        library: the kernels.
        path: which of them.
        parameters: of every layer, float32 and contiguous, without a NaN.
        cells: likewise, the grids.
        state: small tensors that the grids were read from: every call looks at them.
        exact: for every layer, that it needs int64.

    Raises:
        RuntimeError: where memory runs out.
    """

    def __init__(
        self,
        library: kernels.Kernels,
        path: int,
        parameters: Sequence[Parameters],
        cells: Sequence[CellGrids],
        state: Sequence[Tensor],
        exact: Sequence[bool],
    ) -> None:
        self._library, self._kept = library, [*parameters]  # zeros for missing biases are nobody else's
        self._input, self._hidden = parameters[0][0].shape[1], parameters[0][1].shape[1]
        layers = (kernels.Forward * len(cells))()
        for i, (own, cell, is_exact) in enumerate(zip(parameters, cells, exact, strict=True)):
            layers[i] = self._layer([p.detach().double() if is_exact else p for p in own], cell, path, is_exact)
        small = [self._region(tensor, 0, tensor.nbytes, path) for tensor in state]
        weights = [
            self._region(tensor, start, min(_REGION, tensor.nbytes - start), path)
            for own in parameters
            for tensor in own
            for start in range(0, tensor.nbytes, _REGION)
        ]
        regions = (kernels.Region * (len(small) + len(weights)))(*small, *weights)
        self.sees_all = len(weights) <= _WINDOW
        window = min(_WINDOW, len(weights))
        flags = (kernels.c_bool * len(exact))(*exact)
        self._steps = kernels.Steps(len(cells), path, layers, flags, len(small), len(weights), window, 0, regions)
        library.adopt(self._steps)

    def _layer(self, parameters: Sequence[Tensor], cell: CellGrids, path: int, exact: bool) -> kernels.Forward:
        constants, exponents = constants_of(cell.plan), cell.exponents(parameters[0])
        call = constants.with_weights(parameters, exponents)
        prepared = prepared_once(cell, self._library, call, parameters, path, exact)
        call.time, call.row, call.prepared = 1, call.hidden, prepared.address
        self._kept += [constants, exponents, prepared]
        return call

    def _region(self, tensor: Tensor, start: int, size: int, path: int) -> kernels.Region:
        at = tensor.data_ptr() + start
        return kernels.Region(at, size, self._library.digest(at, size, path))

    def __call__(self, x: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run one time step; see `Stepper`."""
        y = x.new_empty(x.shape[0], self._hidden)
        last = torch.empty_like(h0) if h0 is not None else x.new_empty(self._steps.layers, *y.shape)
        start = None if h0 is None else h0.data_ptr()
        is_run = self._library.step(self._steps, x.shape[0], x.data_ptr(), start, y.data_ptr(), last.data_ptr())
        return (y, last) if is_run else None
