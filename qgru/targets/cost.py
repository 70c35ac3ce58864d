"""What a model takes of a target: bytes as they are stored there, and multiplications by width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from qgru.direction import directions_of, parameter_name
from qgru.gru import QuantGRU
from qgru.schema import OPERATORS, OPTIONAL, BitwidthConfig
from qgru.search.cost import Cost, cost_of_direction, layers_of
from qgru.targets.rules import PRODUCTS
from qgru.targets.target import Target, load_target

_FUNCTIONS = [name for name, operator in OPERATORS.items() if operator.function]


@dataclass(frozen=True)
class TargetCost:
    """What quantized layers take of a target.

    Attributes:
        weight_bytes: the four parameters, as stored.
        state_bytes: what is kept from a time step to the next.
        table_bytes: an entry for every integer of a pre-activation, of the three functions; an export that stores
            thresholds, or shares tables, takes less. 0 where the target has functions of its own.
        macs: multiplications of a time step at batch 1 by the bits of both operands, ``"8x8"``: of the matrix products,
            activation by weight, and of the three products of two values.
    """

    weight_bytes: int
    state_bytes: int
    table_bytes: int
    macs: Mapping[str, int]

    def __str__(self) -> str:
        macs = ", ".join(f"{count} of {width} bits" for width, count in self.macs.items())
        return (
            f"weights {self.weight_bytes} bytes, state {self.state_bytes}, tables {self.table_bytes}; "
            f"multiplications a step: {macs}"
        )


def cost_table(model: nn.Module, target: str | Path | Mapping[str, Any] | Target) -> TargetCost:
    """Count what a model's quantized layers take of a target, from their bit widths; nothing is measured.

    Args:
        model: a converted module, or a layer.
        target: as `load_target` takes it.

    Raises:
        ValueError: where the module holds no quantized layer, or the target is none.
        FileNotFoundError: where there is no such target.
    """
    target = load_target(target)
    stored, macs = Cost(0, 0, 0, 0, 0), Counter()
    for layer, inputs, config in _directions(model):
        stored += cost_of_direction(layer, inputs, _stored(config, target))
        macs += _macs(layer.hidden_size, inputs, config)
    parts = stored.weight_bits, stored.state_bits, 0 if _has_own_functions(target) else stored.table_bits
    return TargetCost(*(-(-bits // 8) for bits in parts), dict(macs))


def _has_own_functions(target: Target) -> bool:
    lossy = (claim for claim in target.claims if not claim.takes and claim.effect in ("rounded elsewhere", "float"))
    return any(set(_FUNCTIONS) <= set(claim.operators) for claim in lossy)


def _directions(model: nn.Module) -> Iterator[tuple[QuantGRU, int, BitwidthConfig]]:
    for layer in layers_of(model).values():
        for direction, cell in zip(directions_of(layer), layer._quant_state().cells, strict=True):
            yield layer, getattr(layer, parameter_name("weight.W", direction)).shape[1], cell.config


def _stored(config: BitwidthConfig, target: Target) -> BitwidthConfig:
    """Return the widths that integers are stored in; those of pre-activations, which index the tables, stay."""
    if target.containers is None:
        return config
    operators = {
        name: operator
        if name.endswith("_pre")
        else replace(operator, bitwidth=_container(target, name, operator.bitwidth))
        for name, operator in config.operators.items()
    }
    return BitwidthConfig(operators)


def _container(target: Target, operator: str, bits: int) -> int:
    return next((width for width in target.containers[operator] if width >= bits), bits)


def _macs(hidden: int, inputs: int, config: BitwidthConfig) -> Counter[str]:
    bits = {name: operator.bitwidth for name, operator in config.operators.items()}
    found: Counter[str] = Counter()
    for (activation, weight), columns in zip(PRODUCTS, (inputs, hidden), strict=True):
        found[f"{bits[activation]}x{bits[weight]}"] += 3 * hidden * columns
    recurrent = OPTIONAL if OPTIONAL in bits else "matmul.Rh"
    for a, b in (("gate.r_out", recurrent), ("gate.z_out", "output.h"), ("gate.z_out", "gate.g_out")):
        found[f"{bits[a]}x{bits[b]}"] += hidden
    return found
