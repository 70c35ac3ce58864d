"""What targets take."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgru.search import Rules, load_rules
from tests.search.models import uniform

NPU = {"widths": {"default": [8, 16], "weight": {"W": [8], "R": [4, 8]}}, "products": [[8, 8], [16, 8]]}


def test_the_targets_that_ship() -> None:
    assert not load_rules("npu_8x8").violations(uniform(8))
    assert not load_rules("npu_8x16").violations(uniform(8, input__x=16, output__h=16, gate__z_out=16))
    assert not load_rules("fpga").violations(uniform(5, weight__bw=6, gate__g_pre=12, gate__g_out=16))
    assert load_rules(None) == load_rules("fpga")
    assert any("input.x has 16 bits; npu_8x8 takes 8" in text for text in load_rules("npu_8x8").violations(uniform(16)))


def test_every_violation_is_named() -> None:
    rules = Rules.from_mapping({**NPU, "max_table_bits": 2048}, "chip")
    config = uniform(8, output__h=16, weight__R=4, weight__bw=8, matmul__Wx=9, gate__z_out=16)
    assert rules.violations(config) == [
        "matmul.Wx has 9 bits; chip takes 8, 16",
        "output.h by weight.R is 16x4; chip multiplies 8x8, 16x8",
        "the table from gate.z_pre to gate.z_out has 4096 bits; chip holds 2048",
    ]


def test_biases_are_as_wide_as_their_weights() -> None:
    wide = Rules.from_mapping({"widths": {"default": [4, 8]}}, "chip")
    config = uniform(8, weight__br=4)
    assert wide.violations(config) == ["weight.br has 4 bits, less than weight.R's 8; chip wants as many"]
    assert not Rules.from_mapping({"widths": {"default": [4, 8]}, "wide_biases": False}).violations(config)


def test_operators_are_nested_dotted_or_short_and_a_file_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text("widths:\n  default: [8]\n  gate.z_pre: [16, 4]\n  Wx: [6]\n  op: {rRh: [7]}\n")
    rules = load_rules(path)
    picked = {name: rules.widths[name] for name in ("gate.z_pre", "matmul.Wx", "op.rRh", "output.h")}
    assert picked == {"gate.z_pre": (4, 16), "matmul.Wx": (6,), "op.rRh": (7,), "output.h": (8,)}
    assert rules.name == "chip" and rules == load_rules(rules)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": 3}, "holds 'tables'; expected widths, products"),
        ({"widths": [8]}, "widths is \\[8\\]; expected a mapping"),
        ({"widths": {"input.x": [8]}}, "widths of output.h is None; expected a list"),
        (
            {"widths": {"default": [8, 40]}},
            "widths of input.x is \\[8, 40\\]; expected a list of integers from 1 to 32",
        ),
        ({"widths": {"default": [8], "z_put": [8]}}, "unknown operator 'z_put'"),
        ({"products": [[8]]}, "products holds \\[8\\]; expected pairs"),
        ({"max_table_bits": 0}, "max_table_bits is 0; expected a positive integer"),
        ({"wide_biases": 1}, "wide_biases is 1; expected true or false"),
    ],
)
def test_what_are_no_rules_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules.from_mapping({**NPU, **change})


def test_an_unknown_target_lists_those_that_there_are() -> None:
    with pytest.raises(
        FileNotFoundError, match="'npu' is neither a file nor a target .targets: .*fpga, .*npu_4x8, npu_8x16, npu_8x8"
    ):
        load_rules("npu")
    with pytest.raises(TypeError, match="the target is 3; expected"):
        load_rules(3)  # type: ignore[arg-type]
