"""What the kernels make of a direction's grids and weights once: constants, tables, and weights as they read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.ops.call import CellGrids
from qgru.ops.cpu import kernels
from qgru.ops.plan import FUNCTIONS, Plan
from qgru.ops.reference import activation_table, tables
from qgru.schema import ACTIVATIONS, WEIGHTS


class Constants(NamedTuple):
    """What a plan fixes of every call, and the tables that it points to: mantissas, numbers, derivatives."""

    call: kernels.Forward
    tables: tuple[Tensor, ...]

    def with_weights(self, parameters: Sequence[Tensor], exponents: Tensor) -> kernels.Forward:
        """Return a call that points to a direction's weights, all of which the caller keeps.

        Args:
            parameters: contiguous, float32, or float64 for exact arithmetic.
            exponents: (4, 3 * hidden) int32.
        """
        call = kernels.Forward.from_buffer_copy(self.call)
        call.input, call.hidden = parameters[0].shape[1], parameters[1].shape[1]
        call.exponents = exponents.data_ptr()
        call.parameters[:] = [parameter.data_ptr() for parameter in parameters]
        return call


@lru_cache(maxsize=256)
def constants_of(plan: Plan) -> Constants:
    """Return what calls with a plan have in common."""
    call = kernels.Forward()
    for grid, name in zip(call.on, ACTIVATIONS, strict=True):
        (grid.lo, grid.hi), grid.exponent = plan.range(name), plan.exponent(name)
    for grid, name in zip(call.weights, WEIGHTS, strict=True):
        grid.lo, grid.hi = plan.range(name)
    kept: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad():
        for i, (gate, function) in enumerate(FUNCTIONS.items()):
            pre, out = plan.grids[f"{gate}_pre"], plan.grids[f"{gate}_out"]
            integers = activation_table(function, pre, out) - out.zero_point
            value, slope = tables(function, pre, out, torch.device("cpu"))
            of_gate = [integers.contiguous(), value.float().contiguous(), slope.float().contiguous()]
            call.integers[i], call.values[i], call.slopes[i] = (table.data_ptr() for table in of_gate)
            kept += of_gate
    return Constants(call, tuple(kept))


class Prepared:
    """A direction's weights in the order in which a path's walk reads them; their memory goes with the object.

    Args:
        library: the kernels.
        call: as `Constants.with_weights` returns it; nothing of it is needed afterwards.
        path: which kernels are to read them.
        exact: in int64.

    Raises:
        RuntimeError: where memory runs out.
    """

    def __init__(self, library: kernels.Kernels, call: kernels.Forward, path: int, exact: bool) -> None:
        self.address = 0
        self._library = library
        self.address = library.prepare(call, path, exact)

    def __del__(self) -> None:
        self._library.release(self.address)


def prepared_once(
    cell: CellGrids,
    library: kernels.Kernels,
    call: kernels.Forward,
    parameters: Sequence[Tensor],
    path: int,
    exact: bool,
) -> Prepared:
    """Return what was prepared for a cell before, where the weights still hold the same numbers, or prepare it.

    Args:
        cell: keeps it; a cell with other grids is another one.
        library: as `Prepared` takes it.
        call: likewise.
        parameters: what `call` points to.
        path: as `Prepared` takes it.
        exact: likewise.
    """
    made_of = (path, exact, *[library.digest(p.data_ptr(), p.nbytes, path) for p in parameters])
    known = cell.kept.get("cpu")
    if known is None or known[0] != made_of:
        known = cell.kept["cpu"] = made_of, Prepared(library, call, path, exact)
    return known[1]
