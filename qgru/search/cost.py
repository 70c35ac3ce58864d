"""What a bit-width configuration costs a chip: memory, tables and multiplications, counted in bits.

Everything is counted for one time step of batch 1, summed over layers and directions. How much the parts weigh
against each other is an assumption, `SHARES`; print a `Cost` to see the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from types import MappingProxyType

from torch import nn

from qgru.configs import load_config
from qgru.convert import quantized_layers
from qgru.direction import directions_of
from qgru.gru import QuantGRU
from qgru.schema import OPERATORS, OPTIONAL, BitwidthConfig

SHARES: Mapping[str, float] = MappingProxyType(
    {"weight_bits": 0.3, "state_bits": 0.05, "live_bits": 0.2, "table_bits": 0.1, "bit_operations": 0.35}
)
"""What each part counts for, of 1 for the preset ``int8``: an assumption, for a chip that is bound by its memory."""

_GATES = ("z", "r", "g")
_PER_GATE = ("matmul.Wx", "matmul.Rh")
_NAMES = {"weight_bits": "weights", "state_bits": "state", "live_bits": "live", "table_bits": "tables"}


@cache
def reference() -> BitwidthConfig:
    """Return the preset ``int8``, which costs 1."""
    return load_config("int8")


@dataclass(frozen=True)
class Cost:
    """The parts of what quantized layers cost.

    Attributes:
        weight_bits: the four parameters.
        state_bits: what is kept from a time step to the next, ``output.h``.
        live_bits: all that a time step computes from: every activation but the state, each once.
        table_bits: ``2**pre_bits`` entries of ``out_bits`` for each of the three functions; none is shared.
        bit_operations: multiplications of a time step times the bits of both operands: the two matrix products and
            the three products element by element.
    """

    weight_bits: int
    state_bits: int
    live_bits: int
    table_bits: int
    bit_operations: int

    def relative_to(self, reference: Cost) -> float:
        """Return the sum of all parts relative to `reference`'s, weighted by `SHARES`; 1 for `reference` itself."""
        return sum(share * getattr(self, part) / getattr(reference, part) for part, share in SHARES.items())

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        memory = (f"{_NAMES[f.name]} {getattr(self, f.name) / 8:.0f}" for f in fields(self) if f.name in _NAMES)
        return f"bytes: {', '.join(memory)}; bit operations a step: {self.bit_operations}"


def cost_of(module: nn.Module, config: BitwidthConfig | None = None) -> Cost:
    """Count what a module's quantized layers cost.

    Args:
        module: a converted module.
        config: bit widths for all layers and directions; None for their own.

    Raises:
        ValueError: where the module holds no quantized layer.
    """
    costs = [
        _of_direction(layer, layer.input_size if direction.layer == 0 else _width(layer), config or cell.config)
        for layer in layers_of(module).values()
        for direction, cell in zip(directions_of(layer), layer._quant_state().cells, strict=True)
    ]
    return sum(costs[1:], costs[0])


def relative_cost(module: nn.Module, config: BitwidthConfig | None = None) -> float:
    """Return `cost_of` relative to the preset ``int8`` on the same module, which costs 1.

    Raises:
        ValueError: as `cost_of`.
    """
    return cost_of(module, config).relative_to(cost_of(module, reference()))


def layers_of(module: nn.Module) -> dict[str, QuantGRU]:
    """Return a module's quantized layers by qualified name.

    Raises:
        ValueError: where it holds none.
    """
    layers = quantized_layers(module)
    if not layers:
        raise ValueError(f"{type(module).__name__} holds no quantized layer; call qgru.convert(module) first")
    return layers


def _width(gru: QuantGRU) -> int:
    """Return how many features a layer hands to the next."""
    return gru.hidden_size * (2 if gru.bidirectional else 1)


def _of_direction(gru: QuantGRU, inputs: int, config: BitwidthConfig) -> Cost:
    hidden = gru.hidden_size
    bits = {name: operator.bitwidth for name, operator in config.operators.items()}
    biases = 3 * hidden * (bits["weight.bw"] + bits["weight.br"]) if gru.bias else 0
    counts = {name: 3 * hidden if name in _PER_GATE else hidden for name in bits if not OPERATORS[name].is_weight}
    live = {**counts, "input.x": inputs, "output.h": 0}
    recurrent = bits.get(OPTIONAL, bits["matmul.Rh"])
    elementwise = bits["gate.r_out"] * recurrent + bits["gate.z_out"] * (bits["output.h"] + bits["gate.g_out"])
    x_by_W, h_by_R = bits["input.x"] * bits["weight.W"], bits["output.h"] * bits["weight.R"]
    return Cost(
        weight_bits=3 * hidden * (inputs * bits["weight.W"] + hidden * bits["weight.R"]) + biases,
        state_bits=hidden * bits["output.h"],
        live_bits=sum(count * bits[name] for name, count in live.items()),
        table_bits=sum(bits[f"gate.{gate}_out"] << bits[f"gate.{gate}_pre"] for gate in _GATES),
        bit_operations=3 * hidden * (inputs * x_by_W + hidden * h_by_R) + hidden * elementwise,
    )
