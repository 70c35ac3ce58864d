"""The CPU kernels as a backend: which layers they take, memory, and the walk over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.ops.backends import Backend, Stepper
from qgru.ops.call import CellGrids, LayerCall, LayerShape, Parameters
from qgru.ops.cpu import kernels
from qgru.ops.cpu.backward import Backward
from qgru.ops.cpu.stepper import CpuStepper
from qgru.ops.cpu.weights import constants_of, prepared_once
from qgru.ops.domain import outside_domain
from qgru.ops.plan import FLOAT, FUNCTIONS, TABLE_BITS, Plan
from qgru.torch_private import any_nan

LIBRARY = Path(__file__).with_name("_kernels.so")
PATHS = ("plain", "avx2", "avx512")
FACTORS = 5
_FLOAT_BITS = 24


def _loaded() -> tuple[kernels.Kernels | None, str | None]:
    """Return the kernels, or None and what went wrong where they were built."""
    if not LIBRARY.exists():
        return None, None
    try:
        return kernels.Kernels(LIBRARY), None
    except (OSError, ImportError, AttributeError) as error:
        return None, str(error)


_kernels, _problem = _loaded()


@cache
def path() -> int:
    """Return the index in `PATHS` of the best one here, or of the one that ``QGRU_CPU_PATH`` names.

    Raises:
        ValueError: where this machine does not have the named path.
    """
    here = paths()
    name = os.environ.get("QGRU_CPU_PATH", here[-1])
    if name not in here:
        raise ValueError(f"QGRU_CPU_PATH is {name!r}; expected one of {', '.join(here)} on this machine")
    return here.index(name)


def paths() -> tuple[str, ...]:
    """Return the paths that this machine has; the kernels must have been built."""
    return PATHS[: _kernels.paths]


class Cpu(Backend):
    """The C++ kernels of this folder."""

    name = "cpu"

    def why_unavailable(self) -> str | None:
        """Say so where no compiler was there to build the kernels, or what they are can't be loaded."""
        if _kernels is not None:
            return None
        if _problem is not None:
            return f"they can't be loaded: {_problem}"
        return (
            "they were not built, for there was no C++20 compiler when qgru was installed; with one in place, "
            "pip install --force-reinstall --no-deps --no-cache-dir qgru"
        )

    def describe(self) -> str:
        """Name the path in use."""
        return self.why_unavailable() or f"{PATHS[path()]} in use, of {', '.join(paths())}"

    def serves(self, device: torch.device) -> bool:
        """Serve the CPU."""
        return device.type == "cpu"

    def why_not(self, shape: LayerShape, plans: Sequence[Plan]) -> str | None:
        """Refuse what lies outside the exactness domain, what has no table, and gradients in float64.

        Without a table C++ and torch may differ in the last bit of sigma or tanh.
        """
        if shape.is_differentiated and torch.float64 in (shape.dtype, *shape.parameter_dtypes):
            return "their gradients are float32, and float64 is asked for"
        for plan in plans:
            for gate in FUNCTIONS:
                bits = plan.bitwidth(f"{gate}_pre")
                if bits > TABLE_BITS:
                    return f"{gate}_pre has {bits} bits, and only up to {TABLE_BITS} there is a table"
            for problem in outside_domain(plan, shape.input, shape.hidden):
                return f"outside the exactness domain: {problem}"
        return None

    def state_dtype(self, plans: Sequence[Plan]) -> torch.dtype:
        """Return float32, or float64 where ``output.h`` needs it."""
        is_narrow = all(plan.size("output.h").bit_length() <= _FLOAT_BITS for plan in plans)
        return torch.float32 if is_narrow else torch.float64

    def workspace_bytes(self, shape: LayerShape, plans: Sequence[Plan], gradient: int) -> Any:
        """Return the bytes of factors and states, of what was not clamped, and of whether there was a NaN."""
        return len(plans) * shape.time * shape.batch * shape.hidden * (4 * (FACTORS + 1) + 1) + 1

    def forward(self, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer; see `Backend.forward`."""
        time, batch, _, hidden = call.sizes
        directions, is_fast = len(call.plans), _is_fast(call)
        dtype, out = torch.float32 if is_fast else torch.float64, self.state_dtype(call.plans)
        feed = call.x.to(dtype).contiguous()
        start = feed.new_zeros(directions, batch, hidden) if call.h0 is None else call.h0.to(dtype).contiguous()
        states, last = feed.new_empty(time, batch, directions * hidden), torch.empty_like(start)
        lost = torch.empty(time, batch, dtype=torch.uint8)
        workspace, kept, views = torch.empty(0, dtype=torch.uint8), None, None
        if call.gradient:
            length = self.workspace_bytes(call.shape, call.plans, call.gradient)
            workspace = torch.empty(length, dtype=torch.uint8)
            kept, views = _views(workspace, (time, batch, hidden), directions)
        feeds = _Feeds(feed, None if call.active is None else call.active.contiguous(), states, lost)
        for d, plan in enumerate(call.plans):
            own = [parameter.to(dtype).contiguous() for parameter in call.of_direction(d)]
            cell = None if call.cells is None or call.gradient else call.cells[d]
            of_direction = _Direction(
                d, own, call.exponents[d], start[d], last[d], None if views is None else views[d], cell
            )
            _run(plan, feeds, of_direction, not is_fast)
        states, last = states.to(out), last.to(out)
        diverged = any_nan(call.parameters) if call.diverged is None else call.diverged
        has_nan = _spread_nan(states, last, lost, start, diverged)
        if call.gradient:
            workspace[-1] = has_nan
            kept.copy_(states)  # the caller may change the output in place
        return states, last, workspace

    def stepper(
        self, parameters: Sequence[Parameters], cells: Sequence[CellGrids], state: Sequence[Tensor]
    ) -> Stepper | None:
        """Prepare weights for steps; not those that would have to be converted or are NaN: `forward` does it all."""
        tensors = [tensor for own in parameters for tensor in own]
        if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors):
            return None
        if self.state_dtype([cell.plan for cell in cells]) != torch.float32 or bool(any_nan(tensors)):
            return None
        calls = [
            LayerCall(own[0].new_empty(1, 1, own[0].shape[1]), None, own, (), None, None, [cell.plan])
            for own, cell in zip(parameters, cells, strict=True)
        ]
        exact = [not _is_fast(call) for call in calls]
        return CpuStepper(_kernels, path(), parameters, cells, state, exact)

    def backward(
        self, call: LayerCall, workspace: Tensor, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the gradients; see `Backend.backward`."""
        time, batch, _, hidden = call.sizes
        directions, x, h0 = len(call.plans), call.x, call.h0
        states, views = _views(workspace, (time, batch, hidden), directions)
        if bool(workspace[-1]):
            states, d_states, d_last = _without_lost(states, d_states, d_last, hidden)
        of_states = None if d_states is None else d_states.float().contiguous()
        dx, dh, d_parameters = None, [], []
        feed = x.float().contiguous()
        for d, plan in enumerate(call.plans):
            own = call.of_direction(d)
            of_direction = Backward(plan, own, call.exponents[d], d, _kernels, path())
            start = None if h0 is None else h0[d].float()
            of_last = None if d_last is None else d_last[d].float().contiguous()
            dx_d, dh_d, gradients = of_direction.run(of_states, of_last, feed, start, states, views[d], needs_x)
            dx = dx_d if dx is None else dx + dx_d
            dh.append(dh_d)
            d_parameters += [g.to(p.dtype) for g, p in zip(gradients, own, strict=True)]
        d_x = x.new_empty(0) if dx is None else dx.to(x.dtype)
        return d_x, x.new_empty(0) if h0 is None else torch.stack(dh).to(h0.dtype), d_parameters


class _Feeds(NamedTuple):
    """A call's tensors that all directions share."""

    x: Tensor
    active: Tensor | None
    states: Tensor
    lost: Tensor


class _Direction(NamedTuple):
    """A call's tensors of one direction, and what keeps its prepared weights; None where nothing is to."""

    index: int
    parameters: Sequence[Tensor]
    exponents: Tensor
    h0: Tensor
    last: Tensor
    factors: tuple[Tensor, Tensor] | None
    keeper: CellGrids | None


def _run(plan: Plan, feeds: _Feeds, own: _Direction, exact: bool) -> None:
    """Run one direction; `own.last`, `feeds.states` and what is kept are filled in."""
    constants = constants_of(plan)
    call = constants.with_weights(own.parameters, own.exponents)
    prepared = own.keeper and prepared_once(own.keeper, _kernels, call, own.parameters, path(), exact)
    call.prepared = prepared and prepared.address
    call.time, call.batch, _ = feeds.x.shape
    call.reverse, call.parts = own.index > 0, kernels.parts_of(call.batch)
    call.x, call.h0 = feeds.x.data_ptr(), own.h0.data_ptr()
    call.active = None if feeds.active is None else feeds.active.data_ptr()
    states = feeds.states
    call.states, call.row = states.data_ptr() + own.index * call.hidden * states.element_size(), states.shape[2]
    call.last, call.lost = own.last.data_ptr(), feeds.lost.data_ptr()
    if own.factors is not None:
        call.factors, call.passed = (kept.data_ptr() for kept in own.factors)
    _kernels.forward(call, path(), exact)


def _is_fast(call: LayerCall) -> bool:
    """Tell whether float32 carries every integer of the layer."""
    if any(tensor.dtype == torch.float64 for tensor in (call.x, *call.parameters)):
        return False
    _, _, size, hidden = call.sizes
    return all([_fits_float(plan, size, hidden) for plan in call.plans])


@lru_cache(maxsize=1024)
def _fits_float(plan: Plan, size: int, hidden: int) -> bool:
    return not plan.sum_wide(size) and plan.carrier(size, hidden) == FLOAT


def _views(
    workspace: Tensor, shape: tuple[int, int, int], directions: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Cut a workspace up.

    Returns:
        The states, (time, batch, directions * hidden) float32; and of every direction the factors, (time, batch,
        FACTORS, hidden) float32, and what was not clamped, (time, batch, hidden) uint8.
    """
    time, batch, hidden = shape
    size = directions * time * batch * hidden
    factors, states, passed, _ = workspace.split([4 * FACTORS * size, 4 * size, size, 1])
    by_direction = factors.view(torch.float32).view(directions, time, batch, FACTORS, hidden)
    views = zip(by_direction, passed.view(directions, *shape), strict=True)
    return states.view(torch.float32).view(time, batch, directions * hidden), list(views)


def _spread_nan(states: Tensor, last: Tensor, lost: Tensor, start: Tensor, diverged: Tensor) -> bool:
    """Put NaN into the rows that met one, along each direction's walk; return whether there was any."""
    if bool(diverged):
        states.fill_(torch.nan)
        last.fill_(torch.nan)
        return True
    lost_start = torch.isnan(start).any(-1)
    if not bool(lost.any()) and not bool(lost_start.any()):
        return False
    hidden = last.shape[2]
    for d in range(len(last)):
        walk = lost.flip(0) if d else lost
        spread = (walk.cumsum(0) > 0) | lost_start[d]
        last[d].masked_fill_(spread[-1].unsqueeze(-1), torch.nan)
        own = states[..., d * hidden : (d + 1) * hidden]
        own.masked_fill_((spread.flip(0) if d else spread).unsqueeze(-1), torch.nan)
    return True


def _without_lost(
    states: Tensor, d_states: Tensor | None, d_last: Tensor | None, hidden: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return states with 0 for NaN, and gradients that are 0 there."""
    lost = states.isnan()
    if d_states is not None:
        d_states = d_states.masked_fill(lost, 0.0)
    if d_last is not None:
        ends = [lost[-1 if d == 0 else 0, :, d * hidden : (d + 1) * hidden] for d in range(len(d_last))]
        d_last = d_last.masked_fill(torch.stack(ends), 0.0)
    return states.masked_fill(lost, 0.0), d_states, d_last
