"""What a backend is called with: one layer, in one or both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.plan import Plan, plan_of
from qgru.schema import WEIGHTS
from qgru.torch_private import is_dispatch_traced

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]
"""weight_ih, weight_hh, bias_ih, bias_hh of one layer and direction."""


class Gradient(IntEnum):
    """How exact a gradient is asked for: none, about 2**-15 of the largest (TF32 is allowed), or float32's."""

    NONE = 0
    TF32 = 1
    FLOAT32 = 2


class LayerCall(NamedTuple):
    """One layer's tensors and grids.

    Attributes:
        x: (time, batch, input), real; NaN makes a row NaN from there on.
        h0: (directions, batch, hidden), real; None for zeros.
        parameters: weight_ih, weight_hh, bias_ih, bias_hh of every direction.
        exponents: of every direction, (4, 3 * hidden) int32 on x's device, of the four weight operators.
        active: (time, batch) bool, False on padding, where the state stays as it is; None where all is valid.
        diverged: bool tensor, True where a parameter anywhere in the module is NaN; None to look at this layer's.
        plans: of every direction.
        gradient: what `backward` will be asked for.
        cells: of every direction, its grids; None in a traced graph, where plans and exponents say the same.
    """

    x: Tensor
    h0: Tensor | None
    parameters: Sequence[Tensor]
    exponents: Sequence[Tensor]
    active: Tensor | None
    diverged: Tensor | None
    plans: Sequence[Plan]
    gradient: int = Gradient.NONE
    cells: Sequence[CellGrids] | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Time, batch, input and hidden."""
        return (*self.x.shape, self.parameters[1].shape[1])

    @property
    def shape(self) -> LayerShape:
        """Everything but the values."""
        dtypes = tuple([parameter.dtype for parameter in self.parameters])
        return LayerShape(*self.sizes, self.x.dtype, dtypes, self.x.device, self.gradient != Gradient.NONE)

    def of_direction(self, index: int) -> Sequence[Tensor]:
        """Return one direction's four parameters."""
        return self.parameters[4 * index : 4 * index + 4]


class LayerShape(NamedTuple):
    """Everything about a call but the tensors' values and the grids.

    Attributes:
        time, batch, input, hidden: sizes.
        dtype: of the input.
        parameter_dtypes: of the parameters.
        device: of all tensors.
        is_differentiated: gradients are on.
    """

    time: int
    batch: int
    input: int
    hidden: int
    dtype: torch.dtype
    parameter_dtypes: tuple[torch.dtype, ...]
    device: torch.device
    is_differentiated: bool


class CellGrids:
    """One direction's grids, and what backends make of them once.

    Attributes:
        grids: canonical operator name to grid, ``op.Rh_add_br`` included; never changed.
        plan: the bounds that follow from them.
        kept: what a backend keeps of weights on these grids, by its name; a copy has none of it.
    """

    def __init__(self, grids: Mapping[str, Grid]) -> None:
        self.grids, self.plan = grids, plan_of(grids)
        self.kept: dict[str, Any] = {}
        self._exponents: dict[torch.device, Tensor] = {}

    def __reduce__(self) -> tuple:
        return CellGrids, (self.grids,)

    def exponents(self, like: Tensor) -> Tensor:
        """Return the weights' exponents, (4, 3 * hidden) int32 on the device of `like`.

        While somebody traces, a tensor made now belongs to him: none is kept then, and none of ours is handed out.
        """
        if is_dispatch_traced(like):
            return like.new_tensor(self._exponent_rows(), dtype=torch.int32)
        kept = self._exponents.get(like.device)
        if kept is None:
            with torch.inference_mode(False):
                kept = torch.tensor(self._exponent_rows(), dtype=torch.int32).to(like.device)
            self._exponents[like.device] = kept
        return kept

    def _exponent_rows(self) -> list[tuple[int, ...]]:
        return [self._of_every_channel(self.grids[name]) for name in WEIGHTS]

    def _of_every_channel(self, grid: Grid) -> tuple[int, ...]:
        channels = max(len(self.grids[name].exponents) for name in WEIGHTS)
        return grid.exponents if grid.is_per_channel else grid.exponents * channels
