"""Bytes and multiplications of small layers, counted by hand."""

from __future__ import annotations

from torch import nn

import qgru
from qgru import QuantGRU
from qgru.targets import TargetCost, cost_table

CONFIG = {
    "operator_config": {
        "weight": {"W": {"bitwidth": 3}, "R": {"bitwidth": 5}, "bw": {"bitwidth": 8}, "br": {"bitwidth": 12}},
        "output.h": {"bitwidth": 12},
        "gate.z_pre": {"bitwidth": 4},
        "gate.z_out": {"bitwidth": 9},
    }
}


def layer(**options: object) -> QuantGRU:
    gru = QuantGRU(3, 4, **options)
    gru.load_bitwidth_config(CONFIG)
    return gru


MACS = {"8x3": 36, "12x5": 48, "8x8": 4, "9x12": 4, "9x8": 4}


def test_bits_where_a_target_stores_them_as_they_are() -> None:
    weights, tables = 12 * (3 * 3 + 4 * 5 + 8 + 12), 9 * 16 + 2 * 8 * 256
    assert cost_table(layer(), "fpga") == TargetCost(-(-weights // 8), 4 * 12 // 8, tables // 8, MACS)


def test_containers_where_a_target_has_some() -> None:
    weights, tables = 12 * (3 * 4 + 4 * 8 + 8 + 16), 16 * 16 + 2 * 8 * 256  # W packed, R in int8, h and z_out in int16
    assert cost_table(layer(), "c_cortex_m4") == TargetCost(weights // 8, 4 * 16 // 8, tables // 8, MACS)


def test_a_target_with_functions_of_its_own_has_no_tables() -> None:
    assert cost_table(layer(), "tensorrt") == TargetCost(12 * (3 + 4 + 2) * 4, 4 * 4, 0, MACS)
    assert cost_table(layer(), "qnn_htp").table_bytes == cost_table(layer(), "esp_dl").table_bytes == 0


def test_layers_and_directions_add_up() -> None:
    gru = layer(num_layers=2, bidirectional=True, bias=False)
    weights = 2 * 12 * (3 * 4 + 4 * 8) + 2 * 12 * (8 * 4 + 4 * 8)  # the second layer takes both directions
    found = cost_table(nn.Sequential(gru), "c_cortex_m55")
    assert found.weight_bytes == weights // 8 and found.state_bytes == 4 * 4 * 2
    assert found.macs["8x3"] == 2 * 12 * 3 + 2 * 12 * 8 and found.macs["12x5"] == 4 * 48


def test_grids_of_one_direction_count_there() -> None:
    gru = qgru.QuantGRU(3, 4, num_layers=2)
    gru.load_bitwidth_config("int8")
    before = cost_table(gru, "fpga")
    gru.adjust_quant_config("weight.R", bitwidth=4, layer=1)
    after = cost_table(gru, "fpga")
    assert before.weight_bytes - after.weight_bytes == 48 * 4 // 8
    assert after.macs == {"8x8": before.macs["8x8"] - 48, "8x4": 48}


def test_it_reads_well() -> None:
    assert str(cost_table(layer(), "c_cortex_m4")) == (
        "weights 102 bytes, state 8, tables 544; multiplications a step: 36 of 8x3 bits, 48 of 12x5 bits, "
        "4 of 8x8 bits, 4 of 9x12 bits, 4 of 9x8 bits"
    )
