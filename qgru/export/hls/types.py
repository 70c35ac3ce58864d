"""Grids as `ap_fixed` types, which round and saturate as the definition does; a zero point takes a clamp besides."""

from __future__ import annotations

from dataclasses import dataclass

from qgru.grid import Grid


@dataclass(frozen=True)
class Type:
    """A C++ type of fixed-point numbers.

    Attributes:
        name: what the header calls it.
        width: in bits.
        exponent: a step is ``2**-exponent``.
        is_unsigned: counts from 0.
        is_exact: nothing that is assigned to it has to be rounded or saturated.
    """

    name: str
    width: int
    exponent: int
    is_unsigned: bool = False
    is_exact: bool = False

    @classmethod
    def exact(cls, name: str, bound: int, exponent: int) -> Type:
        """Return the narrowest signed type for mantissas up to `bound` in magnitude."""
        return cls(name, bound.bit_length() + 1, exponent, is_exact=True)

    @property
    def definition(self) -> str:
        """Its typedef."""
        modes = "" if self.is_exact else ", AP_RND_CONV, AP_SAT"
        sign = "u" * self.is_unsigned
        return f"typedef ap_{sign}fixed<{self.width}, {self.width - self.exponent}{modes}> {self.name};\n"

    @property
    def bits(self) -> str:
        """The type of its mantissas."""
        return f"ap_{'u' * self.is_unsigned}int<{self.width}>"


@dataclass(frozen=True)
class Operator:
    """An operator's grid as a type of its values, ``(q - zero_point) * 2**-n``.

    Attributes:
        type: of the values; one bit wider than the grid and signed where there is a zero point.
        grid: the grid.
    """

    type: Type
    grid: Grid

    @classmethod
    def of(cls, operator: str, grid: Grid) -> Operator:
        """Return an operator's."""
        name, n = f"{identifier(operator)}_t", grid.exp2_inv
        if grid.zero_point == 0:
            return cls(Type(name, grid.bitwidth, n, grid.is_unsigned), grid)
        return cls(Type(name, grid.bitwidth + 1, n), grid)

    def quantize(self, expression: str, scope: str = "") -> str:
        """Return the C++ expression that rounds another one, which is exact, onto the grid.

        Args:
            expression: in C++.
            scope: of the type, with its colons.
        """
        rounded = f"rounded<{scope}{self.type.name}>({expression})"
        if self.grid.zero_point == 0:
            return rounded
        low, high = self.grid.mantissas
        return f"clamped({rounded}, {low}LL, {high}LL)"


def identifier(operator: str) -> str:
    """Return an operator's name in C++."""
    return operator.replace(".", "_")


def integer_type(low: int, high: int) -> str:
    """Return the smallest of C's types that holds a range, as a ROM's element."""
    for bits, name in ((8, "char"), (16, "short"), (32, "int")):
        if low >= 0 and high < 1 << bits:
            return f"unsigned {name}"
        if -(1 << bits - 1) <= low and high < 1 << bits - 1:
            return f"signed {name}"
    return "long long"


def stored_type(grid: Grid) -> str:
    """Return the type of a grid's integers."""
    return f"ap_{'u' * grid.is_unsigned}int<{grid.bitwidth}>"
