"""Whole models through both exporters: every integer is the module's, at other batches and times than the example's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qgru.export import OnnxVerifier, export_onnx
from qgru.export.onnx.metadata import read_calls
from tests.export.models import run
from tests.export.onnx.models import MODELS, ConvFrontEnd, SqueezeFrontEnd, TwoInARowBatchFirst, quantized

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using the legacy:DeprecationWarning",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:# 'dynamic_axes' is not recommended",
    "ignore::torch.jit.TracerWarning",
)
SHAPES = ((5, 7), (1, 1), (2, 13))


def axes(model: Any) -> dict[str, dict[int, str]]:
    return {name: {axis: f"{name}_{axis}" for axis in dims} for name, dims in model.axes.items()}


def dims(path: Path) -> list[list[Any]]:
    inputs = onnx.load(path).graph.input
    return [[dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in inputs]


def integers(model: nn.Module, args: tuple[Tensor, ...]) -> int:
    """How many integers the quantized layers give for an input."""
    seen: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _, __, result: seen.append(sum(tensor.numel() for tensor in result)))
        for layer in model.modules()
        if isinstance(layer, nn.GRU)
    ]
    model(*args)
    for handle in handles:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("dynamo", (False, True))
@pytest.mark.parametrize("kind", MODELS)
def test_every_integer(kind: Any, dynamo: bool, tmp_path: Path) -> None:
    """The layers' on the module's own inputs to them, and those of the whole graph, run by itself."""
    model, path = quantized(kind(), 1), tmp_path / "model.onnx"
    report = export_onnx(model, model.inputs(3, 4), path, dynamo=dynamo, dynamic_axes=axes(model))
    verifier = OnnxVerifier(model, path)
    total = integers(model, model.inputs(3, 4))
    for batch, time in SHAPES:
        args = model.inputs(batch, time)
        report, total = report + verifier(*args), total + integers(model, args)
        (found,), expected = run(path, *args), model(*args)
        assert found.shape == expected.shape
        assert torch.equal(torch.from_numpy(found), expected)
    assert (report.differing_integers, report.total_integers) == (0, total)
    assert report.largest_float_difference == 0
    assert len(expected.unique()) > 2


def test_no_transposition_is_left_between_layers(tmp_path: Path) -> None:
    """What verifies a file adds nothing to it."""
    model = quantized(TwoInARowBatchFirst(), 1)
    export_onnx(model, model.inputs(3, 4), tmp_path / "model.onnx")
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    read = {name for node in nodes for name in node.input}
    assert [node.op_type for node in nodes].count("Transpose") == 2
    assert [node for node in nodes if node.op_type == "Transpose" and node.output[0] not in read | {"output"}] == []


def test_a_wrong_integer_behind_a_fused_transposition_is_counted(tmp_path: Path) -> None:
    model, path = quantized(ConvFrontEnd(), 1), tmp_path / "model.onnx"
    args = model.inputs(3, 4)
    export_onnx(model, args, path)
    proto = onnx.load(path)
    assert [call.get("time_first") for call in read_calls(proto, model, "")[1]] == [True]
    weight = next(tensor for tensor in proto.graph.initializer if tuple(tensor.dims) == (5, 15))
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(-array.clip(-100, 100), weight.name))
    onnx.save(proto, path)
    wrong = OnnxVerifier(model, path)(*args).differing_integers
    assert 0 < wrong <= integers(model, args)


@pytest.mark.parametrize("dynamo", (False, True))
def test_a_dimension_that_is_squeezed(dynamo: bool, tmp_path: Path) -> None:
    """The newer exporter can't have it dynamic, the older can."""
    model, path = quantized(SqueezeFrontEnd(), 1), tmp_path / "model.onnx"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = export_onnx(model, model.inputs(3, 4), path, dynamo=dynamo)
    said = [str(warning.message) for warning in caught if "qgru: " in str(warning.message)]
    assert [message.partition(": the export fails")[0] for message in said] == dynamo * [
        "qgru: the file fixes dimension 1 of 'x' at 1"
    ]
    report += OnnxVerifier(model, path)(*model.inputs(5, 4))
    assert report.differing_integers == 0 < report.total_integers
    assert isinstance(dims(path)[0][0], str)


class TakesDict(SqueezeFrontEnd):
    def forward(self, batch: Any) -> Any:
        x = batch["x"] if isinstance(batch, dict) else batch
        return {"y": super().forward(x)}


def test_a_dict_of_tensors(tmp_path: Path) -> None:
    model, path = quantized(TakesDict(), 1), tmp_path / "model.onnx"
    export_onnx(model, {"x": model.inputs(3, 4)[0]}, path, dynamic_axes={"batch": {0: "batch", 2: "time"}})
    report = OnnxVerifier(model, path)({"x": model.inputs(5, 7)[0]})
    assert report.differing_integers == 0 < report.total_integers


def test_a_tensor_that_the_model_does_not_use_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    model, x = quantized(TakesDict(), 1), TakesDict().inputs(3, 4)[0]
    with pytest.raises(ValueError, match=r"the graph has the inputs \['batch_0'\] for 2 tensors: .* does not use"):
        export_onnx(model, {"x": x, "mask": torch.ones(3)}, tmp_path / "model.onnx", dynamic_axes={})
    assert not list(tmp_path.iterdir())
