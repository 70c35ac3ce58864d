"""Bad input: the error names the thing and what was expected, and nothing is half-changed. NaN in gives NaN out."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from qgru import QuantGRU, load_config
from tests.calibration.raw import calibrate


def quantized(**options: object) -> QuantGRU:
    torch.manual_seed(4)
    gru = QuantGRU(3, 5, **{"batch_first": True, **options}).eval()
    gru.load_bitwidth_config({"operator_config": {"gate.z_out": {"is_symmetric": False, "is_unsigned": True}}})
    calibrate(gru, [(torch.randn(6, 8, 3, dtype=gru.weight_ih_l0.dtype), None, None)], "sqnr")
    gru.use_quantization = True
    return gru


def snapshot(gru: QuantGRU) -> tuple:
    """Everything a caller can see."""
    state = {name: value.clone() for name, value in gru.state_dict().items()}
    return (
        state,
        gru.bitwidth_config,
        (gru.use_quantization, gru.calibrating, gru.is_calibrated(), gru.has_observations()),
        (gru.calibration_method, gru.percentile_value, gru.export_mode, gru.export_format),
        gru.get_quant_config(),
    )


def refused(gru: QuantGRU, act: Callable[[QuantGRU], object], *named: str) -> None:
    """The call raises, its message holds every part named, and the module is as it was."""
    before = snapshot(gru)
    with pytest.raises((ValueError, TypeError, RuntimeError, FileNotFoundError)) as error:
        act(gru)
    for part in named:
        assert part in str(error.value), error.value
    after = snapshot(gru)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert after[1:] == before[1:]


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
        (lambda g: g.load_bitwidth_config("nowhere.json"), ["nowhere.json"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_otu": {}}}), ["gate.z_otu", "gate.z_out"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 40}}}), ["gate.z_out", "40"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": "x"}}}), ["gate.z_out"]),
        (lambda g: g.load_bitwidth_config({"operator_config": {"weight.R": {"is_symmetric": False}}}), ["weight.R"]),
        (lambda g: g.load_bitwidth_config(8), ["8"]),
        (lambda g: g.load_quant_params("nowhere.json"), ["nowhere.json"]),
        (lambda g: setattr(g, "calibration_method", "entropy"), ["calibration_method", "entropy", "sqnr"]),
        (lambda g: setattr(g, "percentile_value", 101), ["percentile_value", "101"]),
        (lambda g: setattr(g, "export_format", "qnn"), ["export_format", "qnn", "qdq"]),
    ],
)  # fmt: skip
def test_a_bad_setting(act: Callable, named: list[str], fresh: bool) -> None:
    gru = QuantGRU(3, 5, batch_first=True) if fresh else quantized()
    refused(gru, act, *named)


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
    refused(quantized(), lambda g: g.adjust_quant_config("x", **settings), *named)


def test_a_weight_needs_an_exponent_for_each_row() -> None:
    refused(quantized(), lambda g: g.adjust_quant_config("W", exp2_inv=[7] * 14), "weight.W", "14", "15")
    refused(quantized(), lambda g: g.adjust_quant_config("W", zero_point=1), "weight.W", "zero_point")


def test_a_width_that_pushes_the_exponent_off_its_range() -> None:
    gru = quantized()
    gru.adjust_quant_config("x", exp2_inv=60)
    refused(gru, lambda g: g.adjust_quant_config("x", bitwidth=32), "input.x", "84", "64")


@pytest.mark.parametrize(
    "act",
    [
        lambda g: g.set_all_bitwidth(4),
        lambda g: g.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 4}}}),
        lambda g: g.load_bitwidth_config("int8"),
    ],
)
def test_a_configuration_after_calibration_is_recalibrated_or_refused(act: Callable) -> None:
    """Never kept beside grids of another width."""
    gru = quantized()
    before = snapshot(gru)
    try:
        act(gru)
    except (RuntimeError, ValueError) as error:
        assert "calibrat" in str(error)
        assert all(torch.equal(before[0][name], value) for name, value in gru.state_dict().items())
        assert snapshot(gru)[1:] == before[1:]
        return
    gru(torch.randn(2, 3, 3))
    for name, config in gru.bitwidth_config.operators.items():
        grid = gru.grids()[name]
        assert (grid.bitwidth, grid.is_symmetric, grid.is_unsigned) == (
            config.bitwidth,
            config.is_symmetric,
            config.is_unsigned,
        )


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
    refused(gru, act, "calibrat")
    assert not list(tmp_path.iterdir())


def test_calibration_that_saw_no_data() -> None:
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    gru.calibrating = False
    refused(gru, QuantGRU.finalize_calibration, "calibrat", "data")
    gru.use_quantization = True
    refused(gru, lambda g: g(torch.randn(2, 3, 3)), "calibrat")
    gru.calibrating = True
    refused(gru, lambda g: g(torch.zeros(4, 0, 3)), "calibrat", "4, 0, 3")


# --- quant_params.json ---------------------------------------------------------------------------------------------


def written(tmp_path: Path, change: Callable[[dict], object] = lambda content: None, **options: object) -> Path:
    path = tmp_path / "params.json"
    quantized(**options).export_quant_params(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_layers": 2}, ["num_layers", "2", "1"]),
        ({"bidirectional": True}, ["bidirectional"]),
        ({"bias": False}, ["bias"]),
    ],
)
def test_a_file_of_another_module(options: dict, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, **options)
    for gru in (quantized(), QuantGRU(3, 5, batch_first=True)):
        refused(gru, lambda g: g.load_quant_params(path), path.name, *named)


@pytest.mark.parametrize(
    ("gru", "named"),
    [(QuantGRU(4, 5), ["input_size", "3", "4"]), (QuantGRU(3, 6), ["hidden_size", "5", "6"])],
)
def test_a_file_of_another_size(gru: QuantGRU, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path)
    refused(gru, lambda g: g.load_quant_params(path), path.name, *named)


def set_entry(op: str, **fields: object) -> Callable[[dict], object]:
    return lambda content: content["operators"][op].update(fields)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["operators"].pop("z_pre"), ["z_pre"]),
        (lambda c: c["operators"].update(zz_pre=c["operators"].pop("z_pre")), ["zz_pre", "z_pre"]),
        (lambda c: c.pop("operators"), ["operators"]),
        (lambda c: c.pop("model_info"), ["model_info"]),
        (lambda c: c.update(operators=[]), ["operators"]),
        (lambda c: c["model_info"].update(gate_order="zrx"), ["gate_order", "zrx"]),
        (lambda c: c["model_info"].update(gate_order=3), ["gate_order", "3"]),
        (lambda c: c["operators"]["W"].update(n=c["operators"]["W"]["n"][:-1]), ["W", "14", "15"]),
        (lambda c: c["operators"]["W"].update(zero_point=1), ["W", "zero_point"]),
        (set_entry("z_pre", n=65), ["z_pre", "65"]),
        (set_entry("z_pre", n=2.5), ["z_pre", "2.5"]),
        (set_entry("z_pre", n=None, scale=0.3), ["z_pre"]),
        (set_entry("z_pre", n=[1, 2]), ["z_pre"]),
        (set_entry("z_pre", dtype="INT33"), ["z_pre", "33"]),
        (set_entry("z_pre", dtype="FLOAT8"), ["z_pre", "FLOAT8"]),
        (set_entry("z_pre", dtype=8), ["z_pre", "8"]),
        (set_entry("z_pre", symmetric=False, zero_point=1000), ["z_pre", "zero_point", "1000"]),
        (set_entry("z_pre", symmetric=True, zero_point=1), ["z_pre", "zero_point", "1"]),
        (set_entry("z_pre", symmetric="yes"), ["z_pre", "yes"]),
        (lambda c: c["operators"].update(z_pre=3), ["z_pre", "3"]),
        (lambda c: [c["operators"]["x"].pop("n"), c["operators"]["x"].update(scale=0.3)], ["x", "scale", "0.3"]),
        (lambda c: [c["operators"]["x"].pop(key) for key in ("n", "scale")], ["x", "scale"]),
    ],
)  # fmt: skip
def test_a_broken_entry(change: Callable, named: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, change)
    refused(quantized(), lambda g: g.load_quant_params(path), path.name, *named)


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9, 0.999])
def test_a_truncated_file(keep: float, tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(len(text) * keep) if keep < 1 else 1])
    refused(quantized(), lambda g: g.load_quant_params(path), path.name)
    with pytest.raises(ValueError, match=path.name):
        load_config(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
def test_a_file_of_another_kind(content: str, tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(content)
    refused(quantized(), lambda g: g.load_quant_params(path), path.name)


def test_an_export_to_nowhere_leaves_nothing(tmp_path: Path) -> None:
    refused(quantized(), lambda g: g.export_quant_params(tmp_path / "no" / "folder" / "q.json"), "folder")


@pytest.mark.parametrize("change", ["missing", "shape", "grid"])
def test_a_state_dict_that_does_not_fit(change: str) -> None:
    gru, state = quantized(), copy.deepcopy(quantized().state_dict())
    name = next(name for name in state if name.startswith("quant_grids"))
    if change == "missing":
        del state[name]
    elif change == "shape":
        state[name] = state[name][..., :-1]
    else:
        state = QuantGRU(3, 6).state_dict()
    with pytest.raises(RuntimeError, match="weight" if change == "grid" else name):
        gru.load_state_dict(state, strict=True)


# --- input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda g: g(torch.randn(2, 6, 4)), ["3", "4"]),
        (lambda g: g(torch.randn(2, 6, 3, 1)), ["4"]),
        (lambda g: g(torch.randn(3)), ["1"]),
        (lambda g: g(torch.randn(2, 0, 3)), ["time"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 3, 5)), ["1, 2, 5", "1, 3, 5"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 6)), ["1, 2, 5", "1, 2, 6"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(2, 2, 5)), ["1, 2, 5", "2, 2, 5"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 5)), ["hx"]),
        (lambda g: g(torch.randn(6, 3), torch.randn(1, 2, 5)), ["hx"]),
        (lambda g: g(torch.randn(2, 6, 3).double()), ["float64", "float32"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 5).double()), ["hx", "float64", "float32"]),
        (lambda g: g(torch.randint(5, (2, 6, 3))), ["int64"]),
        (lambda g: g(torch.randn(2, 6, 3, device="meta")), ["meta", "cpu"]),
        (lambda g: g(torch.randn(2, 6, 3), torch.randn(1, 2, 5, device="meta")), ["meta", "cpu"]),
        (lambda g: g(pack_padded_sequence(torch.randn(2, 6, 4), torch.tensor([6, 2]), True)), ["3", "4"]),
    ],
)  # fmt: skip
def test_wrong_input_to_a_quantized_layer(act: Callable, named: list[str]) -> None:
    refused(quantized(), act, *named)
