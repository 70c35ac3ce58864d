"""What a target can compute: the widths of every operator, the products, the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from qgru.files import shown
from qgru.schema import BIASES, MAX_BITWIDTH, MIN_BITWIDTH, OPERATORS, BitwidthConfig, canonical_name

PRODUCTS = (("input.x", "weight.W"), ("output.h", "weight.R"))
"""The operands of the two matrix products, the activation first."""

GATES = ("z", "r", "g")
BIAS_OF: Mapping[str, str] = MappingProxyType(dict(zip(("weight.W", "weight.R"), BIASES, strict=True)))
"""The bias that is added to each weight's product."""

_KEYS = ("widths", "products", "max_table_bits", "wide_biases")


@dataclass(frozen=True)
class Rules:
    """What a target takes.

    Attributes:
        widths: for every operator, its allowed bit widths, ascending.
        products: allowed (activation, weight) widths of the two matrix products; None for any.
        max_table_bits: the largest table, ``2**pre_bits * out_bits``; None for no limit.
        wide_biases: a bias is at least as wide as the weights that it is added to.
        name: what messages call it.
    """

    widths: Mapping[str, tuple[int, ...]]
    products: tuple[tuple[int, int], ...] | None = None
    max_table_bits: int | None = None
    wide_biases: bool = True
    name: str = "the target"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], name: str = "the target") -> Rules:
        """Read the form of ``conf/target/*.yaml``.

        Args:
            mapping: ``widths`` (``default`` and operators, nested or dotted, each a list of bit widths), and optionally
                ``products`` (a list of pairs), ``max_table_bits``, ``wide_biases``.
            name: what messages call it.

        Raises:
            ValueError: naming the key or operator, its value and what was expected.
        """
        for key in mapping:
            if key not in _KEYS:
                raise ValueError(f"{name} holds {shown(key)}; expected {', '.join(_KEYS)}")
        products = mapping.get("products")
        if products is not None:
            products = tuple(_pair(name, pair) for pair in products)
        cap, wide = mapping.get("max_table_bits"), mapping.get("wide_biases", True)
        if cap is not None and (type(cap) is not int or cap < 1):
            raise ValueError(f"{name}: max_table_bits is {shown(cap)}; expected a positive integer or null")
        if type(wide) is not bool:
            raise ValueError(f"{name}: wide_biases is {shown(wide)}; expected true or false")
        return cls(_widths(name, mapping.get("widths")), products, cap, wide, name)

    def violations(self, config: BitwidthConfig) -> list[str]:
        """Return what a configuration breaks, a sentence each; none where the target takes it."""
        return [sentence for _, sentence in self.broken(config)]

    def broken(self, config: BitwidthConfig) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield what a configuration breaks: the operators that one of would have to change, and a sentence."""
        bits = {name: operator.bitwidth for name, operator in config.operators.items()}
        for name, width in bits.items():
            if width not in self.widths[name]:
                yield (name,), f"{name} has {width} bits; {self.name} takes {_listed(self.widths[name])}"
        for activation, weight in PRODUCTS:
            if self.products is not None and (bits[activation], bits[weight]) not in self.products:
                found, known = f"{bits[activation]}x{bits[weight]}", _listed([f"{a}x{w}" for a, w in self.products])
                yield (activation, weight), f"{activation} by {weight} is {found}; {self.name} multiplies {known}"
        for gate in GATES:
            pre, out = f"gate.{gate}_pre", f"gate.{gate}_out"
            table = bits[out] << bits[pre]
            if self.max_table_bits is not None and table > self.max_table_bits:
                sentence = f"the table from {pre} to {out} has {table} bits; {self.name} holds {self.max_table_bits}"
                yield (pre, out), sentence
        for weight, bias in BIAS_OF.items():
            if self.wide_biases and bits[bias] < bits[weight]:
                less = f"{bias} has {bits[bias]} bits, less than {weight}'s {bits[weight]}"
                yield (bias, weight), f"{less}; {self.name} wants as many"


def operands(rules: Rules, pair: tuple[str, str]) -> list[tuple[int, int]]:
    """Return what a target multiplies in a matrix product, where a bias is there to go with it.

    Raises:
        ValueError: where that is nothing.
    """
    allowed = [
        (activation, weight)
        for activation, weight in product(*(rules.widths[name] for name in pair))
        if (rules.products is None or (activation, weight) in rules.products) and least_bias(rules, pair, weight)
    ]
    if not allowed:
        raise ValueError(f"{rules.name} takes no configuration at all: it has no product for {pair[0]} by {pair[1]}")
    return allowed


def least_bias(rules: Rules, pair: tuple[str, str], weight: int) -> int | None:
    """Return the least width of the bias beside weights of some width; None where there is none."""
    widths = rules.widths[BIAS_OF[pair[1]]]
    return next((width for width in widths if width >= weight or not rules.wide_biases), None)


def _widths(name: str, given: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}: widths is {shown(given)}; expected a mapping with a default")
    flat: dict[str, Any] = {}
    for key, value in given.items():
        flat |= (
            {f"{key}.{leaf}": entry for leaf, entry in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    default = flat.pop("default", None)
    chosen = {canonical_name(key): value for key, value in flat.items()}
    return {operator: _ascending(name, operator, chosen.get(operator, default)) for operator in OPERATORS}


def _ascending(name: str, operator: str, widths: Any) -> tuple[int, ...]:
    def fits(width: Any) -> bool:
        return type(width) is int and MIN_BITWIDTH <= width <= MAX_BITWIDTH

    if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths or not all(map(fits, widths)):
        raise ValueError(
            f"{name}: widths of {operator} is {shown(widths)}; expected a list of integers from {MIN_BITWIDTH} to "
            f"{MAX_BITWIDTH}"
        )
    return tuple(sorted(set(widths)))


def _pair(name: str, pair: Any) -> tuple[int, int]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(type(width) is int for width in pair):
        raise ValueError(f"{name}: products holds {shown(pair)}; expected pairs of widths, activation and weight")
    return tuple(pair)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
