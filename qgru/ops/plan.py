"""The sums and products of a time step, and what is proven of them once, for every backend.

`STEP` says what each operator rounds; see docs/numerics.md, "One time step". A `Plan` bounds it for given grids, from
their ranges alone, so that what holds for a plan holds for every value that a tensor can have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import NamedTuple

from qgru.grid import Grid
from qgru.schema import ACTIVATIONS, OPTIONAL, WEIGHTS

TABLE_BITS = 16
"""Pre-activations up to this width go through a table; wider ones are evaluated in float64."""

FUNCTIONS = MappingProxyType({"gate.r": "sigmoid", "gate.z": "sigmoid", "gate.g": "tanh"})
"""The gates in PyTorch's order, and their functions."""

_INT32 = 1 << 30  # below it a rounded product's low bits are the number, and a margin
_SCALE_BITS = 100  # a power of two beyond this may leave float32's normal range once it is applied


class Product(NamedTuple):
    """A product of two operators' values.

    Attributes:
        a: the first factor's operator.
        b: the second factor's.
        inner: ``"input"`` or ``"hidden"`` where it is an inner product over that many elements, else None.
        is_complement: the first factor is one minus the operator's value.
    """

    a: str
    b: str
    inner: str | None = None
    is_complement: bool = False

    def __str__(self) -> str:
        return f"(1 - {self.a}) x {self.b}" if self.is_complement else f"{self.a} x {self.b}"


class Sum(NamedTuple):
    """A sum of operators' values."""

    terms: tuple[str, ...]

    def __str__(self) -> str:
        return " + ".join(self.terms)


_GATE = Sum(("matmul.Wx", "matmul.Rh", "weight.bw", "weight.br"))
STEP: Mapping[str, Product | Sum] = MappingProxyType(
    {
        "matmul.Wx": Product("weight.W", "input.x", inner="input"),
        "matmul.Rh": Product("weight.R", "output.h", inner="hidden"),
        "gate.r_pre": _GATE,
        "gate.z_pre": _GATE,
        OPTIONAL: Sum(("matmul.Rh", "weight.br")),
        "op.rRh": Product("gate.r_out", OPTIONAL),
        "gate.g_pre": Sum(("matmul.Wx", "weight.bw", "op.rRh")),
        "op.old_contrib": Product("gate.z_out", "output.h"),
        "op.new_contrib": Product("gate.z_out", "gate.g_out", is_complement=True),
        "output.h": Sum(("op.old_contrib", "op.new_contrib")),
    }
)
"""What each operator rounds, in the order of computation."""

_SUMS = tuple(name for name, made_of in STEP.items() if isinstance(made_of, Sum))
_ELEMENTWISE = tuple(name for name, made_of in STEP.items() if isinstance(made_of, Sum) or made_of.inner is None)


class Carrier(NamedTuple):
    """A floating type as a carrier of integers: sums below 2**exact, roundings below 2**rounded."""

    is_double: bool
    exact: int
    rounded: int


FLOAT, DOUBLE = Carrier(False, 24, 22), Carrier(True, 53, 51)


class WeightRange(NamedTuple):
    """A weight operator's width, and the range of its channels' exponents."""

    bitwidth: int
    is_unsigned: bool
    least: int
    most: int

    @property
    def mantissas(self) -> tuple[int, int]:
        """The smallest and largest integer."""
        half = 1 << self.bitwidth - 1
        return (0, 2 * half - 1) if self.is_unsigned else (-half, half - 1)


class Plan:
    """One direction's grids, the weights' exponents only as a range, and bounds on everything a time step computes.

    `plan_of` and `plan_from` keep one object for what is equal, so that others can keep things by it.

    Attributes:
        text: the key as text, which a traced graph can carry; `plan_from` reads it.

    Args:
        key: the grids as integers; what identifies the plan.
        grids: activation operators' grids by canonical name, ``op.Rh_add_br`` included.
        weights: weight operators' ranges by canonical name.
    """

    def __init__(self, key: tuple[int, ...], grids: Mapping[str, Grid], weights: Mapping[str, WeightRange]) -> None:
        self.key, self.grids, self.weights = key, grids, weights
        self.text = " ".join(map(str, key))

    def bitwidth(self, name: str) -> int:
        """The width of an operator."""
        return self.weights[name].bitwidth if name in self.weights else self.grids[name].bitwidth

    def range(self, name: str) -> tuple[int, int]:
        """The smallest and largest mantissa of an operator."""
        return self.weights[name].mantissas if name in self.weights else self.grids[name].mantissas

    def size(self, name: str) -> int:
        """The largest absolute mantissa."""
        return max(map(abs, self.range(name)))

    def exponent(self, name: str) -> int:
        """The exponent of an activation operator."""
        exponent = self.grids[name].exp2_inv
        assert isinstance(exponent, int)
        return exponent

    def exponents(self, name: str) -> tuple[int, int]:
        """The least and the largest exponent of an operator."""
        weight = self.weights.get(name)
        return (weight.least, weight.most) if weight else (self.exponent(name),) * 2

    def unrounded_exponent(self, name: str) -> int:
        """The exponent in whose steps everything that `name` rounds is an integer; not of the matrix products."""
        made_of = STEP[name]
        if isinstance(made_of, Sum):
            return max(self.exponents(term)[1] for term in made_of.terms)
        a = self.exponent(made_of.a)
        return (max(a, 0) if made_of.is_complement else a) + self.exponent(made_of.b)

    @cached_property
    def complement(self) -> int:
        """The largest mantissa of ``1 - gate.z_out``, in z_out's steps, or in steps of 1 where those are coarser."""
        grid = self.grids["gate.z_out"]
        one, step = 1 << max(grid.exp2_inv, 0), 1 << max(-grid.exp2_inv, 0)
        return max(abs(one - step * mantissa) for mantissa in grid.mantissas)

    def bound(self, name: str, length: int = 1) -> int:
        """Return the largest mantissa of what the operator `name` rounds, in the steps in which it is exact.

        Args:
            name: an operator of `STEP`.
            length: of the inner product, where it is one.
        """
        made_of = STEP[name]
        if isinstance(made_of, Product):
            return (self.complement if made_of.is_complement else self.size(made_of.a)) * self.size(made_of.b) * length
        finest = self.unrounded_exponent(name)
        return sum(self.size(term) << finest - self.exponents(term)[0] for term in made_of.terms)

    # What follows asks which floating type carries a time step's integers.

    def limbs(self, name: str) -> int:
        """8-bit limbs that hold the code of a matrix product's operand: a weight's mantissa, or `offset` added."""
        lo, hi = self.range(name)
        return 1 if hi - lo <= 255 and (name not in self.weights or hi <= 127) else 2

    def offset(self, name: str) -> int:
        """What to add to a mantissa of `input.x` or `output.h` to get a code in int8, or int16 of two limbs."""
        grid, half = self.grids[name], 128 if self.limbs(name) == 1 else 1 << 15
        return grid.zero_point - (half if grid.qmax >= half else 0)

    def sum_wide(self, input_size: int) -> bool:
        """Return True where a product of matrices is wider than the int32 and float32 that 8-bit operands need."""
        operands = ("weight.W", "weight.R", "input.x", "output.h")
        return max(map(self.limbs, operands)) > 1 or self.accumulator("matmul.Wx", input_size) > 1 << 24

    def accumulator(self, name: str, length: int) -> int:
        """Return the bound on a matrix product's integers, and on what they are put together from limb by limb."""
        weight, operand, *_ = STEP[name]
        if self.limbs(weight) == self.limbs(operand) == 1:
            return self.bound(name, length)
        weight_size = max(self.size(weight), 255 if self.limbs(weight) == 2 else 0)
        codes = 1 << 15 if self.limbs(operand) == 2 else 128  # their offset is taken back after the product
        return weight_size * (self.size(operand) + codes) * length

    def carrier(self, input_size: int, hidden_size: int) -> Carrier | None:
        """Return the fastest type that is exact for every sum and rounding of a time step; None: no kernel's is.

        At most 16 bits everywhere, weights in int16, and bounds that hold for any values on the grids.
        """
        wide = [self.bitwidth(name) > TABLE_BITS for name in (*ACTIVATIONS, *WEIGHTS)]
        wide += [self.range(name)[1] >= 1 << 15 for name in ("weight.W", "weight.R")]
        if any(wide) or max(map(abs, self._scales())) > _SCALE_BITS:
            return None
        product = self.accumulator("matmul.Rh", hidden_size)
        shift = self.exponent("matmul.Rh") - self.exponent("output.h") - self.weights["weight.R"].least
        rounded = product * 2.0**shift
        if self.sum_wide(input_size):
            if product > 1 << DOUBLE.exact or rounded > _INT32:
                return None
            product = rounded = 1
        rounded = max(rounded, *(self._bound_in_steps(name) for name in _ELEMENTWISE))
        exact = max(product, self.complement, *(self.bound(name) for name in _SUMS))
        for kind in (FLOAT, DOUBLE):
            if rounded <= 2.0**kind.rounded and exact <= 1 << kind.exact:
                return kind
        return None

    def _bound_in_steps(self, name: str) -> float:
        """The largest number that the operator `name` rounds, in steps of its own grid."""
        return self.bound(name) * 2.0 ** (self.exponent(name) - self.unrounded_exponent(name))

    def _scales(self) -> list[int]:
        n = self.exponent
        W, R = self.weights["weight.W"], self.weights["weight.R"]
        per_channel = [n("matmul.Wx") - n("input.x") - e for e in (W.least, W.most)]
        per_channel += [n("matmul.Rh") - n("output.h") - e for e in (R.least, R.most)]
        real = [n("op.new_contrib"), n(OPTIONAL), n("output.h") - n("op.old_contrib"), n(OPTIONAL) - n("op.rRh")]
        products = [n(name) for name in ("op.rRh", "op.old_contrib", "op.new_contrib")]
        return [*self.shifts.values(), *per_channel, *real, *products]

    @cached_property
    def shifts(self) -> dict[str, int]:
        """Exponents of the powers of two that lead from one grid's steps to another's, in the kernels' names."""
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


def plan_of(grids: Mapping[str, Grid]) -> Plan:
    """Return the plan of one direction's grids.

    Args:
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
    """
    numbers: list[int] = []
    for name in ACTIVATIONS:
        g = grids[name]
        numbers += (g.bitwidth, int(g.is_symmetric), int(g.is_unsigned), g.exp2_inv, g.zero_point)
    for name in WEIGHTS:
        g = grids[name]
        numbers += (g.bitwidth, int(g.is_unsigned), min(g.exponents), max(g.exponents))
    return _plan(tuple(numbers))


@lru_cache(maxsize=1024)
def plan_from(text: str) -> Plan:
    """Return the plan whose `Plan.text` this is."""
    return _plan(tuple(map(int, text.split())))


@lru_cache(maxsize=1024)
def _plan(numbers: tuple[int, ...]) -> Plan:
    grids, weights = {}, {}
    for i, name in enumerate(ACTIVATIONS):
        bitwidth, is_symmetric, is_unsigned, exponent, zero_point = numbers[5 * i : 5 * i + 5]
        grids[name] = Grid(bitwidth, bool(is_symmetric), bool(is_unsigned), exponent, zero_point)
    start = 5 * len(ACTIVATIONS)
    for i, name in enumerate(WEIGHTS):
        bitwidth, is_unsigned, least, most = numbers[start + 4 * i : start + 4 * i + 4]
        weights[name] = WeightRange(bitwidth, bool(is_unsigned), least, most)
    return Plan(numbers, grids, weights)
