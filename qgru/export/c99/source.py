"""The C text of constants: arrays, cells and links."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from qgru.export.c99.arithmetic import Rounding
from qgru.export.c99.arrays import Array, CType, array
from qgru.export.c99.cell import Cell, Sum
from qgru.export.c99.functions import Function
from qgru.export.c99.matrix import Matrix
from qgru.export.c99.program import Direction, Link

_WIDTH = 116
_LEAST = {"int32_t": "INT32_MIN", "int64_t": "INT64_MIN"}  # C has no literal for these


class Constants:
    """The arrays of a file, each written once whoever reads it.

    Attributes:
        text: their definitions so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._names: dict[tuple[tuple[int, ...], CType], str] = {}

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(len(values) * kind.size for values, kind in self._names)

    def define(self, name: str, given: Array) -> str:
        """Write an array where none has its content; return the name of the one that has."""
        key = given.values, given.type
        if key not in self._names:
            self._names[key] = name
            self.text += definition(name, given)
        return self._names[key]

    def reference(self, name: str, given: Array | None) -> str:
        """Return a `qgru_array`."""
        return f"{{{self.define(name, given)}, {given.tag}}}" if given else "{0, QGRU_INT32}"


def definition(name: str, given: Array) -> str:
    """Return the definition of an array."""
    numbers = ", ".join(_literal(value, given.type) for value in given.values)
    body = textwrap.fill(numbers, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"static const {given.type.name} {name}[{len(given.values)}] = {{\n{body},\n}};\n"


def _literal(value: int, kind: CType) -> str:
    least = _LEAST.get(kind.name)
    if least and value == kind.lo:
        return least
    return f"INT64_C({value})" if kind.size == 8 else str(value)


def define_cell(direction: Direction, to: Constants) -> str:
    """Return a `qgru_cell`, its arrays written `to` constants."""
    cell, name = direction.cell, direction.symbol
    fields = {
        "hidden": cell.hidden,
        "state": cell.h.type.tag,
        "offset": cell.h.offset,
        "Wx": matrix_fields(f"{name}_W", cell.Wx, to),
        "Rh": matrix_fields(f"{name}_R", cell.Rh, to),
        **dict(_sums(name, cell, to)),
        "m": _grid(cell.products["op.rRh"]),
        "old_contrib": _grid(cell.products["op.old_contrib"]),
        "new_contrib": _grid(cell.products["op.new_contrib"]),
        **{gate[-1]: _function(f"{name}_{gate[-1]}", function, to) for gate, function in cell.functions.items()},
        "one": cell.one,
        "z_left": cell.z_left,
    }
    return _struct("qgru_cell", name, fields)


def _struct(kind: str, name: str, fields: dict[str, object]) -> str:
    return f"static const {kind} {name} = {{\n{_lines(fields, '    ')}}};\n"


def _lines(fields: dict[str, object], indent: str) -> str:
    return "".join(f"{indent}.{field} = {value},\n" for field, value in fields.items())


def _sums(name: str, cell: Cell, to: Constants) -> Iterator[tuple[str, str]]:
    operators = {"r_pre": "gate.r_pre", "z_pre": "gate.z_pre", "c": "op.Rh_add_br", "g_pre": "gate.g_pre"}
    for field, operator in {**operators, "h": "output.h"}.items():
        yield field, _sum(f"{name}_{field}_bias", cell.sums[operator], to)


def _sum(name: str, sum: Sum, to: Constants) -> str:
    a, b = sum.left
    return f"{{{{{a}, {b}}}, {to.reference(name, sum.bias)}, {_grid(sum.grid)}}}"


def _grid(onto: Rounding) -> str:
    return f"{{{onto.shift}, {onto.lo}, {onto.hi}, {int(onto.is_wide)}}}"


def _function(name: str, function: Function, to: Constants) -> str:
    if function.base is None:
        return f"{{{to.reference(f'{name}_table', array(function.values))}, 0, 0, 0}}"
    count = len(function.values)
    table = to.reference(f"{name}_thresholds", array(function.values))
    return f"{{{table}, {count}, {1 << count.bit_length() - 1}, {function.base}}}"


def matrix_fields(name: str, matrix: Matrix, to: Constants) -> str:
    """Return the initializer of a `qgru_matrix`."""
    fields = {
        "weights": f"{{{to.define(name, matrix.weights)}, {matrix.weights.tag}}}",
        "vector": matrix.vector.type.tag,
        "columns": matrix.columns,
        "start": to.reference(f"{name}_start", matrix.start),
        "shift": to.define(f"{name}_shift", matrix.shift),
        "left": matrix.left,
        "lo": matrix.lo,
        "hi": matrix.hi,
        "is_wide": int(matrix.is_wide),
    }
    return f"{{\n{_lines(fields, '        ')}    }}"


def define_link(name: str, link: Link) -> str:
    """Return a `qgru_link`."""
    source, target = link.source, link.target
    return (
        f"static const qgru_link {name} = {{{source.type.tag}, {target.type.tag}, {source.offset}, {target.offset}, "
        f"{_grid(link.grid)}}};\n"
    )
