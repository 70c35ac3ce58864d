"""A stream through a file of one step is the whole sequence through the layer; its tensors have operators' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qgru import QuantGRU
from qgru.export import export_layers, export_step, formats
from qgru.export.onnx.runtime import Run
from qgru.export.onnx.step import stream
from qgru.ops import backends
from qgru.ops.reference import FUNCTIONS
from qgru.schema import OPERATORS, WEIGHTS
from tests.calibrated import calibrated as of_preset
from tests.calibrated import quantize
from tests.export.models import ONLY_8_BITS, UP_TO_16_BITS, calibrated, noise, operators
from tests.random_gru import random_gru

LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
ACTIVATIONS = [name for name in OPERATORS if name not in WEIGHTS]


def session(path: Path, level: onnxruntime.GraphOptimizationLevel) -> Run:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    return Run(onnx.load(path), options)


def of_sequence(gru: QuantGRU, x: Tensor, state: Tensor) -> list[np.ndarray]:
    """The reference's output, time first, and last state; x: (time, batch, input)."""
    with torch.no_grad(), backends.forced("reference"):
        output, h_n = gru(x.transpose(0, 1) if gru.batch_first else x, state)
    return [(output.transpose(0, 1) if gru.batch_first else output).numpy(), h_n.numpy()]


def assert_streams(gru: QuantGRU, path: Path) -> None:
    sessions = [session(path, level) for level in LEVELS]
    for batch in (3, 1):
        x = noise(gru, 9, batch).transpose(0, 1) if gru.batch_first else noise(gru, 9, batch)
        state = torch.randn(gru.num_layers, batch, gru.hidden_size).to(x) * (batch == 3)
        want = of_sequence(gru, x, state)
        for run in sessions:
            assert all(map(np.array_equal, stream(run, x, state), want))


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8", "w8a16", "int16"])
def test_presets(config: str, tmp_path: Path) -> None:
    gru = of_preset(7, 5, config, num_layers=2)
    report = export_step(gru, tmp_path / "step.onnx")
    assert report.differing_integers == 0 and report.total_integers == (7 + 2) * 3 * 7
    assert_streams(gru, report.path)


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations(seed: int, tmp_path: Path) -> None:
    """Zero points, widths of 2 to 16 bits, opsets before and after 16-bit QuantizeLinear."""
    options = {"num_layers": 1 + seed % 2, "bias": seed % 5 != 0, "batch_first": seed % 4 == 0}
    gru = calibrated(seed, ONLY_8_BITS if seed % 3 == 0 else UP_TO_16_BITS, **options)
    export_step(gru, tmp_path / "step.onnx", opset_version=(None, 13, 17, 21)[seed % 4])
    assert_streams(gru, tmp_path / "step.onnx")


@pytest.mark.parametrize("seed", range(9))
def test_grids_that_no_calibration_would_choose(seed: int, tmp_path: Path) -> None:
    widths, dtype = (range(1, 17), range(8, 25))[seed % 2], (torch.float32, torch.float64)[seed % 3 == 0]
    gru, _ = random_gru(seed, tmp_path / "q.json", widths, dtype, bidirectional=False)
    export_step(gru, tmp_path / "step.onnx")
    assert_streams(gru, tmp_path / "step.onnx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_float_step_is_the_float_layer(dtype: torch.dtype, tmp_path: Path) -> None:
    gru = QuantGRU(5, 7, num_layers=2, bias=dtype != torch.float64).to(dtype)
    report = export_step(gru, tmp_path / "step.onnx", "float")
    assert report.layers == {} and report.largest_float_difference < (2e-3 if dtype == torch.float16 else 1e-6)
    assert {"QuantizeLinear", "Cast"}.isdisjoint(operators(report.path)) or dtype == torch.float16


def test_names_and_metadata(tmp_path: Path) -> None:
    gru = of_preset(7, 5, "int8", num_layers=2)
    for flavour in ("qdq", "float"):
        model = onnx.load(export_step(gru, tmp_path / "step.onnx", flavour, name="encoder.rnn").path)
        shapes = {
            entry.name: [size.dim_param or size.dim_value for size in entry.type.tensor_type.shape.dim]
            for entry in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {
            "x": ["batch", 5],
            "encoder.rnn.h_in": [2, "batch", 7],
            "y": ["batch", 7],
            "encoder.rnn.h_out": [2, "batch", 7],
        }
        made = {name for node in model.graph.node for name in node.output}
        made |= {tensor.name for tensor in model.graph.initializer}
        wanted = {f"encoder.rnn/{name}{suffix}" for name in (*OPERATORS, "input.h") for suffix in ("", "_l1")}
        assert wanted <= made
        assert not {node.op_type for node in model.graph.node} & {"Loop", "Scan", "If", "GRU"}
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["qgru.format"] == f"step {flavour}"
        grids = json.loads(metadata["qgru.quant_params"])["encoder.rnn"]
        assert grids["operators_l1"]["z_pre"]["n"] == gru.grids(1)["gate.z_pre"].exp2_inv


def test_a_tensor_holds_its_operators_values(tmp_path: Path) -> None:
    """Every named tensor of the quantized graph is on its operator's grid, and not all on one point of it."""
    gru = of_preset(7, 5, "int8_mixed")
    model = onnx.load(export_step(gru, tmp_path / "step.onnx").path)
    names = [f"gru/{name}" for name in ACTIVATIONS]
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    del model.graph.output[:2]
    values = dict(zip(names, Run(model)((noise(gru, 1, 9)[0], torch.randn(1, 9, 7))), strict=True))
    for name, grid in gru.grids().items():
        if name in ACTIVATIONS:
            real = torch.from_numpy(values[f"gru/{name}"]).double()
            assert torch.equal(grid.dequantize(grid.quantize(real)), real) and len(real.unique()) > 5
    pre, out = (torch.from_numpy(values[f"gru/gate.z_{which}"]).double() for which in ("pre", "out"))
    grid = gru.grids()["gate.z_out"]
    assert torch.equal(grid.dequantize(grid.quantize(FUNCTIONS["sigmoid"](pre))), out)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert any(np.array_equal(gru.quantized_weights()["weight.R"].numpy().T, array) for array in weights.values())


def test_functions_in_float32_only_where_that_is_safe(tmp_path: Path) -> None:
    """Sixteen bits of a sigmoid are not float32's to round."""
    for config, is_double in (("int8", False), ("w8a16", True)):
        graph = onnx.load(export_step(of_preset(7, 5, config), tmp_path / "step.onnx").path).graph
        sigmoids = {node.input[0] for node in graph.node if node.op_type in ("Sigmoid", "Tanh")}
        casts = {name for node in graph.node if node.op_type == "Cast" for name in node.output}
        assert (sigmoids <= casts) == is_double


def test_no_kernel_that_saturates_or_moves_ties_is_fused(tmp_path: Path) -> None:
    export_step(of_preset(7, 5, "int8"), tmp_path / "step.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(tmp_path / "step.onnx", options)
    fused = operators(tmp_path / "optimized.onnx")
    products = {"QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"}
    assert "MatMul" in fused and not fused & {"QLinearAdd", "QLinearMul", *products}


def test_it_is_a_format_like_others(tmp_path: Path) -> None:
    gru = of_preset(7, 5, "int8")
    report = formats.find("step").export_model(gru, (noise(gru, 4, 3),), tmp_path / "model_step.onnx")
    assert (report.format, report.differing_integers) == ("step", 0)
    model = nn.ModuleDict({"one": gru, "two": of_preset(6, 5, "w4a8")})
    reports = export_layers(model, tmp_path / "layers", "step")
    assert {name: report.differing_integers for name, report in reports.items()} == {"one": 0, "two": 0}
    assert [entry.name for entry in onnx.load(reports["two"].path).graph.input] == ["x", "two.h_in"]
    with pytest.raises(ValueError, match="ModuleDict is no QuantGRU, and a step is written of one layer"):
        formats.find("step").export_model(model, (), tmp_path / "model.onnx")


def test_what_is_impossible_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    with pytest.raises(ValueError, match="gru: is bidirectional"):
        export_step(of_preset(7, 5, "int8", bidirectional=True), path)
    with pytest.raises(ValueError, match="flavour is 'int'; expected one of qdq, float"):
        export_step(of_preset(7, 5, "int8"), path, "int")
    with pytest.raises(ValueError, match="opset_version is 12; expected at least 13"):
        export_step(of_preset(7, 5, "int8"), path, opset_version=12)
    with pytest.raises(ValueError, match=r"its parameters are bfloat16"):
        export_step(of_preset(7, 5, "int8").bfloat16(), path)
    with pytest.raises(RuntimeError, match="not calibrated"):
        export_step(QuantGRU(5, 7), path)
    wide = QuantGRU(5, 7)
    wide.set_all_bitwidth(32)
    with pytest.warns(UserWarning, match="outside the exactness domain"):
        quantize(wide, torch.randn(9, 3, 5))
    with pytest.raises(ValueError, match=r"layer 0: .* quantizes a value of \d+ bits"):
        export_step(wide, path)
    assert not path.exists()
