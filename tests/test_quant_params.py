"""quant_params.json out and in; reading and adjusting single operators."""

import copy
import json
from pathlib import Path

import pytest
import torch

from qgru import QuantGRU
from qgru.grid import Grid
from tests.calibration.raw import observe
from tests.oracle import ACTIVATIONS, OPTIONAL, WEIGHTS
from tests.random_gru import random_gru

FIELDS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")


def calibrated(**options: object) -> QuantGRU:
    torch.manual_seed(2)
    gru = QuantGRU(3, 5, **{"num_layers": 2, "bidirectional": True, **options}).eval()
    gru.load_bitwidth_config(
        {
            "operator_config": {
                "gate.z_out": {"is_symmetric": False, "is_unsigned": True},
                "input.x": {"bitwidth": 11, "is_symmetric": False},
                "weight.R": {"bitwidth": 14},
            }
        }
    )
    gru.calibrating = True
    gru(torch.randn(9, 4, 3) + 0.5)
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru


def exported(gru: QuantGRU, path: Path, **options: object) -> dict:
    gru.export_quant_params(path, **options)
    return json.loads(path.read_text())


def all_grids(gru: QuantGRU) -> list[dict]:
    directions = (False, True) if gru.bidirectional else (False,)
    return [gru.grids(layer, reverse) for layer in range(gru.num_layers) for reverse in directions]


def section(layer: int, reverse: bool) -> str:
    return "operators" + "_reverse" * reverse + f"_l{layer}" * bool(layer)


@pytest.mark.parametrize("options", [{}, {"num_layers": 1}, {"bidirectional": False}, {"bias": False}])
def test_a_file_describes_the_module_and_every_operator(options: dict, tmp_path: Path) -> None:
    gru = calibrated(**options)
    content = exported(gru, tmp_path / "q.json")
    assert {name: content["model_info"][name] for name in FIELDS} == {name: getattr(gru, name) for name in FIELDS}
    assert content["model_info"]["gate_order"] == "rzn"
    directions = (False, True)[: 1 + gru.bidirectional]
    keys = {section(layer, reverse) for layer in range(gru.num_layers) for reverse in directions}
    assert {key for key in content if key.startswith("operators")} == keys
    assert "quantized_weights" not in json.dumps(content)
    for layer in range(gru.num_layers):
        for reverse in directions:
            entries = content[section(layer, reverse)]
            grids = gru.grids(layer, reverse)
            biases = () if gru.bias else ("weight.bw", "weight.br")
            for name in {*ACTIVATIONS, *WEIGHTS}.difference(biases):
                check_entry(entries[name.split(".")[1]], grids[name], per_channel=name in WEIGHTS)
            assert "Rh_add_br" not in entries


def check_entry(entry: dict, grid: Grid, per_channel: bool) -> None:
    assert entry["dtype"] == ("UINT" if grid.is_unsigned else "INT") + str(grid.bitwidth)
    assert entry["symmetric"] == grid.is_symmetric
    assert entry["enc_type"] == ("PER_CHANNEL" if per_channel else "PER_TENSOR")
    exponents = list(grid.exp2_inv) if per_channel else grid.exp2_inv
    assert entry["n"] == exponents
    zero_point = entry["zero_point"]
    assert set(zero_point) == {0} if isinstance(zero_point, list) else zero_point == grid.zero_point

    def pairs(value: object) -> list:
        return value if isinstance(value, list) else [value]

    for n, scale, low, high in zip(
        pairs(exponents), pairs(entry["scale"]), pairs(entry["real_min"]), pairs(entry["real_max"]), strict=True
    ):
        assert scale == 2.0**-n
        assert low == (grid.qmin - grid.zero_point) * scale and high == (grid.qmax - grid.zero_point) * scale


@pytest.mark.parametrize("seed", range(6))
def test_out_and_in_again_is_the_same_module(seed: int, tmp_path: Path) -> None:
    gru, _ = random_gru(seed, tmp_path / "in.json", range(2, 20), torch.float32)
    gru.export_quant_params(tmp_path / "out.json")
    settings = {name: getattr(gru, name) for name in FIELDS}
    other = QuantGRU(**settings).eval()
    other.load_state_dict({name: p for name, p in gru.named_parameters()}, strict=True)
    other.load_quant_params(tmp_path / "out.json")
    assert other.is_calibrated() and all_grids(other) == all_grids(gru)
    assert (
        other.bitwidth_config.operators["gate.z_pre"].bitwidth == gru.bitwidth_config.operators["gate.z_pre"].bitwidth
    )
    other.use_quantization = True
    x = torch.randn(4, 4, gru.input_size)
    assert torch.equal(gru(x)[0], other(x)[0])


def test_weights_are_written_as_integers_on_demand(tmp_path: Path) -> None:
    gru = calibrated()
    content = exported(gru, tmp_path / "q.json", include_weights=True)

    def integers_anywhere(node: object) -> list:
        if isinstance(node, dict):
            return [found for value in node.values() for found in integers_anywhere(value)]
        return [node] if isinstance(node, list) else []

    found = [json.dumps(v) for v in integers_anywhere({k: v for k, v in content.items() if k != "model_info"})]
    for layer in range(2):
        for reverse in (False, True):
            for integers in gru.quantized_weights(layer, reverse).values():
                assert json.dumps(integers.tolist()) in found
    assert '"quantized_weights' in (tmp_path / "q.json").read_text()
    before = all_grids(gru)
    gru.load_quant_params(tmp_path / "q.json")
    assert all_grids(gru) == before


def change(content: dict, function) -> dict:
    """A copy with every operator's entry passed through a function."""
    content = copy.deepcopy(content)
    for key, entries in content.items():
        if key.startswith("operators"):
            for entry in entries.values():
                function(entry)
    return content


def rename_n(entry: dict) -> None:
    entry["exp2_inv"] = entry.pop("n")


def only_scale(entry: dict) -> None:
    del entry["n"]


def only_essentials(entry: dict) -> None:
    for name in ("scale", "real_min", "real_max", "enc_type"):
        del entry[name]


@pytest.mark.parametrize("form", [rename_n, only_scale, only_essentials])
def test_other_forms_of_an_entry_load_as_well(form, tmp_path: Path) -> None:
    gru = calibrated()
    path = tmp_path / "q.json"
    path.write_text(json.dumps(change(exported(gru, path), form)))
    other = QuantGRU(3, 5, num_layers=2, bidirectional=True)
    other.load_quant_params(path)
    assert all_grids(other) == all_grids(gru)


def test_a_file_of_the_seed_project_is_reordered(tmp_path: Path) -> None:
    """No gate_order and no num_layers: per-channel lists are in the order z, r, n."""
    gru = calibrated(num_layers=1, bidirectional=False)
    path = tmp_path / "q.json"
    content = exported(gru, path)
    del content["model_info"]["gate_order"], content["model_info"]["num_layers"]
    for name in ("W", "R", "bw", "br"):
        for field, value in content["operators"][name].items():
            if isinstance(value, list):
                r, z, n = value[:5], value[5:10], value[10:]
                content["operators"][name][field] = [*z, *r, *n]
    path.write_text(json.dumps(content))
    other = QuantGRU(3, 5)
    other.load_quant_params(path)
    assert all_grids(other) == all_grids(gru)
    assert len(set(gru.grids()["weight.W"].exp2_inv)) > 1


def test_the_optional_operator_is_in_the_file_where_it_is_configured(tmp_path: Path) -> None:
    gru = QuantGRU(3, 5)
    gru.load_bitwidth_config({"operator_config": {OPTIONAL: {"bitwidth": 13}}})
    gru.calibrating = True
    gru(torch.randn(9, 4, 3))
    gru.calibrating = False
    gru.finalize_calibration()
    content = exported(gru, tmp_path / "q.json")
    assert content["operators"]["Rh_add_br"]["dtype"] == "INT13"
    other = QuantGRU(3, 5)
    other.load_quant_params(tmp_path / "q.json")
    assert all_grids(other) == all_grids(gru) and other.grids()[OPTIONAL].bitwidth == 13
    without = exported(calibrated(num_layers=1, bidirectional=False), tmp_path / "w.json")
    assert "Rh_add_br" not in without["operators"]
    other.load_quant_params(tmp_path / "w.json")
    assert other.grids()[OPTIONAL] == other.grids()["matmul.Rh"]


def test_get_quant_config_reads_what_grids_say() -> None:
    gru = calibrated()
    everything = gru.get_quant_config(layer=1, reverse=True)
    for name, grid in gru.grids(1, True).items():
        if name == OPTIONAL:
            continue
        want = {"bitwidth": grid.bitwidth, "is_symmetric": grid.is_symmetric, "is_unsigned": grid.is_unsigned,
                "exp2_inv": grid.exp2_inv, "zero_point": grid.zero_point, "scale": grid.scale}  # fmt: skip
        for spelling in (name, name.split(".")[1]):
            got = gru.get_quant_config(spelling, layer=1, reverse=True)
            assert set(got) == set(want)
            assert all(as_list(got[key]) == as_list(want[key]) for key in want)
        assert everything[name] == gru.get_quant_config(name, layer=1, reverse=True)
    assert gru.get_quant_config("input.h") == gru.get_quant_config("output.h")


def as_list(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def test_get_quant_config_before_calibration() -> None:
    gru = QuantGRU(3, 5)
    gru.set_all_bitwidth(12, is_symmetric=False)
    for name, config in gru.get_quant_config().items():
        assert config["bitwidth"] == (12 if name not in WEIGHTS else config["bitwidth"])
        assert config["is_symmetric"] is (name in WEIGHTS) and config["is_unsigned"] is False
        assert config["exp2_inv"] is config["zero_point"] is config["scale"] is None


def test_a_missing_bias_reads_zero() -> None:
    gru = calibrated(bias=False)
    for name in ("bw", "br"):
        config = gru.get_quant_config(name)
        assert set_of(config["exp2_inv"]) == {0} and set_of(config["zero_point"]) == {0}
    assert gru.quantized_weights()["weight.bw"].tolist() == [0] * 15


def set_of(value: object) -> set:
    return set(value) if isinstance(value, (list, tuple)) else {value}


def test_set_all_bitwidth() -> None:
    gru = QuantGRU(3, 5)
    gru.load_bitwidth_config(
        {"operator_config": {"gate.z_out": {"bitwidth": 4, "is_symmetric": False, "is_unsigned": True}}}
    )
    gru.set_all_bitwidth(10, is_symmetric=False)
    operators = gru.bitwidth_config.operators
    assert OPTIONAL not in operators
    for name in ACTIVATIONS:
        assert operators[name].bitwidth == 10 and not operators[name].is_symmetric
        assert operators[name].is_unsigned == (name == "gate.z_out")
    assert all(operators[name].is_symmetric for name in WEIGHTS)
    gru.load_bitwidth_config({"operator_config": {OPTIONAL: {"bitwidth": 4}}})
    gru.set_all_bitwidth(9)
    assert gru.bitwidth_config.operators[OPTIONAL].bitwidth == 9
    assert gru.bitwidth_config.operators["input.x"].is_symmetric


def test_verbose_says_what_was_set(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gru = QuantGRU(3, 5)
    acts = [
        lambda v: gru.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 6}}}, verbose=v),
        lambda v: gru.set_all_bitwidth(7, verbose=v),
        lambda v: (observe(gru, [(torch.randn(4, 3, 3), None, None)]), gru.finalize_calibration(verbose=v)),
        lambda v: gru.export_quant_params(tmp_path / "q.json", verbose=v),
        lambda v: gru.load_quant_params(tmp_path / "q.json", verbose=v),
    ]
    for verbose in (False, True):
        gru.reset_calibration()
        for act in acts:
            act(verbose)
            assert bool(capsys.readouterr().out.strip()) == verbose
