"""The reference as a backend: it serves every device, every grid and every type, slowly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.backends import Backend
from qgru.ops.call import LayerCall, LayerShape
from qgru.ops.exact import quantize_real
from qgru.ops.plan import Plan
from qgru.ops.reference import Cell, gru_layer
from qgru.schema import WEIGHTS
from qgru.torch_private import any_nan


class Reference(Backend):
    """Plain PyTorch, made to define; see `qgru.ops.reference`."""

    name = "reference"
    is_differentiable = True

    def serves(self, device: torch.device) -> bool:
        """Serve any device."""
        return True

    def why_not(self, shape: LayerShape, plans: Sequence[Plan]) -> str | None:
        """Run everything."""
        return None

    def state_dtype(self, plans: Sequence[Plan]) -> torch.dtype:
        """Return float64, which holds every grid."""
        return torch.float64

    def workspace_bytes(self, shape: LayerShape, plans: Sequence[Plan], gradient: int) -> int:
        """Keep nothing: backward runs forward again."""
        return 0

    def forward(self, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer, differentiably."""
        time, batch, _, hidden = call.sizes
        cells = list(_cells(call))
        h0 = call.x.new_zeros(len(cells), batch, hidden) if call.h0 is None else call.h0
        is_nan = torch.isnan(call.x).any(-1)
        inputs = quantize_real(_without_nan(call.x), cells[0].grids["input.x"])
        states, finals = [], []
        for d, cell in enumerate(cells):
            start = quantize_real(_without_nan(h0[d]), cell.grids["output.h"])
            walk = gru_layer(inputs, start, cell, call.active, reverse=bool(d)).value
            states.append(_with_nan(walk, _from_there_on(is_nan, torch.isnan(h0[d]).any(-1), bool(d))))
            finals.append(states[-1][0 if d else -1])
        diverged = any_nan(call.parameters) if call.diverged is None else call.diverged
        output = torch.cat(states, -1).masked_fill(diverged, torch.nan)
        last = torch.stack(finals).masked_fill(diverged, torch.nan)
        return output, last, call.x.new_empty(0, dtype=torch.uint8)

    def backward(
        self, call: LayerCall, workspace: Tensor, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run forward again, and autograd through it."""
        with torch.enable_grad():
            x, h0, *parameters = (
                None if t is None else t.detach().requires_grad_() for t in (call.x, call.h0, *call.parameters)
            )
            results = self.forward(call._replace(x=x, h0=h0, parameters=parameters))
            given = [(result, d) for result, d in zip(results, (d_states, d_last), strict=False) if d is not None]
            wanted = [tensor for tensor in (x, h0, *parameters) if tensor is not None]
            outputs, d_outputs = zip(*given, strict=True)
            d_x, *rest = torch.autograd.grad(outputs, wanted, d_outputs, materialize_grads=True)
        d_h = call.x.new_empty(0) if h0 is None else rest.pop(0)
        return d_x if needs_x else call.x.new_empty(0), d_h, rest


def _cells(call: LayerCall) -> Iterator[Cell]:
    known = call.cells and [cell.grids for cell in call.cells]
    of_directions = known or list(map(_grids, call.plans, call.exponents))
    for d, grids in enumerate(of_directions):
        yield Cell.from_parameters(tuple(map(_without_nan, call.of_direction(d))), grids)


def _grids(plan: Plan, exponents: Tensor) -> Mapping[str, Grid]:
    weights = {}
    for name, row in zip(WEIGHTS, exponents.tolist(), strict=True):
        of = plan.weights[name]
        weights[name] = Grid(of.bitwidth, True, of.is_unsigned, tuple(row))
    return {**plan.grids, **weights}


def _without_nan(tensor: Tensor) -> Tensor:
    """Return float64 with 0 for NaN: integers have none, so a mask stands for it until the end."""
    return torch.where(torch.isnan(tensor), 0.0, tensor).double()


def _with_nan(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.masked_fill(rows.unsqueeze(-1), torch.nan)


def _from_there_on(is_nan: Tensor, starts_as_nan: Tensor, reverse: bool) -> Tensor:
    """Spread (time, batch) flags along the walk; `starts_as_nan` (batch,) holds for every step."""
    walk = is_nan.flip(0) if reverse else is_nan
    spread = (walk.cumsum(0) > 0) | starts_as_nan
    return spread.flip(0) if reverse else spread
