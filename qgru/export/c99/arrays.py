"""Constants of a program and the C types that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class CType(NamedTuple):
    """An integer type of C.

    Attributes:
        name: as C writes it.
        tag: as `qgru_type` calls it.
        size: bytes.
        lo: the smallest integer.
        hi: the largest.
    """

    name: str
    tag: str
    size: int
    lo: int
    hi: int


def _types() -> Iterator[CType]:
    for bits in (8, 16, 32, 64):
        yield CType(f"int{bits}_t", f"QGRU_INT{bits}", bits // 8, -(1 << bits - 1), (1 << bits - 1) - 1)
        if bits < 32:
            yield CType(f"uint{bits}_t", f"QGRU_UINT{bits}", bits // 8, 0, (1 << bits) - 1)


INT8, UINT8, INT16, UINT16, INT32, INT64 = _types()
TYPES = (INT8, UINT8, INT16, UINT16, INT32, INT64)
"""From the smallest to the largest."""


def smallest_type(values: Iterable[int]) -> CType:
    """Return the first of `TYPES` that holds all values."""
    values = tuple(values)
    lo, hi = min(values, default=0), max(values, default=0)
    return next(kind for kind in TYPES if kind.lo <= lo and hi <= kind.hi)


@dataclass(frozen=True)
class Array:
    """A constant array.

    Attributes:
        values: as C has them, packed ones already in bytes.
        type: of an element.
        is_packed: two four-bit weights a byte.
        row: how many values a line shows belong together, 0 for any.
    """

    values: tuple[int, ...]
    type: CType
    is_packed: bool = False
    row: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.values) * self.type.size

    @property
    def tag(self) -> str:
        """The `qgru_type`."""
        return "QGRU_INT4" if self.is_packed else self.type.tag


def array(values: Sequence[int], type: CType | None = None, row: int = 0) -> Array | None:
    """Return an array of the smallest type or of the one that is given; None for zeros, which C needs no array for."""
    return Array(tuple(values), type or smallest_type(values), row=row) if any(values) else None


def packed(rows: Sequence[Sequence[int]]) -> Array:
    """Pack four-bit weights, -8 to 7: byte i of a row holds weight i low, and weight i + half a row high."""
    values: list[int] = []
    for row in rows:
        half = (len(row) + 1) // 2
        high = [*row[half:], 0][:half]
        values += [(low & 15) | (top & 15) << 4 for low, top in zip(row[:half], high, strict=True)]
    return Array(tuple(values), UINT8, is_packed=True, row=(len(rows[0]) + 1) // 2)
