"""``format="aimet"``: one time step in float, and every operator's grid as an AIMET encoding of its tensor.

The folder holds ``model.onnx`` and ``model.encodings``: what Qualcomm's converters take as quantization overrides, and
what `aimet_onnx.quantsim.encodings_to_onnx_qdq` turns into a graph of the layer's integers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgru.export.aimet.encodings import encodings
from qgru.export.aimet.quantizers import with_quantizers
from qgru.export.onnx.report import ExportReport
from qgru.export.onnx.runtime import Run
from qgru.export.onnx.step import compare, graph_of, model_of
from qgru.export.onnx.step_graph import EncodedStep
from qgru.files import written_whole
from qgru.gru import QuantGRU

_OPSET = 21  # the first with 4- and 16-bit QuantizeLinear


def export_aimet(gru: QuantGRU, path: str | Path, version: str = "1.0.0", *, name: str = "gru") -> ExportReport:
    """Write one time step of a layer and its AIMET encodings.

    The graph is float32 wherever that is proven exact; what is not, in wide configurations, is rounded to its grid in
    float64 before, and its quantizer finds it there. Tensors between the operators have no encoding.

    Args:
        gru: one direction, float32; a layer that saw data and is not finalized is finalized.
        path: the folder, made where missing.
        version: of the encodings, ``"1.0.0"`` or ``"2.0.0"``.
        name: of the layer, in the tensors' names.

    Returns:
        The number of differing integers over a stream of several steps, once the encodings are quantizers in the graph.

    Raises:
        ImportError: where onnx or onnxruntime is missing.
        ValueError: for an unknown version, a layer that is bidirectional or not float32, an operator of other than 4, 8
            or 16 bits, or, in 1.0.0, input weights that are a square; names it.
        RuntimeError: where the layer is not calibrated.
    """
    if gru.weight_ih_l0.dtype != torch.float32:
        raise ValueError(f"{name}: its parameters are {gru.weight_ih_l0.dtype}; expected float32: call float() on it")
    if version == "1.0.0" and gru.input_size == 3 * gru.hidden_size:
        raise ValueError(
            f"{name}/weight.W is a square, {gru.input_size} x {gru.input_size}, and version 1.0.0 does not say which "
            "axis its scales belong to; expected version='2.0.0'"
        )
    graph, opset = graph_of(gru, EncodedStep, name, _OPSET)
    content = encodings(graph.grids, version)
    proto = model_of(gru, graph, name, "step for encodings", opset)
    difference, largest = compare(gru, Run(with_quantizers(proto, content)), is_quantized=True)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.onnx") as partial:
        partial.write_bytes(proto.SerializeToString())
    with written_whole(folder / "model.encodings") as partial:
        partial.write_text(json.dumps(content, indent=1))
    return ExportReport({name: difference}, largest, folder, "aimet", opset)


def export_layer(gru: QuantGRU, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write one layer, under its folder's name; see `export_aimet`."""
    return export_aimet(gru, path, **{"name": Path(path).name, **options})


def export_model(model: nn.Module, args: Any, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write a model that is one layer; of others `export_layers` writes every layer.

    Raises:
        ValueError: where it is more than that.
    """
    if not isinstance(model, QuantGRU):
        raise ValueError(f"{type(model).__name__} is no QuantGRU, and a step is written of one layer")
    return export_aimet(model, path, **options)
