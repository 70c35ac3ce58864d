"""``format="step"``: one time step as a graph, states in and out, for streams and for compilers that take no loop.

Inputs are ``x`` (batch, input) and ``<layer>.h_in`` (layers, batch, hidden), outputs ``y`` (batch, hidden) and
``<layer>.h_out``; a stream begins with zeros. Between them are ONNX's plain operators, no Loop and no Scan. A tensor of
an operator's values is called after the operator, ``gru/gate.z_pre``, in the second layer with ``_l1`` behind it;
``gru/input.h`` is the state that comes in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qgru import quant_params
from qgru.direction import directions_of
from qgru.export.onnx.arguments import example
from qgru.export.onnx.arithmetic import Target
from qgru.export.onnx.metadata import describe
from qgru.export.onnx.model import to_model
from qgru.export.onnx.quantized import Cell
from qgru.export.onnx.report import ExportReport, LayerDifference
from qgru.export.onnx.runtime import Run, require, to_numpy
from qgru.export.onnx.step_graph import FloatStep, StepArithmetic, StepGraph, step_graph
from qgru.files import written_whole
from qgru.grid import Grid
from qgru.gru import QuantGRU
from qgru.schema import ACTIVATIONS, BIASES, WEIGHTS

FLAVOURS = {"qdq": StepArithmetic, "float": FloatStep}
_NO_GRIDS = dict.fromkeys((*ACTIVATIONS, *WEIGHTS), Grid(8, True, False, 0))  # a float graph has only their names


def export_step(
    gru: QuantGRU, path: str | Path, flavour: str = "qdq", *, name: str = "gru", opset_version: int | None = None
) -> ExportReport:
    """Write one time step of a layer as ONNX, check the file, and run it beside the layer.

    The file appears once it is complete and verified.

    Args:
        gru: one direction; a layer that saw data and is not finalized is finalized.
        path: where to write.
        flavour: ``"qdq"`` for its integers, ``"float"`` for the float layer.
        name: of the layer, in the tensors' names.
        opset_version: 13 or later. Where None it is 20, or 21 where activations of 9 to 16 bits are quantized.

    Returns:
        The number of differing integers over a stream of several steps (none are compared for ``"float"``), and the
        largest difference.

    Raises:
        ImportError: where onnx or onnxruntime is missing.
        ValueError: for an unknown flavour, an opset that is too old, a bidirectional layer, or what ONNX can't hold
            exactly; names it.
        RuntimeError: where the layer is to be quantized and not calibrated.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"flavour is {flavour!r}; expected one of {', '.join(FLAVOURS)}")
    graph, opset = graph_of(gru, FLAVOURS[flavour], name, opset_version)
    proto = model_of(gru, graph, name, f"step {flavour}", opset)
    is_quantized = flavour == "qdq"
    found = compare(gru, Run(proto), is_quantized)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_bytes(proto.SerializeToString())
    layers = {name: found[0]} if is_quantized else {}
    return ExportReport(layers, found[1], path, "step", opset)


def export_layer(gru: QuantGRU, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write one layer, under its file's name; see `export_step`."""
    return export_step(gru, path, **{"name": Path(path).name.removesuffix(".onnx"), **options})


def export_model(model: nn.Module, args: Any, path: str | Path, format: str, **options: Any) -> ExportReport:
    """Write a model that is one layer; of others `export_layers` writes every layer.

    Raises:
        ValueError: where it is more than that.
    """
    if not isinstance(model, QuantGRU):
        raise ValueError(f"{type(model).__name__} is no QuantGRU, and a step is written of one layer")
    return export_step(model, path, **options)


def graph_of(gru: QuantGRU, kind: type[StepArithmetic], name: str, opset: int | None = None) -> tuple[StepGraph, int]:
    """Return the graph of a layer's time step, and the opset that it needs.

    Raises:
        ValueError, RuntimeError: as `export_step`.
    """
    for package in ("onnx", "onnxruntime"):
        require(package)
    if gru.bidirectional:
        raise ValueError(f"{name}: is bidirectional, and its reverse direction begins at the end of a sequence")
    if opset is not None and opset < 13:
        raise ValueError(f"opset_version is {opset}; expected at least 13")
    is_float = issubclass(kind, FloatStep)
    cells = [_cell(gru, layer, is_float) for layer in range(gru.num_layers)]
    widths = [grid.bitwidth for cell in cells for op, grid in cell.grids.items() if op not in WEIGHTS]
    opset = opset or (21 if not is_float and any(8 < width <= 16 for width in widths) else 20)
    dtype = str(gru.weight_ih_l0.dtype).removeprefix("torch.")
    if dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"{name}: its parameters are {dtype}; expected float16, float32 or float64")
    return step_graph(cells, name, dtype, kind, Target(opset)), opset


def model_of(gru: QuantGRU, graph: StepGraph, name: str, format: str, opset: int) -> Any:
    """Return a checked `onnx.ModelProto` with the layer's grids in its metadata."""
    proto = to_model(graph.program, graph.names, name, opset)
    ends = {kind: [entry.name for entry in getattr(proto.graph, kind[:-1])] for kind in ("inputs", "outputs")}
    known = {name: quant_params.to_mapping(gru, gru._quant_state().cells)} if gru.is_calibrated() else {}
    describe(proto, format, [{"layer": name, **ends}], known)
    require("onnx").checker.check_model(proto, full_check=True)
    return proto


def compare(gru: QuantGRU, run: Run, is_quantized: bool) -> tuple[LayerDifference, float]:
    """Run a stream through a step and a sequence through its layer.

    Args:
        gru: the layer.
        run: the step; float32 where the layer is.
        is_quantized: compare with the layer's integers, or with the float layer.

    Returns:
        How many elements of the outputs and last states differ, and the largest difference.
    """
    x = example(gru)
    with torch.no_grad():
        given = x.transpose(0, 1) if gru.batch_first else x
        if is_quantized:
            output, h_n = gru._quantized_forward(given, None, gru.ensure_calibrated())
        else:
            output, h_n = nn.GRU.forward(gru, given)
        output = output.transpose(0, 1) if gru.batch_first else output
    found, state = stream(run, x, x.new_zeros(gru.num_layers, x.shape[1], gru.hidden_size))
    pairs = [(found, to_numpy(output)), (state, to_numpy(h_n))]
    largest = max(float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) for a, b in pairs)
    return LayerDifference(sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)), largest


def stream(run: Run, x: Tensor, state: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a step run once for each x_t, and the last state.

    Args:
        run: the step.
        x: (time, batch, input).
        state: (layers, batch, hidden), to begin with.
    """
    outputs = []
    for x_t in x:
        y, after = run((x_t, state))
        outputs.append(y)
        state = torch.from_numpy(after)
    return np.stack(outputs), to_numpy(state)


def _cell(gru: QuantGRU, layer: int, is_float: bool) -> Cell:
    direction = directions_of(gru)[layer]
    if is_float:
        parameters = zip(WEIGHTS, gru._cells()[layer], strict=True)
        weights = {name: parameter.detach() for name, parameter in parameters}
        grids = gru.grids(*direction) if gru.is_calibrated() else _NO_GRIDS
    else:
        weights, grids = gru.quantized_weights(*direction), gru.grids(*direction)
    kept = {name: value for name, value in weights.items() if gru.bias or name not in BIASES}
    return Cell(str(direction), grids, kept, False)
