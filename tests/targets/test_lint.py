"""What each target does with what: every claim of every file is met by a case here, and ends where it says."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import nn

import qgru
from qgru import QuantGRU
from qgru.schema import ACTIVATIONS, OPERATORS, OPTIONAL
from qgru.targets import Problem, check, describe, lint, load_target, preset
from qgru.targets.target import target_names
from tests.calibrated import calibrated

INNER = [name for name in ACTIVATIONS if name not in ("input.x", "output.h", OPTIONAL)]
CONFIGURED = [name for name in OPERATORS if name != OPTIONAL]
PRE, OUT = ([f"gate.{gate}_{end}" for gate in "zrg"] for end in ("pre", "out"))
PRODUCTS = ["matmul.Wx", "matmul.Rh"]
ZERO_POINTS = {"operator_config": {"matmul.Wx": {"bitwidth": 8, "is_symmetric": False}}}
ZERO_POINTS_16 = {
    "operator_config": {n: {"bitwidth": 16, "is_symmetric": n != "matmul.Wx"} for n in OPERATORS if n != OPTIONAL}
}


class Case(NamedTuple):
    """A layer, and what a target does with it."""

    target: str
    config: str | dict
    effect: str
    does: str
    operators: list[str]  # none: the layer
    source: str
    verified: str = "by documentation"
    bidirectional: bool = False


CASES = [
    Case(
        "qnn_htp", "w8a16", "rounded elsewhere", "385 of 640", ["input.x", "output.h", *INNER], "docs/targets.md", "run"
    ),
    Case("qnn_htp", "int8", "rounded elsewhere", "not finalized", ["input.x", "output.h"], "docs/targets.md", "run"),
    Case("qnn_htp", "w8a16", "rounded elsewhere", "Gru operator", INNER, "htp_opdef_version_history"),
    Case(
        "qnn_htp", "w4a8", "rounded elsewhere", "4-bit weights", ["weight.W", "weight.R"], "htp_opdef_version_history"
    ),
    Case("qnn_htp", "w8a16", "refused", "reverse direction", [], "onnxruntime-qnn/pull/721", bidirectional=True),
    Case("tensorrt", ZERO_POINTS, "refused", "y_zero_point", ["matmul.Wx"], "onnx-tensorrt"),
    Case("tensorrt", "int8", "refused", "UINT8", ["gate.z_out", "gate.r_out"], "work-with-quantized-types"),
    Case("tensorrt", "int8", "float", "FP32", CONFIGURED, "onnx-tensorrt"),
    Case("esp_dl", "int16", "rounded elsewhere", "one exponent each", ["weight.W", "weight.R"], "EspdlQuantizer.py"),
    Case("esp_dl", "int16", "rounded elsewhere", "both biases", ["weight.bw", "weight.br"], "dl_module_gru.hpp"),
    Case("esp_dl", "int16", "rounded elsewhere", "8 fractional bits, whatever", [*PRODUCTS, *PRE], "dl_module_gru.hpp"),
    Case("esp_dl", "int16", "float", "blended in float", [*OUT, *INNER[-3:]], "dl_module_gru.hpp"),
    Case(
        "esp_dl", "int16", "rounded elsewhere", "half up", ["input.x", "output.h", *PRODUCTS], "operator_support_state"
    ),
    Case("esp_dl", ZERO_POINTS_16, "rounded elsewhere", "zero point", ["matmul.Wx"], "operator_support_state"),
    Case("esp_dl", "int16", "refused", "one direction", [], "dl_module_gru.hpp", bidirectional=True),
    Case("hls", ZERO_POINTS, "exact", "no zero point", ["matmul.Wx"], "docs/targets.md", "run"),
    Case("hls", "w8a16", "exact", "32 block RAMs", PRE, "ug573"),
    Case("hls", "int8", "refused", "one time step", [], "docs/targets.md", "run", bidirectional=True),
    Case("c_cortex_m4", "w8a16", "exact", "128 KiB", PRE, "docs/targets.md"),
    Case("c_cortex_m4", "int8", "exact", "model_run", [], "docs/targets.md", bidirectional=True),
    Case("c_cortex_m55", "w8a16", "exact", "128 KiB", PRE, "docs/targets.md"),
    Case("c_cortex_m55", "int8", "exact", "model_run", [], "docs/targets.md", bidirectional=True),
    Case("onnxruntime", "int8_mixed", "exact", "behind a Clip", ["gate.g_pre"], "docs/targets.md", "run"),
]


@cache
def layer(name: str, bidirectional: bool) -> QuantGRU:
    config = {"zero": ZERO_POINTS, "zero 16": ZERO_POINTS_16}.get(name, name)
    gru = calibrated(4, 3, config, bidirectional=bidirectional)
    with torch.no_grad():
        for matrix in (gru.weight_ih_l0, gru.weight_hh_l0):
            matrix[0] *= 0.01  # a row with an exponent of its own
    gru.refresh_weight_grids()
    return gru


def of(case: Case) -> QuantGRU:
    name = case.config if isinstance(case.config, str) else "zero" if case.config is ZERO_POINTS else "zero 16"
    return layer(name, case.bidirectional)


def met(case: Case) -> list[Problem]:
    return [problem for problem in lint(of(case), case.target) if case.does in problem.does]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.does}")
def test_a_claim_is_made_of_what_it_is_about(case: Case) -> None:
    found = met(case)
    directions = 2 if case.bidirectional and case.operators else 1
    assert sorted(problem.operator or "" for problem in found) == sorted((case.operators or [""]) * directions)
    for problem in found:
        assert problem.effect == case.effect and problem.verified == case.verified
        assert case.source in problem.source and problem.date and problem.instead
        expected = of(case).grids()[problem.operator] if problem.operator else None
        assert problem.grid == expected


def test_no_claim_is_without_a_case() -> None:
    claimed = {(name, claim.does) for name in target_names() for claim in load_target(name).claims}
    assert claimed == {(case.target, problem.does) for case in CASES for problem in met(case)}


FORBIDDEN = {
    ("fpga", "int8_mixed"): [],
    ("fpga", "w8a16"): PRE * 2,  # their widths, and their tables
    ("npu_8x8", "int8"): [],
    ("npu_8x8", "int8_mixed"): ["gate.g_pre"] * 2,
    ("npu_8x8", "w4a8"): ["weight.W", "weight.R", "input.x", "output.h"],
    ("npu_8x8", "w8a16"): ["input.x", "output.h", "input.x", "output.h", *PRE],
    ("npu_8x16", "w8a16"): PRE,
    ("qnn_htp", "int8"): [],
    ("qnn_htp", "w8a16"): [],
    ("qnn_htp", "int8_mixed"): ["gate.g_pre"],
    ("tensorrt", "w4a8"): ["gate.z_out", "gate.r_out"],
    ("esp_dl", "int16"): [],
    ("esp_dl", "int8"): ["weight.bw", "weight.br", *INNER],
    ("hls", "int16"): [],
    ("c_cortex_m4", "int16"): [],
    ("c_cortex_m55", "w4a8"): [],
    ("onnxruntime", "int8_mixed"): [],
}


@pytest.mark.parametrize(("target", "config"), FORBIDDEN)
def test_which_presets_a_target_takes(target: str, config: str) -> None:
    gru = layer(config, False)
    refused = [problem for problem in lint(gru, target) if problem.effect == "refused"]
    assert sorted(problem.operator for problem in refused) == sorted(FORBIDDEN[target, config])
    assert {problem.source for problem in refused} <= {
        load_target(target).source,
        *(claim.source for claim in load_target(target).claims),
    }
    if not refused:
        assert {problem.effect for problem in check(gru, target)} <= {"rounded elsewhere", "float"}
        return
    with pytest.raises(ValueError, match=f"{target} does not take the model:\n") as error:
        check(gru, target)
    assert all(problem.operator in str(error.value) for problem in refused)


def test_what_to_set_instead_of_what_is_forbidden() -> None:
    (width, table) = lint(layer("int8_mixed", False), "npu_8x8")
    assert (
        width.does == "gate.g_pre has 10 bits; npu_8x8 takes 8, 16"
        and width.instead == "operator_config.gate.g_pre.bitwidth=8"
    )
    assert table.does.startswith("the table from gate.g_pre to gate.g_out has 16384 bits")
    assert table.instead == "operator_config.gate.g_pre.bitwidth=8 and operator_config.gate.g_out.bitwidth=16"


@pytest.mark.parametrize("name", target_names())
def test_a_target_s_own_presets_are_not_refused(name: str) -> None:
    target, gru = load_target(name), QuantGRU(3, 4)
    for base in ("int8", "int8_mixed", "w4a8", "w8a16", "int16"):
        config = preset(target, base)
        assert target.rules.violations(config) == [] and preset(target, config) == config
        lossy = [problem for problem in lint(gru, target, config) if problem.effect != "exact"]
        assert check(gru, target, config) == lossy


def test_what_is_done_as_said_is_no_problem_any_more() -> None:
    gru = calibrated(4, 3, "int16")
    for name in (*PRODUCTS, *PRE, "weight.bw", "weight.br"):
        gru.adjust_quant_config(name, exp2_inv=8)
    for name in ("weight.W", "weight.R"):
        gru.adjust_quant_config(name, exp2_inv=min(gru.grids()[name].exponents))
    left = {problem.operator for problem in lint(gru, "esp_dl") if "half up" not in problem.does}
    assert left == {*OUT, *INNER[-3:]}


def test_before_calibration_what_depends_on_exponents_is_a_problem() -> None:
    gru = QuantGRU(3, 4)
    own = gru.bitwidth_config
    found = {problem.operator: problem for problem in lint(gru, "esp_dl", "int16") if "exponent each" in problem.does}
    assert set(found) == {"weight.W", "weight.R"}
    assert found["weight.W"].grid == qgru.load_config("int16").operators["weight.W"]
    assert gru.bitwidth_config == own


def test_problems_say_where_they_are() -> None:
    model = nn.ModuleDict({"encoder": nn.GRU(3, 4, num_layers=2), "head": nn.GRU(4, 4, bias=False)})
    problems = lint(qgru.convert(model), "tensorrt")
    assert {problem.layer for problem in problems} == {"encoder (layer 0)", "encoder (layer 1)", "head"}
    biases = {problem.layer for problem in problems if problem.operator in ("weight.bw", "weight.br")}
    assert biases == {"encoder (layer 0)", "encoder (layer 1)"}


def test_biases_that_are_not_there_are_not_refused() -> None:
    refused = {
        problem.operator for problem in lint(QuantGRU(3, 4, bias=False), "esp_dl") if problem.effect == "refused"
    }
    assert refused == {"gate.z_pre", "gate.r_pre", "gate.g_pre", *PRODUCTS, *OUT, *INNER[-3:]}
    narrow = {"widths": {"default": [4, 8]}}
    config = {"operator_config": {"weight.bw": {"bitwidth": 4}}}
    assert lint(QuantGRU(3, 4), narrow, config) and not lint(QuantGRU(3, 4, bias=False), narrow, config)


def test_a_claim_and_a_source_are_told_once() -> None:
    (direction, *tables) = lint(layer("w8a16", True), "c_cortex_m4")
    assert describe([direction, *tables]).splitlines() == [
        "exact: QuantGRU: a reverse direction wants the whole sequence, so there is model_run and no model_step; "
        "instead: bidirectional=False for a stream [1]",
        "exact: gate.z_pre, gate.r_pre, gate.g_pre of QuantGRU (layer 0), QuantGRU (layer 0, reverse): a function over "
        "13 to 16 bits takes up to 128 KiB of flash for each gate where its output has as many; instead: 8 to 12 bits; "
        "or an output of 8 bits, whose thresholds take 512 bytes [1]",
        "[1] docs/targets.md#c-on-a-microcontroller, 2026-11-21, by documentation",
    ]
    assert str(tables[0]).startswith("exact: gate.z_pre of QuantGRU (layer 0): ")
    assert describe(lint(layer("int8_mixed", False), "npu_8x8")).endswith(
        "\n[1] conf/target/npu_8x8.yaml, by documentation"
    )


def test_a_float_model_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no quantized layer"):
        lint(nn.Linear(2, 2), "hls")
