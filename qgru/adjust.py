"""Changes of single grids after calibration, without data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qgru.calibration.methods import bounded_grid, grid_from_range
from qgru.grid import Grid
from qgru.schema import OPERATORS, BitwidthConfig, OperatorConfig
from qgru.state import CellState


@dataclass(frozen=True)
class Change:
    """What is asked of one operator; None leaves a field as it is.

    Attributes:
        op: canonical name.
        bitwidth: new width over the same range.
        is_symmetric: new symmetry, minmax on the old grid's range.
        exp2_inv: exponent as given, a list with one for each channel for a weight.
        zero_point: zero point as given.
    """

    op: str
    bitwidth: int | None = None
    is_symmetric: bool | None = None
    exp2_inv: int | list[int] | None = None
    zero_point: int | None = None


def with_width(config: BitwidthConfig, bitwidth: int, is_symmetric: bool) -> BitwidthConfig:
    """Give every configured operator a width, and activations a symmetry."""
    operators = {
        name: OperatorConfig(bitwidth, OPERATORS[name].is_weight or is_symmetric, old.is_unsigned)
        for name, old in config.operators.items()
    }
    return replace(config, operators=operators)


def adjusted(cell: CellState, change: Change) -> CellState:
    """Return the cell with one operator changed.

    Raises:
        ValueError: naming the operator, where a value is off its range or grid.
        RuntimeError: where an exponent or zero point is given before calibration.
    """
    try:
        return _adjusted(cell, change)
    except ValueError as error:
        raise ValueError(f"operator {change.op!r}: {error}") from error


def _adjusted(cell: CellState, change: Change) -> CellState:
    old = cell.config.operators.get(change.op) or cell.config.operators["matmul.Rh"]  # op.Rh_add_br starts from there
    asked = {"bitwidth": change.bitwidth, "is_symmetric": change.is_symmetric}
    config = replace(old, **{name: value for name, value in asked.items() if value is not None})
    configs = BitwidthConfig({**cell.config.operators, change.op: config}, cell.config.disable_quantization)
    explicit = change.exp2_inv is not None or change.zero_point is not None
    if cell.grids is None:
        if explicit:
            raise RuntimeError(f"operator {change.op!r}: exp2_inv and zero_point can be given only after calibration")
        return CellState(configs)
    grid = _regrid(change.op, cell.grids.get(change.op) or cell.grids["matmul.Rh"], config)
    if explicit:
        grid = _explicit(grid, change)
    order = {**cell.grids, change.op: grid}
    return CellState(configs, {name: order[name] for name in configs.operators})


def _regrid(op: str, grid: Grid, config: OperatorConfig) -> Grid:
    """Return a grid of `config` over the old one's range."""
    if grid.config == config:
        return grid
    function = OPERATORS[op].function
    if function:
        return bounded_grid(function, config)
    if grid.is_symmetric != config.is_symmetric:
        return grid_from_range(*(float(grid.scale * (q - grid.zero_point)) for q in (grid.qmin, grid.qmax)), config)
    finer = config.bitwidth - grid.bitwidth
    if grid.is_per_channel:
        return Grid(config.bitwidth, True, config.is_unsigned, tuple(n + finer for n in grid.exponents))
    zero_point = 0
    if not config.is_symmetric:
        moved = config.qmin + round((grid.zero_point - grid.qmin) * 2.0**finer)
        zero_point = min(max(moved, config.qmin), config.qmax)
    return replace(grid, bitwidth=config.bitwidth, exp2_inv=grid.exp2_inv + finer, zero_point=zero_point)


def _explicit(grid: Grid, change: Change) -> Grid:
    exponent = grid.exp2_inv if change.exp2_inv is None else change.exp2_inv
    if grid.is_per_channel:
        given = exponent if isinstance(exponent, list | tuple) else [exponent] * len(grid.exponents)
        if len(given) != len(grid.exponents):
            raise ValueError(f"exp2_inv has {len(given)} entries; expected {len(grid.exponents)}, one for each channel")
        exponent = tuple(given)
    zero_point = grid.zero_point if change.zero_point is None else change.zero_point
    return replace(grid, exp2_inv=exponent, zero_point=zero_point)
