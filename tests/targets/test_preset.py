"""A preset's bit widths as a target takes them."""

from __future__ import annotations

import pytest

import qgru
from qgru.schema import OPTIONAL
from qgru.targets import preset


def changed(target: str | dict, base: str) -> dict[str, int]:
    own = qgru.load_config(base).operators
    return {n: o.bitwidth for n, o in preset(target, base).operators.items() if o.bitwidth != own[n].bitwidth}


@pytest.mark.parametrize(
    ("target", "base", "expected"),
    [
        ("npu_8x8", "int8", {}),
        ("npu_8x8", "int8_mixed", {"gate.g_pre": 8}),  # 16 bits of output leave 256 entries
        ("npu_8x8", "w8a16", {"input.x": 8, "output.h": 8, "gate.z_pre": 8, "gate.r_pre": 8, "gate.g_pre": 8}),
        ("npu_8x8", "w4a8", {"weight.W": 8, "weight.R": 8}),
        ("qnn_htp", "int8_mixed", {"gate.g_pre": 16}),
        ("qnn_htp", "w4a8", {}),
        ("fpga", "w8a16", {"gate.z_pre": 12, "gate.r_pre": 12, "gate.g_pre": 12}),
        ({"widths": {"default": [8, 16]}, "products": [[16, 16]]}, "int8",
         {"input.x": 16, "weight.W": 16, "output.h": 16, "weight.R": 16, "weight.bw": 16, "weight.br": 16}),
        ({"widths": {"default": [8, 16]}, "max_table_bits": 2048}, "int16",
         {f"gate.{g}_{end}": 8 for g in "zrg" for end in ("pre", "out")}),
    ],
)  # fmt: skip
def test_only_what_has_to_changes(target: str | dict, base: str, expected: dict[str, int]) -> None:
    assert changed(target, base) == expected


def test_esp_dl_s_preset_has_eight_bits_where_products_are_and_sixteen_elsewhere() -> None:
    widths = {name: operator.bitwidth for name, operator in preset("esp_dl").operators.items()}
    eight = {name for name, width in widths.items() if width == 8}
    assert eight == {"input.x", "output.h", "weight.W", "weight.R"} and set(widths.values()) == {8, 16}


def test_signs_are_the_target_s() -> None:
    kinds = {(o.is_symmetric, o.is_unsigned) for o in preset("tensorrt").operators.values()}
    assert kinds == {(True, False)}
    assert preset("c_cortex_m4") == qgru.load_config("int8")


def test_what_is_configured_stays_so() -> None:
    base = {"default_config": {"disable_quantization": True}, "operator_config": {OPTIONAL: {"bitwidth": 12}}}
    config = preset("qnn_htp", base)
    assert config.disable_quantization and config.operators[OPTIONAL].bitwidth == 16


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"products": [[16, 8]]}, "it has no product for input.x by weight.W"),
        ({"max_table_bits": 100}, "tables of 100 bits, which no widths of gate.z_pre and gate.z_out fit"),
    ],
)
def test_rules_that_allow_nothing_are_an_error(rules: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset({"widths": {"default": [8]}, **rules})


def test_a_bias_that_can_not_be_as_wide_is_an_error() -> None:
    with pytest.raises(ValueError, match="it has no product for input.x by weight.W"):
        preset({"widths": {"default": [8], "weight.W": [16]}})
