"""Costs, against plain integers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

import qgru
from qgru.schema import OPTIONAL, BitwidthConfig, OperatorConfig
from qgru.search import Cost, cost_of, relative_cost
from tests.search.models import uniform

SUMS_16 = dict.fromkeys(("input__x", "matmul__Wx", "matmul__Rh", "op__rRh", "op__old_contrib", "op__new_contrib"), 16)


def test_every_part_of_one_layer_by_hand() -> None:
    config = uniform(
        8, weight__W=4, weight__R=5, weight__bw=6, weight__br=7, input__x=3, output__h=9, gate__z_pre=2, gate__z_out=11,
        gate__r_pre=5, gate__g_out=13,
    )  # fmt: skip
    assert cost_of(qgru.convert(nn.GRU(2, 10)), config) == Cost(
        weight_bits=30 * 2 * 4 + 30 * 10 * 5 + 30 * 6 + 30 * 7,
        state_bits=10 * 9,
        live_bits=2 * 3 + 30 * 8 + 30 * 8 + 10 * (2 + 11 + 5 + 8 + 8 + 13 + 8 + 8 + 8),
        table_bits=4 * 11 + 32 * 8 + 256 * 13,
        bit_operations=30 * 2 * 3 * 4 + 30 * 10 * 9 * 5 + 10 * (8 * 8 + 11 * 9 + 11 * 13),
    )


def test_the_optional_operator_is_alive_and_multiplied_with_r() -> None:
    config = uniform(8)
    wider = BitwidthConfig({**config.operators, OPTIONAL: OperatorConfig(12)})
    module = qgru.convert(nn.GRU(2, 10))
    before, after = cost_of(module, config), cost_of(module, wider)
    assert after == replace(
        before, live_bits=before.live_bits + 10 * 12, bit_operations=before.bit_operations + 10 * 8 * (12 - 8)
    )


def test_layers_and_directions_add_up() -> None:
    model = nn.ModuleDict({"a": nn.GRU(2, 3, num_layers=2, bidirectional=True), "b": nn.GRU(5, 3)})
    parts = [cost_of(qgru.convert(nn.GRU(inputs, 3)), uniform(7)) for inputs in (2, 2, 6, 6, 5)]
    assert cost_of(qgru.convert(model), uniform(7)) == sum(parts[1:], parts[0])


def test_without_biases_there_are_none_to_store() -> None:
    with_, without = (cost_of(qgru.convert(nn.GRU(2, 3, bias=bias)), uniform(8)) for bias in (True, False))
    assert with_ == replace(without, weight_bits=without.weight_bits + 2 * 9 * 8)


def test_without_a_configuration_each_direction_has_its_own() -> None:
    gru = qgru.QuantGRU(2, 3, bidirectional=True)
    gru.adjust_quant_config("output.h", bitwidth=12, reverse=True)
    assert cost_of(gru).state_bits == 3 * (8 + 12)


def test_relative_to_int8_on_the_same_module() -> None:
    """The numbers of the recipe that the weights of the parts were chosen on."""
    module = qgru.convert(nn.GRU(1, 32))
    known = {"int8": 1.0, "w4a8": 0.69, "int8_mixed": 1.38}
    assert {name: round(relative_cost(module, qgru.load_config(name)), 2) for name in known} == known
    assert relative_cost(module, qgru.load_config("w8a16")) == pytest.approx(52.7, abs=0.05)
    assert relative_cost(module, uniform(8, **SUMS_16)) == pytest.approx(1.13, abs=0.005)
    module.load_bitwidth_config("w4a8")
    assert relative_cost(module) == relative_cost(module, qgru.load_config("w4a8"))


def test_the_parts_are_printed() -> None:
    assert str(Cost(80, 16, 24, 32, 5)) == "bytes: weights 10, state 2, live 3, tables 4; bit operations a step: 5"


def test_a_module_without_quantized_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear holds no quantized layer; call qgru.convert"):
        cost_of(nn.Linear(2, 2))
