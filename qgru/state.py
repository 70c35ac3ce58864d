"""The quantization state of a layer, and the plain integers that its buffers hold of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from qgru.direction import Direction
from qgru.grid import Grid
from qgru.ops.call import CellGrids
from qgru.schema import BIASES, OPERATORS, OPTIONAL, WEIGHTS, BitwidthConfig, OperatorConfig

BUFFERS = ("quant_flags", "quant_grids", "quant_weight_exp2_inv")
_FLAGS, _GRIDS, _EXPONENTS = BUFFERS
_FLAG_NAMES = ("use_quantization", "disable_quantization", "is_calibrated")


@dataclass(frozen=True)
class CellState:
    """What is known of one layer and direction.

    Attributes:
        config: the bit widths.
        grids: canonical operator name to grid, only configured operators, in their order; None before calibration.
    """

    config: BitwidthConfig
    grids: Mapping[str, Grid] | None = None

    def __post_init__(self) -> None:
        if self.grids is not None:  # one order whoever made them, for files are compared byte by byte
            object.__setattr__(self, "grids", {name: self.grids[name] for name in self.config.operators})

    def resolved(self) -> Mapping[str, Grid]:
        """Return the grids with ``op.Rh_add_br``, which is ``matmul.Rh``'s where it is not configured."""
        return self._resolved

    @cached_property
    def _resolved(self) -> Mapping[str, Grid]:
        assert self.grids is not None
        return {**self.grids, OPTIONAL: self.grids.get(OPTIONAL, self.grids["matmul.Rh"])}


@dataclass(frozen=True)
class QuantState:
    """The whole state of a layer.

    Attributes:
        use_quantization: the user's switch.
        cells: for every layer and direction, in `nn.GRU`'s order.
        is_calibrated: True where every cell has grids.
        prepared: every cell's grids as backends take them; empty before calibration.
    """

    use_quantization: bool
    cells: tuple[CellState, ...]
    is_calibrated: bool = field(init=False)
    prepared: list[CellGrids] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Worked out here and not when asked for: a compiler that traces a call can't follow what is worked out in it.
        calibrated = all(cell.grids is not None for cell in self.cells)
        object.__setattr__(self, "is_calibrated", calibrated)
        prepared = [CellGrids(cell.resolved()) for cell in self.cells] if calibrated else []
        object.__setattr__(self, "prepared", prepared)

    @property
    def disable_quantization(self) -> bool:
        """True where the configuration keeps the layer in float."""
        return self.cells[0].config.disable_quantization

    def without_grids(self) -> QuantState:
        """Return the state before calibration."""
        return replace(self, cells=tuple(replace(cell, grids=None) for cell in self.cells))


def encode(state: QuantState, channels: int) -> dict[str, list]:
    """Return the contents of the three buffers as nested lists.

    Args:
        state: the state.
        channels: rows of a weight, three for each hidden unit.

    Returns:
        ``quant_flags`` (3,): the switch, disabled, calibrated. ``quant_grids`` (cells, operators, 5): bit width (0 for
        an operator that is not configured), symmetric, unsigned, exponent, zero point. ``quant_weight_exp2_inv``
        (cells, 4, channels): the weights' exponents.
    """
    flags = (state.use_quantization, state.disable_quantization, state.is_calibrated)
    return {
        _FLAGS: [int(flag) for flag in flags],
        _GRIDS: [_rows(cell) for cell in state.cells],
        _EXPONENTS: [_exponents(cell, channels) for cell in state.cells],
    }


def _rows(cell: CellState) -> list[list[int]]:
    rows = []
    for name in OPERATORS:
        config = cell.config.operators.get(name)
        grid = cell.grids.get(name) if cell.grids else None
        head = [config.bitwidth, int(config.is_symmetric), int(config.is_unsigned)] if config else [0, 0, 0]
        per_tensor = grid is not None and not grid.is_per_channel
        rows.append([*head, grid.exp2_inv if per_tensor else 0, grid.zero_point if grid else 0])
    return rows


def _exponents(cell: CellState, channels: int) -> list[list[int]]:
    grids = [cell.grids[name] if cell.grids else None for name in WEIGHTS]
    return [list(grid.exponents) if grid is not None and grid.is_per_channel else [0] * channels for grid in grids]


def decode(contents: Mapping[str, list], directions: Sequence[Direction], bias: bool) -> QuantState:
    """Return the state that buffers hold.

    Args:
        contents: as `encode` returns them.
        directions: of the layer.
        bias: False where the biases are missing; their exponents are not read then.

    Raises:
        ValueError: naming the buffer, the direction, the operator, its value and what was expected.
    """
    with _naming(_FLAGS):
        switches = zip(_FLAG_NAMES, contents[_FLAGS], strict=True)
        use, disabled, calibrated = [_flag(name, value) for name, value in switches]
    cells = []
    for direction, rows, exponents in zip(directions, contents[_GRIDS], contents[_EXPONENTS], strict=True):
        configs = _configs(rows, direction, disabled)
        grids = _grids(configs, rows, exponents, direction, bias) if calibrated else None
        cells.append(CellState(configs, grids))
        if direction.reverse:
            _check_shared_input(*cells[-2:], direction)
    return QuantState(use, tuple(cells))


def _configs(rows: Sequence[Sequence[int]], direction: Direction, disabled: bool) -> BitwidthConfig:
    configs = {}
    for name, row in zip(OPERATORS, rows, strict=True):
        if name == OPTIONAL and not any(row):
            continue
        with _naming(_GRIDS, direction, name):
            kind = {"is_symmetric": row[1], "is_unsigned": row[2]}
            configs[name] = OperatorConfig(row[0], **{key: _flag(key, value) for key, value in kind.items()})
    with _naming(_GRIDS, direction):
        return BitwidthConfig(configs, disabled)


def _grids(
    configs: BitwidthConfig,
    rows: Sequence[Sequence[int]],
    exponents: Sequence[Sequence[int]],
    direction: Direction,
    bias: bool,
) -> dict[str, Grid]:
    grids, of_name = {}, dict(zip(OPERATORS, rows, strict=True))
    for name, config in configs.operators.items():
        with _naming(_GRIDS, direction, name):
            exponent = 0 if OPERATORS[name].is_weight else of_name[name][3]
            grids[name] = Grid(config.bitwidth, config.is_symmetric, config.is_unsigned, exponent, of_name[name][4])
    for name, of_channels in zip(WEIGHTS, exponents, strict=True):
        if bias or name not in BIASES:
            with _naming(_EXPONENTS, direction, name):
                grids[name] = replace(grids[name], exp2_inv=tuple(of_channels))
    return grids


def _check_shared_input(forward: CellState, reverse: CellState, direction: Direction) -> None:
    one, other = (
        cell.grids["input.x"] if cell.grids else cell.config.operators["input.x"] for cell in (forward, reverse)
    )
    if one != other:
        raise ValueError(
            f"{_GRIDS}, layer {direction.layer}: operator 'input.x' is {one} forward and {other} in "
            "reverse; expected one grid for both directions"
        )


def _flag(name: str, value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{name} is {value!r}; expected 0 or 1")
    return bool(value)


@contextmanager
def _naming(buffer: str, direction: Direction | None = None, operator: str | None = None) -> Iterator[None]:
    """Put what is being read in front of a ValueError's message."""
    try:
        yield
    except ValueError as error:
        where = buffer if direction is None else f"{buffer}, {direction}"
        raise ValueError(f"{where}: {f'operator {operator!r}: ' if operator else ''}{error}") from error
