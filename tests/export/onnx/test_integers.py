"""The integers of a ``qdq`` file are the module's: every mix of widths, zero points, directions, layers, lengths."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import load, numpy_helper

from qgru import QuantGRU
from qgru.export import export_onnx
from tests.calibrated import quantize
from tests.export.models import ONLY_8_BITS, all_nodes, assert_same_integers, calibrated, noise, operators, run
from tests.random_gru import differences, expected, oracle_layers, random_gru

OPSETS = (13, 17, 19, 20, 21, 22, 23)
LENGTHS = ((7, 2), (1, 1), (13, 3))


def export_and_compare(gru, path: Path, opset: int, with_hx: bool = False) -> None:
    def inputs(time: int, batch: int) -> tuple[torch.Tensor, ...]:
        x = noise(gru, time, batch)
        h0 = torch.randn(gru.num_layers * (1 + gru.bidirectional), batch, gru.hidden_size, dtype=x.dtype)
        return (x, h0) if with_hx else (x,)

    report = export_onnx(gru, inputs(4, 3), path, opset_version=opset)
    assert report.differing_integers == 0
    for time, batch in LENGTHS:
        assert_same_integers(gru, path, *inputs(time, batch))


@pytest.mark.parametrize("seed", range(28))
def test_calibrated_grids(seed, tmp_path):
    options = {"num_layers": 1 + seed % 2, "bidirectional": seed % 3 == 0, "bias": seed % 5 != 0}
    gru = calibrated(seed, batch_first=seed % 4 == 0, **options)
    export_and_compare(gru, tmp_path / "gru.onnx", OPSETS[seed % len(OPSETS)], with_hx=seed % 6 == 1)


@pytest.mark.parametrize("seed", range(21))
def test_grids_that_no_calibration_would_choose(seed, tmp_path):
    dtype = torch.float64 if seed % 4 == 0 else torch.float32
    gru, _ = random_gru(seed, tmp_path / "quant_params.json", range(1, 17), dtype=dtype)
    export_and_compare(gru, tmp_path / "gru.onnx", OPSETS[seed % len(OPSETS)], with_hx=seed % 3 == 0)


@pytest.mark.parametrize("seed", range(12))
def test_8_bits_everywhere(seed, tmp_path):
    """Where ONNX Runtime would fuse: odd zero points move ties in its kernels for sums and products."""
    gru, _ = random_gru(100 + seed, tmp_path / "quant_params.json", ONLY_8_BITS, dtype=torch.float32)
    export_and_compare(gru, tmp_path / "gru.onnx", (20, 21)[seed % 2])


@pytest.mark.parametrize("seed", range(4))
def test_17_to_24_bits(seed, tmp_path):
    gru, _ = random_gru(200 + seed, tmp_path / "quant_params.json", range(8, 25), dtype=torch.float32)
    export_and_compare(gru, tmp_path / "gru.onnx", 21)


@pytest.mark.parametrize("seed", (0, 3, 7))
def test_the_file_equals_fractions(seed, tmp_path):
    gru, grids = random_gru(seed, tmp_path / "quant_params.json", range(4, 17), dtype=torch.float32, batch_first=True)
    x = noise(gru, 4, 2)
    export_onnx(gru, x, tmp_path / "gru.onnx")
    output, h_n = run(tmp_path / "gru.onnx", x)
    oracle = expected(oracle_layers(gru, grids), x)
    assert differences([output.tolist(), h_n.tolist()], list(oracle)) == []


def test_no_kernel_that_saturates_or_moves_ties_is_fused(tmp_path):
    """The integer matrix product saturates on x86 without VNNI; 8-bit sums and products round after the zero point."""
    gru = calibrated(0, ONLY_8_BITS, input_size=5, hidden_size=7, bidirectional=True)
    export_onnx(gru, noise(gru, 4, 3), tmp_path / "gru.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "gru.onnx", options)
    fused = operators(tmp_path / "optimized.onnx")
    assert {"QuantizeLinear", "Loop"} <= fused
    assert not fused & {"QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat"}


@pytest.mark.parametrize("seed", range(3))
def test_gates_of_equal_grids_share_a_look_up(seed, tmp_path):
    """Signed throughout, for then ONNX Runtime could fuse the products; the look-up of one gate alone stays apart."""
    gru = equal_gates(seed)
    export_and_compare(gru, tmp_path / "gru.onnx", (20, 21)[seed % 2])
    assert look_ups(tmp_path / "gru.onnx") == 2
    gru.adjust_quant_config("gate.r_pre", exp2_inv=gru.grids()["gate.z_pre"].exp2_inv - 1)
    export_and_compare(gru, tmp_path / "gru.onnx", (20, 21)[seed % 2])
    assert look_ups(tmp_path / "gru.onnx") == 3


def equal_gates(seed: int) -> QuantGRU:
    """A layer of 8 signed, asymmetric bits, with odd zero points, whose r and z have the same grids."""
    torch.manual_seed(seed)
    gru = QuantGRU(3, 7)
    gru.set_all_bitwidth(8, is_symmetric=False)
    quantize(gru, torch.randn(9, 8, 3))
    for name in ("gate.r_pre", "gate.r_out", "gate.z_pre", "gate.z_out", "op.Rh_add_br", "op.rRh", "op.old_contrib"):
        same = gru.grids()[name.replace("gate.r", "gate.z")]
        gru.adjust_quant_config(name, exp2_inv=same.exp2_inv, zero_point=same.zero_point | 1)
    return gru


def look_ups(path: Path) -> int:
    return sum(node.op_type == "GatherElements" for node in all_nodes(load(path).graph))


@pytest.mark.parametrize(("opset", "stored"), [(20, {np.int8, np.uint8}), (21, {np.int8, np.uint8, np.int16})])
def test_containers(opset, stored, tmp_path):
    gru = calibrated(5, range(7, 17), input_size=3)
    export_onnx(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", opset_version=opset)
    graph = load(tmp_path / "gru.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].dtype.type for node in quantizers} <= stored
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    found = [constants[node.input[0]] for node in weights]
    for array, integers in zip(found, gru.quantized_weights().values(), strict=True):
        assert np.array_equal(array, integers.numpy().T)
