"""A whole program: layers, how vectors pass between them, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qgru.direction import directions_of
from qgru.export.c99.arithmetic import Rounding, rounding
from qgru.export.c99.arrays import INT8, INT16, UINT8, UINT16, CType
from qgru.export.c99.cell import Cell, cell
from qgru.export.c99.linear import Head
from qgru.export.c99.matrix import Codes, Matrix
from qgru.grid import Grid
from qgru.gru import QuantGRU


@dataclass(frozen=True)
class Numbers:
    """How a vector lies in memory.

    Attributes:
        grid: its grid.
        type: of an element.
        offset: the element that stands for 0.
    """

    grid: Grid
    type: CType
    offset: int

    @classmethod
    def of_grid(cls, *grids: Grid) -> list[Numbers]:
        """Return each grid's own integers, in one type that holds all of them."""
        lo, hi = min(grid.qmin for grid in grids), max(grid.qmax for grid in grids)
        kind = next(t for t in (INT8, UINT8, INT16, UINT16, None) if t is None or (t.lo <= lo and hi <= t.hi))
        if kind is None:
            raise ValueError(f"the directions' output.h hold integers from {lo} to {hi}, which 16 bits don't")
        return [cls(grid, kind, grid.zero_point) for grid in grids]

    @classmethod
    def of_codes(cls, codes: Codes) -> Numbers:
        """Return the codes of a layer's input or state."""
        return cls(codes.grid, codes.type, codes.offset)


@dataclass(frozen=True)
class Link:
    """From one vector to another one; `qgru_link` in C."""

    source: Numbers
    target: Numbers
    grid: Rounding


def link(source: Numbers, target: Numbers) -> Link | None:
    """Return how a vector becomes another one, or None where its bytes are that already."""
    onto = rounding("input.x", source.grid.exp2_inv, source.grid.mantissa_bound, target.grid)
    (lo, hi), bytes_agree = source.grid.mantissas, source.type.size == target.type.size
    fits = onto.shift == 0 and onto.lo <= lo and hi <= onto.hi and source.offset == target.offset
    return None if fits and bytes_agree else Link(source, target, onto)


@dataclass(frozen=True)
class Direction:
    """One direction of a layer.

    Attributes:
        name: in C, where something is its own: ``"l0"``, ``"l1_reverse"``.
        symbol: in C, where it is the file's: ``"model_l0"``.
        title: the module's layer and direction, for people.
        cell: what it computes.
        feeds: for each part of its input, how it becomes the input's codes.
        reverse: it walks from the last time step to the first.
    """

    name: str
    symbol: str
    title: str
    cell: Cell
    feeds: tuple[Link | None, ...]
    reverse: bool = False


@dataclass(frozen=True)
class Program:
    """A chain of layers, and a linear layer at its end or none.

    Attributes:
        name: of the C functions' and files'.
        layers: each one or two directions.
        x: the input's integers.
        y: the output's, for each direction of the last layer.
        head: the linear layer.
    """

    name: str
    layers: tuple[tuple[Direction, ...], ...]
    x: Numbers
    y: tuple[Numbers, ...]
    head: Head | None = None

    @property
    def is_bidirectional(self) -> bool:
        """True where a whole sequence is needed."""
        return any(len(layer) > 1 for layer in self.layers)

    @property
    def directions(self) -> list[Direction]:
        """Of all layers, in order."""
        return [direction for layer in self.layers for direction in layer]

    @property
    def matrices(self) -> list[Matrix]:
        """All weights."""
        of_cells = [m for direction in self.directions for m in (direction.cell.Wx, direction.cell.Rh)]
        return [*of_cells, self.head.matrix] if self.head else of_cells

    @property
    def outputs(self) -> dict[str, Link | None]:
        """How each direction of the last layer, by symbol, becomes its part of the output."""
        last = zip(self.layers[-1], self.y, strict=True)
        return {direction.symbol: link(Numbers.of_codes(direction.cell.h), y) for direction, y in last}

    @property
    def links(self) -> dict[str, Link]:
        """All links that are needed, by their names in C."""
        feeds = {f"{d.symbol}_feed_{i}": feed for d in self.directions for i, feed in enumerate(d.feeds)}
        outputs = {f"{symbol}_to_y": output for symbol, output in self.outputs.items()}
        return {name: needed for name, needed in {**feeds, **outputs}.items() if needed}

    @property
    def output_size(self) -> int:
        """Integers of a row of the output."""
        return sum(direction.cell.hidden for direction in self.layers[-1])

    @property
    def multiply_accumulates(self) -> int:
        """A time step, the linear layer included."""
        return sum(len(matrix.shift.values) * matrix.columns for matrix in self.matrices)

    @property
    def state_bytes(self) -> int:
        """What is kept from step to step."""
        return sum(direction.cell.hidden * direction.cell.h.type.size for direction in self.directions)

    @property
    def stack_bytes(self) -> int:
        """Arrays on the stack, at most; registers and return addresses come on top."""
        return max(_stack(direction) for direction in self.directions)


def _stack(direction: Direction) -> int:
    cell = direction.cell
    codes = cell.input * cell.x.type.size if is_copied(direction) else 0
    states = 2 if direction.reverse else 1
    return states * cell.hidden * cell.h.type.size + codes


def is_copied(direction: Direction) -> bool:
    """Return True where a layer's input is put together in an array of its own."""
    return len(direction.feeds) > 1 or direction.feeds[0] is not None


def program(grus: Sequence[tuple[str, QuantGRU]], name: str, head: Head | None = None) -> Program:
    """Return the program of quantized GRUs that feed each other.

    Args:
        grus: qualified names and modules, calibrated.
        name: of the C functions.
        head: the linear layer behind them.

    Raises:
        ValueError: naming the layer and operator that C's kernels can't take, or the layer that stays in float.
        RuntimeError: where a layer is not calibrated.
    """
    layers: list[tuple[Direction, ...]] = []
    first = grus[0][1].input_grid
    x = Numbers.of_grid(first)[0]
    below = [x]
    for gru_name, gru in grus:
        if gru.bitwidth_config.disable_quantization:
            raise ValueError(f"{gru_name or 'the layer'} has disable_quantization = True; C computes integers alone")
        for layer in range(gru.num_layers):
            directions = []
            for which in (d for d in directions_of(gru) if d.layer == layer):
                title = f"{gru_name}, {which}" if gru_name else str(which)
                try:
                    found = cell(gru.grids(*which), gru.quantized_weights(*which))
                except ValueError as error:
                    raise ValueError(f"{title}: {error}") from error
                feeds = tuple(link(source, Numbers.of_codes(found.x)) for source in below)
                own = f"l{len(layers)}{'_reverse' * which.reverse}"
                directions.append(Direction(own, f"{name}_{own}", title, found, feeds, which.reverse))
            layers.append(tuple(directions))
            below = [Numbers.of_codes(direction.cell.h) for direction in directions]
    y = Numbers.of_grid(*(direction.cell.h.grid for direction in layers[-1]))
    return Program(name, tuple(layers), x, tuple(y), head)
