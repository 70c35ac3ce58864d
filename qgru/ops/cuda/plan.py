"""What the kernels need to know of a layer's grids: which arithmetic is exact for them, and the numbers they use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.reference import TABLE_BITS, _tables
from qgru.schema import OPERATORS, OPTIONAL

WEIGHTS = ("weight.W", "weight.R", "weight.bw", "weight.br")
ACTIVATIONS = (*(name for name in OPERATORS if name not in WEIGHTS and name != OPTIONAL), OPTIONAL)
SHARED_TABLE_ENTRIES = 8192
_INT32 = 1 << 30  # below it a rounded product's low bits are the number, and a margin
_SCALE_BITS = 100  # a power of two beyond this may leave float32's normal range once it is applied
_FUNCTIONS = {"gate.r": "sigmoid", "gate.z": "sigmoid", "gate.g": "tanh"}


class Arithmetic(NamedTuple):
    """A floating type as a carrier of integers: sums below 2**exact, roundings below 2**rounded."""

    wide: bool
    exact: int
    rounded: int


FLOAT, DOUBLE = Arithmetic(False, 24, 22), Arithmetic(True, 53, 51)


class WeightRange(NamedTuple):
    """A weight operator's width, and the range of its channels' exponents."""

    bitwidth: int
    is_unsigned: bool
    least: int
    most: int

    @property
    def lo(self) -> int:
        """The smallest integer."""
        return 0 if self.is_unsigned else -(1 << self.bitwidth - 1)

    @property
    def hi(self) -> int:
        """The largest integer."""
        return (1 << self.bitwidth - (not self.is_unsigned)) - 1


def flatten(grids: Mapping[str, Grid]) -> str:
    """Write the grids of one layer and direction as integers; the weights' exponents only as a range."""
    flat: list[int] = []
    for name in ACTIVATIONS:
        g = grids[name]
        flat += (g.bitwidth, g.is_symmetric, g.is_unsigned, g.exp2_inv, g.zero_point)
    for name in WEIGHTS:
        g = grids[name]
        flat += (g.bitwidth, g.is_unsigned, min(g.exponents), max(g.exponents))
    return " ".join(str(int(value)) for value in flat)


@dataclass(frozen=True, eq=False)
class Plan:
    """The grids, read back from integers, and everything derived from them without a tensor's values.

    Attributes:
        grids: activation operators' grids by canonical name.
        weights: weight operators' ranges by canonical name.
    """

    grids: Mapping[str, Grid]
    weights: Mapping[str, WeightRange]

    def range(self, name: str) -> tuple[int, int]:
        """The smallest and largest mantissa of an operator."""
        if name in self.weights:
            return self.weights[name].lo, self.weights[name].hi
        grid = self.grids[name]
        return grid.qmin - grid.zero_point, grid.qmax - grid.zero_point

    def size(self, name: str) -> int:
        """The largest absolute mantissa."""
        return max(map(abs, self.range(name)))

    def exponent(self, name: str) -> int:
        """The exponent of an activation operator."""
        exponent = self.grids[name].exp2_inv
        assert isinstance(exponent, int)
        return exponent

    def offset(self, name: str) -> int:
        """What to add to a mantissa of `input.x` or `output.h` to get a code in int8, or int16 of two limbs."""
        grid, half = self.grids[name], 128 if self.limbs(name) == 1 else 1 << 15
        return grid.zero_point - (half if grid.qmax >= half else 0)

    def limbs(self, name: str) -> int:
        """8-bit limbs that hold the code of a matrix product's operand: a weight's mantissa, or `offset` added."""
        lo, hi = self.range(name)
        return 1 if hi - lo <= 255 and (name not in self.weights or hi <= 127) else 2

    def sum_wide(self, input_size: int) -> bool:
        """Return True where a product of matrices is wider than the int32 and float32 that 8-bit operands need."""
        operands = ("weight.W", "weight.R", "input.x", "output.h")
        return max(map(self.limbs, operands)) > 1 or self._product("weight.W", "input.x", input_size) > 1 << 24

    @cached_property
    def code_bytes(self) -> int:
        """Bytes that hold a code of every operator that is stored, 1 or 2."""
        stored = ("matmul.Wx", "matmul.Rh", "gate.r_pre", "gate.z_pre", "gate.g_pre")
        return 1 if max(self.grids[name].bitwidth for name in stored) <= 8 else 2

    @cached_property
    def table_bits(self) -> tuple[int, int, int]:
        """Widths of the pre-activations r, z, g."""
        return tuple(self.grids[f"{gate}_pre"].bitwidth for gate in _FUNCTIONS)  # type: ignore[return-value]

    @cached_property
    def table_starts(self) -> tuple[int, int, int]:
        """Where the tables of r, z and g start."""
        r, z, _ = self.table_bits
        return 0, 1 << r, (1 << r) + (1 << z)

    @cached_property
    def table_entries(self) -> int:
        """Entries of the three tables."""
        return sum(1 << bits for bits in self.table_bits)

    def accumulator(self, hidden: int) -> int:
        """Return the bound on the recurrent product's integers, and on what they are put together from."""
        return self._product("weight.R", "output.h", hidden)

    def _product(self, weight: str, operand: str, length: int) -> int:
        lower = 255 if self.limbs(weight) == 2 else 0
        size, weight_size = self.size(operand), max(self.size(weight), lower)
        if self.limbs(weight) == self.limbs(operand) == 1:
            return weight_size * size * length
        codes = 1 << 15 if self.limbs(operand) == 2 else 128  # their offset is taken back after the product
        return weight_size * (size + codes) * length

    def arithmetic(self, input_size: int, hidden_size: int) -> Arithmetic | None:
        """Return the fastest arithmetic that is exact for every sum and rounding of a time step; None: no kernel is.

        At most 16 bits everywhere, weights in int16, and bounds that hold for any values on the grids.
        """
        wide = [self.grids[name].bitwidth > TABLE_BITS for name in ACTIVATIONS]
        wide += [self.weights[name].bitwidth > TABLE_BITS for name in WEIGHTS]
        wide += [self.weights[name].hi >= 1 << 15 for name in ("weight.W", "weight.R")]
        if any(wide) or max(map(abs, self._scales())) > _SCALE_BITS:
            return None
        product, rounded = self.accumulator(hidden_size), self._rounded_product(hidden_size)
        if self.sum_wide(input_size):
            if product > 1 << DOUBLE.exact or rounded > _INT32:
                return None
            product = rounded = 1
        rounded, exact = self._rounded(rounded), self._exact(product)
        for kind in (FLOAT, DOUBLE):
            if rounded <= kind.rounded and exact <= kind.exact:
                return kind
        return None

    def _scales(self) -> list[int]:
        n, s = self.exponent, self.shifts
        W, R = self.weights["weight.W"], self.weights["weight.R"]
        per_channel = [n("matmul.Wx") - n("input.x") - e for e in (W.least, W.most)]
        per_channel += [n("matmul.Rh") - n("output.h") - e for e in (R.least, R.most)]
        real = [n("op.new_contrib"), n(OPTIONAL), n("output.h") - n("op.old_contrib"), n(OPTIONAL) - n("op.rRh")]
        products = [n(name) for name in ("op.rRh", "op.old_contrib", "op.new_contrib")]
        return [*s.values(), *per_channel, *real, *products]

    @cached_property
    def shifts(self) -> dict[str, int]:
        """Exponents of the powers of two that lead from one grid's steps to another's, in `Numbers`' names."""
        n = self.exponent
        Wx, Rh, h = n("matmul.Wx"), n("matmul.Rh"), n("output.h")
        return {
            "r_from_Wx": n("gate.r_pre") - Wx,
            "z_from_Wx": n("gate.z_pre") - Wx,
            "g_from_Wx": n("gate.g_pre") - Wx,
            "r_from_Rh": n("gate.r_pre") - Rh,
            "z_from_Rh": n("gate.z_pre") - Rh,
            "c_from_Rh": n(OPTIONAL) - Rh,
            "g_from_m": n("gate.g_pre") - n("op.rRh"),
            "h_from_old": h - n("op.old_contrib"),
            "h_from_new": h - n("op.new_contrib"),
        }

    def _rounded_product(self, hidden: int) -> float:
        """Bound on the recurrent product before it is rounded to its grid."""
        n = self.exponent
        return self.accumulator(hidden) * 2.0 ** (n("matmul.Rh") - n("output.h") - self.weights["weight.R"].least)

    def _rounded(self, product: float) -> float:
        """Log2 of the bound on every number that is rounded by adding `ROUND`."""
        n, size = self.exponent, self.size
        complement = 1 + size("gate.z_out") * 2.0 ** -n("gate.z_out")
        bounds = [
            product,
            size("gate.r_out") * size(OPTIONAL) * 2.0 ** (n("op.rRh") - n("gate.r_out") - n(OPTIONAL)),
            size("gate.z_out") * size("output.h") * 2.0 ** (n("op.old_contrib") - n("gate.z_out") - n("output.h")),
            complement * size("gate.g_out") * 2.0 ** (n("op.new_contrib") - n("gate.g_out")),
        ]
        bounds += [self._total(terms) * 2.0 ** n(destination) for destination, terms in self._sums().items()]
        return math.log2(max(bounds))

    def _exact(self, product: float) -> float:
        """Log2 of the bound on every integer that a float must hold: sums on their finest exponent."""
        finest = [
            self._total(terms) * 2.0 ** max(max(self._exponents(name)) for name in terms)
            for terms in self._sums().values()
        ]
        n_z = max(self.exponent("gate.z_out"), 0)
        complement = 2.0**n_z * (1 + self.size("gate.z_out") * 2.0 ** -self.exponent("gate.z_out"))
        return math.log2(max(*finest, complement, product))

    def _sums(self) -> dict[str, tuple[str, ...]]:
        return {
            "gate.r_pre": ("matmul.Wx", "matmul.Rh", "weight.bw", "weight.br"),
            "gate.z_pre": ("matmul.Wx", "matmul.Rh", "weight.bw", "weight.br"),
            OPTIONAL: ("matmul.Rh", "weight.br"),
            "gate.g_pre": ("matmul.Wx", "weight.bw", "op.rRh"),
            "output.h": ("op.old_contrib", "op.new_contrib"),
        }

    def _exponents(self, name: str) -> tuple[int, ...]:
        if name in self.weights:
            return self.weights[name].least, self.weights[name].most
        return (self.exponent(name),)

    def _total(self, terms: tuple[str, ...]) -> float:
        return sum(self.size(name) * 2.0 ** -min(self._exponents(name)) for name in terms)

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """For r, z and g in one tensor, values in steps of the products they go into, and slopes; float32, CPU."""
        n = self.exponent
        scales = {
            "gate.r": n("op.rRh") - n(OPTIONAL),
            "gate.z": n("op.old_contrib") - n("output.h"),
            "gate.g": n("op.new_contrib"),
        }
        values, slopes = [], []
        for gate, function in _FUNCTIONS.items():
            value, slope = _tables(function, self.grids[f"{gate}_pre"], self.grids[f"{gate}_out"], torch.device("cpu"))
            values.append(value * 2.0 ** scales[gate])
            slopes.append(slope)
        return torch.cat(values).float(), torch.cat(slopes).float()


@lru_cache(maxsize=256)
def plan_of(grids_text: str) -> Plan:
    """Return the plan of grids that `flatten` wrote."""
    flat = [int(word) for word in grids_text.split()]
    grids, weights = {}, {}
    for i, name in enumerate(ACTIVATIONS):
        bitwidth, is_symmetric, is_unsigned, exponent, zero_point = flat[5 * i : 5 * i + 5]
        grids[name] = Grid(bitwidth, bool(is_symmetric), bool(is_unsigned), exponent, zero_point)
    start = 5 * len(ACTIVATIONS)
    for i, name in enumerate(WEIGHTS):
        bitwidth, is_unsigned, least, most = flat[start + 4 * i : start + 4 * i + 4]
        weights[name] = WeightRange(bitwidth, bool(is_unsigned), least, most)
    return Plan(grids, weights)
