"""Bad settings and input: the error names the thing and what was expected, and nothing is half-changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from qgru import QuantGRU
from qgru.schema import OPTIONAL
from tests.refusal import quantized, refused


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda g: g.adjust_quant_config("z_otu", bitwidth=4), ["z_otu", "z_out"]),
        (lambda g: g.get_quant_config("gate.zout"), ["gate.zout", "z_out"]),
        (lambda g: g.get_quant_config("update_gate_output"), ["update_gate_output", "gate.z_out"]),
        (lambda g: g.adjust_quant_config("z_out", bitwidth=0), ["z_out", "bitwidth", "0", "32"]),
        (lambda g: g.adjust_quant_config("z_out", bitwidth=33), ["z_out", "bitwidth", "33", "32"]),
        (lambda g: g.adjust_quant_config("x", bitwidth="8"), ["x", "bitwidth", "'8'"]),
        (lambda g: g.adjust_quant_config("x", bitwidth=7.5), ["x", "bitwidth", "7.5"]),
        (lambda g: g.adjust_quant_config("x", bitwidth=True), ["x", "bitwidth", "True"]),
        (lambda g: g.adjust_quant_config("x", is_symmetric="no"), ["x", "is_symmetric", "no"]),
        (lambda g: g.adjust_quant_config("W", is_symmetric=False), ["weight.W", "symmetric"]),
        (lambda g: g.adjust_quant_config("x", bitwidth=4, layer=1), ["layer", "1"]),
        (lambda g: g.adjust_quant_config("x", bitwidth=4, layer=-1), ["layer", "-1"]),
        (lambda g: g.adjust_quant_config("x", bitwidth=4, reverse=True), ["reverse"]),
        (lambda g: g.get_quant_config("x", layer=3), ["layer", "3"]),
        (lambda g: g.get_quant_config("x", reverse=True), ["reverse"]),
        (lambda g: g.set_all_bitwidth(0), ["bitwidth", "0"]),
        (lambda g: g.set_all_bitwidth(33), ["bitwidth", "33"]),
        (lambda g: g.set_all_bitwidth("8"), ["bitwidth", "'8'"]),
        (lambda g: g.set_all_bitwidth(8, is_symmetric=None), ["is_symmetric", "None"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_otu": {}}}), ["gate.z_otu", "gate.z_out"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 40}}}), ["gate.z_out", "40"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": "x"}}}), ["gate.z_out"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"weight.R": {"is_symmetric": False}}}), ["weight.R"]),
        (lambda g: setattr(g, "calibration_method", "entropy"), ["calibration_method", "entropy", "sqnr"]),
        (lambda g: setattr(g, "percentile_value", 101), ["percentile_value", "101"]),
        (lambda g: setattr(g, "export_format", "qnn"), ["export_format", "qnn", "qdq"]),
    ],
)  # fmt: skip
def test_a_bad_setting(act: Callable, named: list[str], fresh: bool) -> None:
    gru = QuantGRU(3, 5, batch_first=True) if fresh else quantized()
    refused(gru, act, ValueError, *named)


@pytest.mark.parametrize(
    ("act", "kind", "named"),
    [
        (lambda g: g.load_bitwidth_config("nowhere.json"), FileNotFoundError, "nowhere.json"),
        (lambda g: g.load_quant_params("nowhere.json"), FileNotFoundError, "nowhere.json"),
        (lambda g: g.load_bitwidth_config(8), TypeError, "8"),
    ],
)
def test_what_is_no_configuration_at_all(act: Callable, kind: type[Exception], named: str) -> None:
    for gru in (QuantGRU(3, 5, batch_first=True), quantized()):
        refused(gru, act, kind, named)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"is_symmetric": False, "zero_point": 128}, ["input.x", "zero_point", "128", "127"]),
        ({"is_symmetric": False, "zero_point": -129}, ["input.x", "zero_point", "-129", "-128"]),
        ({"is_symmetric": False, "zero_point": 1.0}, ["input.x", "zero_point", "1.0"]),
        ({"is_symmetric": True, "zero_point": 3}, ["input.x", "zero_point", "3"]),
        ({"is_symmetric": False, "bitwidth": 4, "zero_point": 8}, ["input.x", "zero_point", "8", "7"]),
        ({"exp2_inv": 65}, ["input.x", "exp2_inv", "65", "64"]),
        ({"exp2_inv": -65}, ["input.x", "exp2_inv", "-65"]),
        ({"exp2_inv": 1.5}, ["input.x", "exp2_inv", "1.5"]),
        ({"exp2_inv": [1, 2]}, ["input.x", "exp2_inv"]),
    ],
)
def test_a_grid_off_the_grid(settings: dict, named: list[str]) -> None:
    refused(quantized(), lambda g: g.adjust_quant_config("x", **settings), ValueError, *named)


def test_a_weight_needs_an_exponent_for_each_row() -> None:
    refused(quantized(), lambda g: g.adjust_quant_config("W", exp2_inv=[7] * 14), ValueError, "weight.W", "14", "15")
    refused(quantized(), lambda g: g.adjust_quant_config("W", zero_point=1), ValueError, "weight.W", "zero_point")


def test_a_width_that_pushes_the_exponent_off_its_range() -> None:
    gru = quantized()
    gru.adjust_quant_config("x", exp2_inv=60)
    refused(gru, lambda g: g.adjust_quant_config("x", bitwidth=32), ValueError, "input.x", "84", "64")


CONFIGURATIONS = [
    lambda g: g.set_all_bitwidth(4),
    lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 4}}}),
    lambda g: g.load_bitwidth_config("int8"),
]


@pytest.mark.parametrize("act", CONFIGURATIONS)
def test_a_configuration_after_calibration_makes_new_grids(act: Callable) -> None:
    """Never kept beside grids of another width."""
    gru = quantized()
    act(gru)
    assert not gru.is_calibrated()
    gru(torch.randn(2, 3, 3))
    assert {
        name: grid.config for name, grid in gru.grids().items() if name != OPTIONAL
    } == gru.bitwidth_config.operators


@pytest.mark.parametrize("act", CONFIGURATIONS)
def test_a_configuration_without_observations_to_make_grids_of_is_refused(act: Callable, tmp_path: Path) -> None:
    gru = quantized()
    gru.export_quant_params(tmp_path / "q.json")
    gru.load_quant_params(tmp_path / "q.json")
    refused(gru, act, RuntimeError, "observed", "reset_calibration")


@pytest.mark.parametrize(
    "act",
    [
        lambda g: g(torch.randn(2, 3, 3)),
        lambda g: g.finalize_calibration(),
        lambda g: g.refresh_weight_grids(),
        lambda g: g.grids(),
        lambda g: g.quantized_weights(),
        lambda g: g.export_quant_params("unwritten.json"),
        lambda g: g.adjust_quant_config("x", exp2_inv=3),
    ],
)
def test_quantized_use_before_calibration(act: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gru = QuantGRU(3, 5, batch_first=True)
    gru.use_quantization = True
    refused(gru, act, RuntimeError, "calibrat")
    assert not list(tmp_path.iterdir())


def test_calibration_that_saw_no_data() -> None:
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    gru.calibrating = False
    refused(gru, QuantGRU.finalize_calibration, RuntimeError, "calibrat", "data")
    gru.use_quantization = True
    refused(gru, lambda g: g(torch.randn(2, 3, 3)), RuntimeError, "calibrat")
    gru.calibrating = True
    refused(gru, lambda g: g(torch.zeros(4, 0, 3)), ValueError, "calibrat", "4, 0, 3")


def without_grids(state: dict) -> dict:
    return {name: value for name, value in state.items() if name != "quant_grids"}


def with_short_rows(state: dict) -> dict:
    return {**state, "quant_grids": state["quant_grids"][..., :-1]}


def of_another_size(state: dict) -> dict:
    return QuantGRU(3, 6).state_dict()


@pytest.mark.parametrize(
    ("change", "named"), [(without_grids, "quant_grids"), (with_short_rows, "quant_grids"), (of_another_size, "weight")]
)
def test_a_state_dict_that_does_not_fit(change: Callable, named: str) -> None:
    with pytest.raises(RuntimeError, match=named):
        quantized().load_state_dict(change(quantized().state_dict()))


@pytest.mark.parametrize(
    ("act", "kind", "named"),
    [
        (lambda g: g(torch.randn(2, 6, 4)), RuntimeError, ["3", "4"]),
        (lambda g: g(torch.randn(2, 6, 3, 1)), ValueError, ["4"]),
        (lambda g: g(torch.randn(3)), ValueError, ["1"]),
        (lambda g: g(torch.randn(2, 0, 3)), RuntimeError, ["time"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 3, 5)), RuntimeError, ["1, 2, 5", "1, 3, 5"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 6)), RuntimeError, ["1, 2, 5", "1, 2, 6"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(2, 2, 5)), RuntimeError, ["1, 2, 5", "2, 2, 5"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 5)), RuntimeError, ["hx"]),
        (lambda g: g(torch.randn(6, 3), torch.randn(1, 2, 5)), RuntimeError, ["hx"]),
        (lambda g: g(torch.randn(2, 6, 3).double()), ValueError, ["float64", "float32"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 5).double()), ValueError, ["hx", "float64", "float32"]),
        (lambda g: g(torch.randint(5, (2, 6, 3))), ValueError, ["int64"]),
        (lambda g: g(torch.randn(2, 6, 3, device="meta")), RuntimeError, ["meta", "cpu"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 5, device="meta")), RuntimeError, ["meta", "cpu"]),
        (lambda g: g(pack_padded_sequence(torch.randn(2, 6, 4), torch.tensor([6, 2]), True)), RuntimeError, ["3", "4"]),
    ],
)  # fmt: skip
def test_wrong_input_to_a_quantized_layer(act: Callable, kind: type[Exception], named: list[str]) -> None:
    refused(quantized(), act, kind, *named)
