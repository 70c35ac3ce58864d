"""What a target can compute: the widths of every operator, the products, the tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qgru.files import shown
from qgru.presets import conf_folder
from qgru.schema import BIASES, MAX_BITWIDTH, MIN_BITWIDTH, OPERATORS, BitwidthConfig, canonical_name

DEFAULT_TARGET = "fpga"
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
        bits = {name: operator.bitwidth for name, operator in config.operators.items()}
        found = [
            f"{name} has {width} bits; {self.name} takes {_listed(self.widths[name])}"
            for name, width in bits.items()
            if width not in self.widths[name]
        ]
        for activation, weight in PRODUCTS:
            if self.products is not None and (bits[activation], bits[weight]) not in self.products:
                pairs = _listed([f"{a}x{w}" for a, w in self.products])
                found.append(
                    f"{activation} by {weight} is {bits[activation]}x{bits[weight]}; {self.name} multiplies {pairs}"
                )
        for gate in GATES:
            table = bits[f"gate.{gate}_out"] << bits[f"gate.{gate}_pre"]
            if self.max_table_bits is not None and table > self.max_table_bits:
                found.append(
                    f"the table from gate.{gate}_pre to gate.{gate}_out has {table} bits; {self.name} holds "
                    f"{self.max_table_bits}"
                )
        for weight, bias in BIAS_OF.items():
            if self.wide_biases and bits[bias] < bits[weight]:
                found.append(
                    f"{bias} has {bits[bias]} bits, less than {weight}'s {bits[weight]}; {self.name} wants as many"
                )
        return found


def load_rules(target: str | Path | Mapping[str, Any] | Rules | None = None) -> Rules:
    """Return the rules of a target: a name (a file of ``conf/target``), a YAML file's path, or a mapping.

    None is ``"fpga"``.

    Raises:
        FileNotFoundError: for a string that is neither a target nor a file; lists the targets.
        ValueError: where it holds no rules.
    """
    if isinstance(target, Rules):
        return target
    if isinstance(target, Mapping):
        return Rules.from_mapping(target)
    chosen = DEFAULT_TARGET if target is None else target
    if not isinstance(chosen, str | Path):
        raise TypeError(f"the target is {shown(target)}; expected a name, a path or a mapping")
    path = conf_folder() / "target" / f"{chosen}.yaml" if str(chosen) in target_names() else Path(chosen)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{shown(str(chosen))} is neither a file nor a target (targets: {', '.join(target_names())})"
        )
    from omegaconf import OmegaConf  # only files need it

    return Rules.from_mapping(OmegaConf.to_container(OmegaConf.load(path)), path.stem)


def target_names() -> list[str]:
    """Return the names of the targets that ship with the package."""
    return sorted(path.stem for path in (conf_folder() / "target").glob("*.yaml"))


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
