"""Which backend serves a layer, and a layer as the ops take it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qgru import QuantGRU
from qgru.ops import backends
from qgru.ops.call import CellGrids
from qgru.ops.library import Gradient
from qgru.ops.stack import _shape


def cells_of(gru: QuantGRU) -> list[CellGrids]:
    return gru.ensure_calibrated().prepared


def serving(gru: QuantGRU, x: Tensor) -> str:
    """Return the name of the backend that runs `gru` on x, (time, batch, input)."""
    plans = [cell.plan for cell in cells_of(gru)]
    return backends.serving(_shape(x, [p for cell in gru._cells() for p in cell]), plans, 1 + gru.bidirectional).name


def op_arguments(gru: QuantGRU, x: Tensor, h0: Tensor | None, backend: str) -> tuple[Any, ...]:
    """Return the arguments of ``qgru::gru_layer`` for the first layer of `gru`, in training."""
    cells = cells_of(gru)[: 1 + gru.bidirectional]
    parameters = [p.detach().clone().requires_grad_() for cell in gru._cells()[: len(cells)] for p in cell]
    exponents, texts = [cell.exponents(x) for cell in cells], [cell.plan.text for cell in cells]
    return (x, h0, parameters, exponents, None, None, texts, int(Gradient.FLOAT32), backend)
