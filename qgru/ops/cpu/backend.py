"""One layer on the CPU kernels: which layers they take, memory, the walk over time, and the products around it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from qgru.domain import outside_domain
from qgru.grid import Grid
from qgru.ops.cpu.gradient import Gradient
from qgru.ops.cuda.plan import _FUNCTIONS, ACTIVATIONS, FLOAT, WEIGHTS, Plan, plan_of
from qgru.ops.reference import TABLE_BITS, _tables, activation_table

try:
    from qgru.ops.cpu import _kernels  # noqa: F401  (registers the ops)
except ImportError:
    _kernels = None

PATHS = ("plain", "avx2", "avx512")
FACTORS = 5
_FLOAT_BITS = 24


def is_available() -> bool:
    """Return True where the extension was built."""
    return _kernels is not None


@cache
def path() -> int:
    """Return the index in `PATHS` of the best one here, or of the one that ``QGRU_CPU_PATH`` names.

    Raises:
        ValueError: where this machine does not have the named path.
    """
    here = PATHS[: torch.ops.qgru_cpu.paths()]
    name = os.environ.get("QGRU_CPU_PATH", here[-1])
    if name not in here:
        raise ValueError(f"QGRU_CPU_PATH is {name!r}; expected one of {', '.join(here)} on this machine")
    return here.index(name)


def takes(grids: Mapping[str, Grid], input_size: int, hidden_size: int, is_double: bool) -> bool:
    """Return True where the kernels give the reference's integers and gradients.

    Not outside the exactness domain, nor where sigma or tanh have no table (C++ and torch may differ in the last bit
    of a float64), nor where a gradient is asked for in float64.

    Args:
        grids: of one layer and direction.
        input_size: length of the input's inner products.
        hidden_size: length of the state's inner products.
        is_double: a gradient in float64 is asked for.
    """
    tabled = all(grids[f"{gate}_pre"].bitwidth <= TABLE_BITS for gate in _FUNCTIONS)
    return tabled and not is_double and not any(outside_domain(grids, input_size, hidden_size))


@lru_cache(maxsize=256)
def _plan(text: str) -> list[Tensor]:
    """Return the ranges and exponents of the grids, and the tables of r, z, g: mantissas, numbers, derivatives."""
    plan = plan_of(text)
    numbers: list[int] = []
    for name in ACTIVATIONS:
        numbers += (*plan.range(name), plan.exponent(name))
    for name in WEIGHTS:
        numbers += plan.range(name)
    integers, values, slopes = [], [], []
    with torch.inference_mode(False), torch.no_grad():
        for gate, function in _FUNCTIONS.items():
            pre, out = plan.grids[f"{gate}_pre"], plan.grids[f"{gate}_out"]
            integers.append(activation_table(function, pre, out) - out.zero_point)
            value, slope = _tables(function, pre, out, torch.device("cpu"))
            values.append(value.float())
            slopes.append(slope.float())
        return [torch.tensor(numbers), torch.cat(integers), torch.cat(values), torch.cat(slopes)]


def _is_fast(plans: Sequence[Plan], x: Tensor, parameters: Sequence[Tensor]) -> bool:
    if any(tensor.dtype == torch.float64 for tensor in (x, *parameters)):
        return False
    sizes = x.shape[2], parameters[1].shape[1]
    return all(not plan.sum_wide(sizes[0]) and plan.arithmetic(*sizes) == FLOAT for plan in plans)


def state_dtype(grids: Sequence[str]) -> torch.dtype:
    """Return the type that holds the states exactly."""
    return torch.float32 if all(_state_bits(text) <= _FLOAT_BITS for text in grids) else torch.float64


def _state_bits(text: str) -> int:
    return plan_of(text).size("output.h").bit_length()


def workspace_bytes(time: Any, batch: Any, hidden: Any, directions: int) -> Any:
    """Return the bytes that a forward pass keeps: factors, what was not clamped, and whether there was a NaN."""
    return directions * time * batch * hidden * (4 * FACTORS + 1) + 1


def _views(workspace: Tensor, shape: tuple[int, int, int], directions: int) -> list[tuple[Tensor, Tensor]]:
    """Return (time, batch, FACTORS, hidden) float32 and (time, batch, hidden) uint8 of every direction."""
    time, batch, hidden = shape
    size = time * batch * hidden
    factors, passed, _ = workspace.split([4 * FACTORS * directions * size, directions * size, 1])
    by_direction = factors.view(torch.float32).view(directions, time, batch, FACTORS, hidden)
    return list(zip(by_direction, passed.view(directions, *shape), strict=True))


def forward(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Tensor],
    exponents: Sequence[Tensor],
    active: Tensor | None,
    diverged: Tensor | None,
    grids: Sequence[str],
    limbs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a layer.

    Args:
        x: (time, batch, input), real; NaN makes a row NaN from there on.
        h0: (directions, batch, hidden), real; None for zeros.
        parameters: weight_ih, weight_hh, bias_ih, bias_hh of every direction.
        exponents: of every direction, (4, 3 * hidden) int32, of the four weight operators.
        active: (time, batch) bool, False on padding.
        diverged: bool, True where a parameter anywhere in the module is NaN; None to look at this layer's.
        grids: of every direction, as text.
        limbs: 0 for inference.

    Returns:
        states (time, batch, directions * hidden), the last states (directions, batch, hidden), exact, and what
        `backward` needs.
    """
    (time, batch, _), hidden, directions = x.shape, parameters[1].shape[1], len(grids)
    is_fast = _is_fast([plan_of(text) for text in grids], x, parameters)
    dtype, out = torch.float32 if is_fast else torch.float64, state_dtype(grids)
    feed = x.to(dtype).contiguous()
    start = feed.new_zeros(directions, batch, hidden) if h0 is None else h0.to(dtype).contiguous()
    states, last = feed.new_empty(time, batch, directions * hidden), torch.empty_like(start)
    lost = torch.empty(time, batch, dtype=torch.uint8)
    none = torch.empty(0, dtype=torch.uint8)
    workspace = none
    views = [(none, none)] * directions
    if limbs:
        workspace = torch.empty(workspace_bytes(time, batch, hidden, directions), dtype=torch.uint8)
        views = _views(workspace, (time, batch, hidden), directions)
    valid = none if active is None else active.contiguous().view(torch.uint8)
    for d, text in enumerate(grids):
        own = [parameter.to(dtype).contiguous() for parameter in parameters[4 * d : 4 * d + 4]]
        outputs = [states, last[d], lost, *views[d]]
        arguments = (feed, start[d], own, exponents[d], valid, _plan(text), outputs)
        torch.ops.qgru_cpu.forward(*arguments, d * hidden, d > 0, not is_fast, path())
    states, last = states.to(out), last.to(out)
    has_nan = _spread_nan(states, last, lost, start, _diverged(parameters) if diverged is None else diverged)
    if limbs:
        workspace[-1] = has_nan
    return states, last, workspace


def _diverged(parameters: Sequence[Tensor]) -> Tensor:
    return torch.isnan(torch.stack(torch._foreach_norm([p.detach() for p in parameters], torch.inf))).any()


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


def backward(
    d_states: Tensor | None,
    d_last: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Tensor],
    exponents: Sequence[Tensor],
    states: Tensor,
    workspace: Tensor,
    grids: Sequence[str],
    limbs: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of `forward`'s x (empty where not needed), h0 (empty where None) and parameters."""
    hidden, directions = parameters[1].shape[1], len(grids)
    if bool(workspace[-1]):
        lost = states.isnan()
        states = states.masked_fill(lost, 0.0)
        if d_states is not None:
            d_states = d_states.masked_fill(lost, 0.0)
        if d_last is not None:
            ends = [lost[0 if d else -1, :, d * hidden : (d + 1) * hidden] for d in range(directions)]
            d_last = d_last.masked_fill(torch.stack(ends), 0.0)
    of_states = None if d_states is None else d_states.float().contiguous()
    dx, dh, d_parameters = None, [], []
    views = _views(workspace, (*x.shape[:2], hidden), directions)
    feed = x.float().contiguous()
    for d, text in enumerate(grids):
        gradient = Gradient(plan_of(text), parameters[4 * d : 4 * d + 4], exponents[d], d, path())
        start = None if h0 is None else h0[d].float()
        of_last = None if d_last is None else d_last[d].float().contiguous()
        dx_d, dh_d, own = gradient.run(of_states, of_last, feed, start, states, views[d], needs_x)
        dx = dx_d if dx is None else dx + dx_d
        dh.append(dh_d)
        d_parameters += [g.to(p.dtype) for g, p in zip(own, parameters[4 * d : 4 * d + 4], strict=True)]
    d_x = x.new_empty(0) if dx is None else dx.to(x.dtype)
    return d_x, x.new_empty(0) if h0 is None else torch.stack(dh).to(h0.dtype), d_parameters
