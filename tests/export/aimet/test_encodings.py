"""Encodings say what the grids say, and as quantizers in the graph they compute the layer's integers.

AIMET itself puts them there where ``aimet-onnx`` is installed; a second way, which needs only ONNX, does so everywhere.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from qgru import Grid, QuantGRU
from qgru.export import export_aimet, export_layers, formats
from qgru.export.aimet.encodings import encodings
from qgru.export.aimet.quantizers import with_quantizers
from qgru.export.onnx.runtime import Run
from qgru.export.onnx.step import stream
from qgru.ops import backends
from qgru.schema import BIASES, OPERATORS
from tests.calibrated import calibrated, quantize
from tests.export.models import operators

VERSIONS = ("1.0.0", "2.0.0")
LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
BIT_WIDTHS = (4, 8, 16)


def by_aimet(proto: Any, content: dict) -> Any:
    quantsim = pytest.importorskip("aimet_onnx.quantsim")
    return quantsim.encodings_to_onnx_qdq(proto, content, prequantize_constants=True)


WAYS = {"qgru": with_quantizers, "aimet": by_aimet}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Any, dict], Any]:
    return WAYS[request.param]


def random_layer(seed: int, **options: Any) -> QuantGRU:
    """Zero points, unsigned grids and the three widths at random, on every activation."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    config = {}
    for name, operator in OPERATORS.items():
        config[name] = {"bitwidth": BIT_WIDTHS[1 + draw(2)] if name != "gate.g_pre" else 8}
        if operator.is_weight:
            config[name] = {"bitwidth": BIT_WIDTHS[draw(2) if name not in BIASES else 1]}
        elif name not in ("output.h", "input.x"):
            config[name] |= {"is_symmetric": draw(2) == 0}
            config[name]["is_unsigned"] = draw(2) == 0 and (not config[name]["is_symmetric"] or name.endswith("_out"))
    return calibrated(9, 5, {"operator_config": config}, **options)


def differing(gru: QuantGRU, proto: Any) -> tuple[int, int]:
    """How many integers of a stream of 40 steps differ from the reference's sequence, at both levels, of how many."""
    x, state, wrong, count = torch.randn(40, 3, gru.input_size), torch.randn(gru.num_layers, 3, gru.hidden_size), 0, 0
    with torch.no_grad(), backends.forced("reference"):
        want = [tensor.numpy() for tensor in gru(x, state)]
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        for got, expected in zip(stream(Run(proto, options), x, state), want, strict=True):
            wrong, count = wrong + int((got != expected).sum()), count + got.size
    return wrong, count


def load(folder: Path) -> tuple[Any, dict]:
    return onnx.load(folder / "model.onnx"), json.loads((folder / "model.encodings").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("config", ["int8", "w4a8", "w8a16"])
def test_presets_keep_their_integers(way: Callable, config: str, version: str, tmp_path: Path) -> None:
    gru = calibrated(12, 5, config, num_layers=2)
    report = export_aimet(gru, tmp_path, version)
    assert report.differing_integers == 0 < report.total_integers
    wrong, count = differing(gru, way(*load(tmp_path)))
    assert wrong == 0 and count == 2 * (40 + 2) * 3 * 12


@pytest.mark.parametrize("seed", range(6))
def test_random_configurations(way: Callable, seed: int, tmp_path: Path) -> None:
    gru = random_layer(seed, bias=seed != 3)
    for version in VERSIONS:
        assert export_aimet(gru, tmp_path, version, name="encoder.rnn").differing_integers == 0
        assert differing(gru, way(*load(tmp_path)))[0] == 0


def test_weights_as_wide_as_high_need_an_axis(way: Callable, tmp_path: Path) -> None:
    gru = calibrated(4, 12, "int8")
    with pytest.raises(ValueError, match=r"gru/weight.W is a square, 12 x 12, .* expected version='2.0.0'"):
        export_aimet(gru, tmp_path)
    export_aimet(gru, tmp_path, "2.0.0")
    assert differing(gru, way(*load(tmp_path)))[0] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_encoding_is_noticed(way: Callable, version: str, tmp_path: Path) -> None:
    gru = calibrated(12, 5, "int8")
    export_aimet(gru, tmp_path, version)
    proto, content = load(tmp_path)
    for section in set(content) - {"version"}:
        wrong = copy.deepcopy(content)
        entry = wrong[section][-1]
        key = "scale" if "scale" in entry else "y_scale"
        entry[key] = (np.array(entry[key]) * 2).tolist()
        assert differing(gru, way(proto, wrong))[0] > 50


def reals(entry: dict) -> tuple[list[Fraction], list[Fraction], list[Fraction]]:
    """The least and the largest number of each channel, and the step, by what the two versions say of their fields."""
    if "output_dtype" in entry:
        signed, bits = not entry["output_dtype"].startswith("u"), int(entry["output_dtype"].lstrip("uint"))
        least, scales = -(1 << bits - 1) if signed else 0, np.atleast_1d(entry["y_scale"]).tolist()
        starts = [least - entry.get("y_zero_point", 0)] * len(scales)
    else:
        bits, scales, starts = entry["bw"], entry["scale"], entry["offset"]
    steps = [Fraction(scale) for scale in scales]
    low = [start * step for start, step in zip(starts, steps, strict=True)]
    return low, [a + ((1 << bits) - 1) * step for a, step in zip(low, steps, strict=True)], steps


@pytest.mark.parametrize("version", VERSIONS)
def test_they_say_what_the_grids_say(version: str, tmp_path: Path) -> None:
    gru = random_layer(1, num_layers=2)
    export_aimet(gru, tmp_path, version)
    proto, content = load(tmp_path)
    entries = {entry["name"]: entry for key in set(content) - {"version"} for entry in content[key]}
    assert content["version"] == version
    wanted = {f"gru/{op}{'_l1' * layer}": grid for layer in (0, 1) for op, grid in gru.grids(layer).items()}
    wanted |= {f"gru/input.h{'_l1' * layer}": gru.grids(layer)["output.h"] for layer in (0, 1)}
    assert set(entries) == set(wanted)
    for name, grid in wanted.items():
        steps = [Fraction(2) ** -n for n in grid.exponents]
        low, high = ([mantissa * step for step in steps] for mantissa in grid.mantissas)
        assert reals(entries[name]) == (low, high, steps)
    made = {name for node in proto.graph.node for name in node.output} | {t.name for t in proto.graph.initializer}
    assert set(entries) <= made
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    assert all(shapes[name][-1] == len(grid.exponents) for name, grid in wanted.items() if grid.is_per_channel)


def test_the_specifications_examples() -> None:
    grids = {"z_pre": Grid(8, False, False, 4, 3), "z_out": Grid(8, True, True, 8), "W": Grid(4, True, False, (3, 5))}
    assert encodings(grids, "1.0.0") == {
        "version": "1.0.0",
        "activation_encodings": [
            {"name": "z_pre", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": True, "scale": [0.0625],
             "offset": [-131]},
            {"name": "z_out", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": False,
             "scale": [0.00390625], "offset": [0]},
        ],
        "param_encodings": [
            {"name": "W", "enc_type": "PER_CHANNEL", "dtype": "INT", "bw": 4, "is_sym": True,
             "scale": [0.125, 0.03125], "offset": [-8, -8]},
        ],
    }  # fmt: skip
    assert encodings(grids, "2.0.0") == {
        "version": "2.0.0",
        "encodings": [
            {"name": "z_pre", "output_dtype": "int8", "y_scale": 0.0625, "y_zero_point": 3},
            {"name": "z_out", "output_dtype": "uint8", "y_scale": 0.00390625, "y_zero_point": 0},
            {"name": "W", "output_dtype": "int4", "y_scale": [0.125, 0.03125], "axis": -1},
        ],
    }


def test_eight_bits_are_a_plain_float_graph(tmp_path: Path) -> None:
    export_aimet(calibrated(12, 5, "int8"), tmp_path)
    assert {"Cast", "Round", "QuantizeLinear", "Loop", "Scan"}.isdisjoint(operators(tmp_path / "model.onnx"))


def test_it_is_a_format_like_others(tmp_path: Path) -> None:
    model = nn.ModuleDict({"one": calibrated(7, 5, "int8"), "two": calibrated(6, 5, "w4a8")})
    reports = export_layers(model, tmp_path / "layers", "aimet")
    assert {name: report.differing_integers for name, report in reports.items()} == {"one": 0, "two": 0}
    assert (tmp_path / "layers" / "one" / "model.encodings").exists()
    with pytest.raises(ValueError, match="ModuleDict is no QuantGRU, and a step is written of one layer"):
        formats.find("aimet").export_model(model, (), tmp_path / "model")


def test_what_is_impossible_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "gru"
    with pytest.raises(ValueError, match=r"^gru/gate\.g_pre has 10 bits; expected 4, 8, 16: AIMET writes"):
        export_aimet(calibrated(7, 5, "int8_mixed"), folder)
    with pytest.raises(ValueError, match="version is '0.6.1'; expected one of 1.0.0, 2.0.0"):
        export_aimet(calibrated(7, 5, "int8"), folder, "0.6.1")
    with pytest.raises(ValueError, match=r"parameters are torch\.float64; expected float32"):
        export_aimet(calibrated(7, 5, "int8").double(), folder)
    with pytest.raises(ValueError, match="gru: is bidirectional"):
        export_aimet(calibrated(7, 5, "int8", bidirectional=True), folder)
    with pytest.raises(RuntimeError, match="not calibrated"):
        export_aimet(QuantGRU(5, 7), folder)
    with pytest.raises(ValueError, match="the encodings' 'nobody' is no tensor of the graph"):
        export_aimet(quantize(QuantGRU(5, 7), torch.randn(9, 3, 5)), folder)
        proto, _ = load(folder)
        with_quantizers(proto, encodings({"nobody": Grid(8, True, False, 3)}))
