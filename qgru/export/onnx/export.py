"""`export_onnx`: a checked, verified and self-describing ONNX file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgru import quant_params
from qgru.convert import quantized_layers
from qgru.direction import directions_of
from qgru.export import formats
from qgru.export.onnx import arguments, dimensions, taps
from qgru.export.onnx.metadata import describe
from qgru.export.onnx.report import ExportReport, VerificationReport
from qgru.export.onnx.runtime import require
from qgru.export.onnx.session import Call, ModuleRun, exporting, run_module
from qgru.export.onnx.tidy import tidy
from qgru.export.onnx.verify import OnnxVerifier
from qgru.files import written_whole
from qgru.gru import QuantGRU
from qgru.schema import WEIGHTS


def export_onnx(
    model: nn.Module,
    args: Any,
    path: str | Path,
    format: str = "qdq",
    *,
    dynamo: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Any] | Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    opset_version: int | None = None,
) -> ExportReport:
    """Write a model that holds `QuantGRU` layers as ONNX, check the file and run it beside the module.

    The file, one without external data, appears once it is complete and verified; until then, and where the export
    fails, what stands at `path` stays. The model is left as it was.

    Args:
        model: any module; layers that saw data and are not finalized are finalized.
        args: example input of `model.forward`: a tensor or a tuple.
        path: where to write.
        format: ``"qdq"`` for the integers of the quantized layers, ``"float"`` for ONNX's own GRU.
        dynamo: which of `torch.onnx.export`'s exporters to use.
        input_names: of the graph; names of `forward`'s parameters where None.
        output_names: of the graph; ``output``, or ``output_0``, ``output_1``, ... where None.
        dynamic_axes: as `torch.onnx.export` takes it.
        dynamic_shapes: likewise, with ``dynamo=True`` only. Where neither is given, dimensions 0 and 1 of every input
            are dynamic, but those with which the export fails; a warning names these.
        opset_version: 13 or later (18 with ``dynamo=True``). Where None it is 20, or 21 where activations of 9 to 16
            bits are quantized: 16-bit QuantizeLinear is younger. Before, they are rounded by arithmetic.

    Returns:
        The number of differing integers of each quantized layer, given the module's own input to it, and the largest
        difference between the model's outputs.

    Raises:
        ImportError: where onnx, onnxruntime or (with ``dynamo=True``) onnxscript is missing.
        ValueError: for an unknown format, an opset that is too old, arithmetic that ONNX can't hold exactly, or a
            layer in bfloat16; names the layer.
        RuntimeError: where a layer is not calibrated; names the layer.
        UntraceableInputError: where a layer is given a PackedSequence, or the model what is no tensor; names it.
    """
    _check(format, opset_version, dynamo)
    for name in ("onnx", "onnxruntime", *(("onnxscript",) if dynamo else ())):
        require(name)
    args = arguments.as_tuple(args)
    # In eager mode first: what is wrong with the model is said by its own error, not through the exporter's.
    expected = run_module(model, args, format)
    layers = _called(model, expected.calls)
    opset = opset_version or _default_opset(layers.values())
    names = input_names or arguments.input_names(model, args)
    options = {
        "input_names": input_names if dynamo else names,
        "output_names": output_names or arguments.output_names(len(expected.outputs)),
        "opset_version": opset,
    }
    job = _Job(model, args, expected, layers, format, dynamo, options)
    try:
        if dynamic_axes is None and (dynamic_shapes is None or not dynamo):
            proto, found = dimensions.as_dynamic_as_possible(job.run_with, names, args)
        else:
            proto, found = job.run(dynamic_axes=dynamic_axes, **({"dynamic_shapes": dynamic_shapes} if dynamo else {}))
    except Exception as error:
        foreign = arguments.first_foreign(args)
        if foreign is None:
            raise
        what = f"{type(model).__name__} is given a {type(foreign).__name__}, and the inputs of a graph are tensors"
        raise formats.UntraceableInputError(what) from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_bytes(proto.SerializeToString())
    return ExportReport(found.layers, found.largest_float_difference, path, format, opset)


def _check(format: str, opset: int | None, dynamo: bool) -> None:
    formats.find_traced(format)
    oldest = 18 if dynamo else 13
    if opset is not None and opset < oldest:
        raise ValueError(f"opset_version is {opset}; expected at least {oldest} with dynamo={dynamo}")


def _called(model: nn.Module, calls: Sequence[Call]) -> dict[str, QuantGRU]:
    """Return the layers that quantize, by name."""
    names = {call.layer for call in calls}
    layers = {name or type(gru).__name__: gru for name, gru in quantized_layers(model).items()}
    return {name: gru for name, gru in layers.items() if name in names}


def _default_opset(layers: Iterable[QuantGRU]) -> int:
    cells = [gru.grids(*direction) for gru in layers for direction in directions_of(gru)]
    widths = [grid.bitwidth for grids in cells for name, grid in grids.items() if name not in WEIGHTS]
    return 21 if any(8 < width <= 16 for width in widths) else 20


@dataclass(frozen=True)
class _Job:
    """An export but for its dynamic dimensions."""

    model: nn.Module
    args: tuple[Any, ...]
    expected: ModuleRun
    layers: Mapping[str, QuantGRU]
    format: str
    dynamo: bool
    options: Mapping[str, Any]

    def run(self, **dynamic: Any) -> tuple[Any, VerificationReport]:
        """Return a checked `onnx.ModelProto`, and how it compares; `dynamic` are arguments of `torch.onnx.export`."""
        opset = self.options["opset_version"]
        with exporting(self.model, self.format, opset) as session, taps.added(self.model, session):
            proto = _run_exporter(self.model, self.args, {**self.options, **dynamic}, self.dynamo)
        tidy(proto)
        calls = taps.removed(proto, self.expected.calls, len(self.expected.outputs))
        known = {name: quant_params.to_mapping(gru, gru.ensure_calibrated().cells) for name, gru in self.layers.items()}
        describe(proto, self.format, calls, known)
        require("onnx").checker.check_model(proto, full_check=True)
        return proto, OnnxVerifier.from_proto(self.model, proto).compare(self.args, self.expected)[1]

    def run_with(self, fixed: dimensions.Dimensions) -> tuple[Any, VerificationReport]:
        """Export with dimensions 0 and 1 of every input dynamic, but `fixed`."""
        if self.dynamo:
            return self.run(dynamic_shapes=dimensions.dynamic_shapes(self.args, fixed))
        return self.run(dynamic_axes=dimensions.dynamic_axes(self.options["input_names"], self.args, fixed))


def _run_exporter(model: nn.Module, args: tuple[Any, ...], options: dict[str, Any], dynamo: bool) -> Any:
    """Run torch's; returns an `onnx.ModelProto`."""
    if args and isinstance(args[-1], dict):
        args = (*args, {})  # torch takes a dict at the end for keywords
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Exporting to ONNX opset version 2[1-9] is not supported")
        if dynamo:
            return torch.onnx.export(model, args, dynamo=True, verbose=False, **options).model_proto
        buffer = io.BytesIO()
        torch.onnx.export(model, args, buffer, dynamo=False, **options)
    return require("onnx").load_from_string(buffer.getvalue())
