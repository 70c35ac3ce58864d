"""`export_onnx`: a checked, verified and self-describing ONNX file."""

from __future__ import annotations

import functools
import inspect
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qgru import quant_params
from qgru.convert import quantized_layers
from qgru.export import finish
from qgru.export.tracing import Call, Session, cell_positions
from qgru.export.verify import (
    OnnxVerifier,
    VerificationReport,
    as_tuple,
    exporting,
    require,
    run_module,
    tensors,
)
from qgru.gru import EXPORT_FORMATS, QuantGRU
from qgru.schema import OPERATORS


@dataclass(frozen=True)
class ExportReport(VerificationReport):
    """A written file, and how it compares with the module on the example input.

    Attributes:
        path: the file.
        format: ``"qdq"`` or ``"float"``.
        opset: version of ONNX's default domain.
    """

    path: Path = Path()
    format: str = ""
    opset: int = 0


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

    The file appears only when it is complete; the model is left as it was, also where the export fails.

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
            are dynamic.
        opset_version: 13 or later (18 with ``dynamo=True``). Where None it is 20, or 21 where activations of 9 to 16
            bits are quantized: 16-bit QuantizeLinear is younger. Before, they are rounded by arithmetic.

    Returns:
        The number of differing integers of each quantized layer, given the module's own input to it, and the largest
        difference between the model's outputs.

    Raises:
        ImportError: where onnx, onnxruntime or (with ``dynamo=True``) onnxscript is missing.
        ValueError: for an unknown format, an opset that is too old, or arithmetic that ONNX can't hold exactly.
        RuntimeError: where a layer is not calibrated; names the layer.
        TypeError: where a layer is given a PackedSequence; names the layer.
    """
    _check(format, opset_version, dynamo)
    for name in ("onnx", "onnxruntime", *(("onnxscript",) if dynamo else ())):
        require(name)
    args = as_tuple(args)
    # In eager mode first: what is wrong with the model is said by its own error, not through the exporter's.
    outputs, calls = run_module(model, args, format)
    layers = _called(model, calls)
    opset = opset_version or _default_opset(layers.values())
    output_names = output_names or _output_names(len(outputs))
    options = {"input_names": input_names, "output_names": output_names, "opset_version": opset}
    if dynamo:
        if dynamic_shapes is None and dynamic_axes is None:
            dynamic_shapes = _dynamic_shapes(args)
        options.update(dynamic_axes=dynamic_axes, dynamic_shapes=dynamic_shapes)
    else:
        names = input_names or _input_names(model, args)
        options.update(
            input_names=names, dynamic_axes=_dynamic_axes(names, args) if dynamic_axes is None else dynamic_axes
        )
    with exporting(model, format, opset) as session, _tapped(model, session):
        proto = _export(model, args, options, dynamo)
    finish.tidy(proto)
    grids = {name: quant_params.to_mapping(gru) for name, gru in layers.items()}
    finish.describe(proto, format, finish.untap(proto, calls, len(outputs)), grids)
    require("onnx").checker.check_model(proto, full_check=True)
    found = OnnxVerifier.from_proto(model, proto)(*args)
    _write(proto.SerializeToString(), Path(path))
    return ExportReport(found.layers, found.largest_float_difference, Path(path), format, opset)


def export_layers(
    model: nn.Module, directory: str | Path, format: str = "qdq", *, dynamo: bool = False
) -> dict[str, ExportReport]:
    """Write every `QuantGRU` of a model as a file of its own, for models that can't be exported as a whole.

    Args:
        model: any module.
        directory: made where missing; a layer's file is ``<its name>.onnx``.
        format: as for `export_onnx`.
        dynamo: likewise.

    Returns:
        A report for each layer by name.

    Raises:
        ImportError, RuntimeError, ValueError: as `export_onnx`.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    reports = {}
    for name, gru in quantized_layers(model).items():
        path = Path(directory) / f"{name or type(gru).__name__}.onnx"
        reports[name] = export_onnx(gru, _example(gru), path, format, dynamo=dynamo)
    return reports


def _check(format: str, opset: int | None, dynamo: bool) -> None:
    if format not in EXPORT_FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(EXPORT_FORMATS)}")
    oldest = 18 if dynamo else 13
    if opset is not None and opset < oldest:
        raise ValueError(f"opset_version is {opset}; expected at least {oldest} with dynamo={dynamo}")


def _default_opset(layers: Iterable[QuantGRU]) -> int:
    cells = [gru.grids(layer, reverse) for gru in layers for layer, reverse in cell_positions(gru)]
    widths = [grid.bitwidth for grids in cells for name, grid in grids.items() if not OPERATORS[name].is_weight]
    return 21 if any(8 < width <= 16 for width in widths) else 20


def _export(model: nn.Module, args: tuple[Any, ...], options: dict[str, Any], dynamo: bool) -> Any:
    """Run torch's exporter; returns an `onnx.ModelProto`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Exporting to ONNX opset version 2[1-9] is not supported")
        if dynamo:
            return torch.onnx.export(model, args, dynamo=True, verbose=False, **options).model_proto
        buffer = io.BytesIO()
        torch.onnx.export(model, args, buffer, dynamo=False, **options)
    return require("onnx").load_from_string(buffer.getvalue())


@contextmanager
def _tapped(model: nn.Module, session: Session) -> Iterator[None]:
    """Make the model also return what goes into and comes out of its quantized layers."""
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        session.calls.clear()
        outputs = forward(*args, **kwargs)
        # Copies, for an exporter to give each of them a name of its own.
        taps = [tensor.clone() for call in session.calls for tensor in (*call.inputs, *call.outputs)]
        return (outputs, taps) if taps else outputs

    model.forward = tapped
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def _input_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """Name every tensor in `args` after the parameter of `forward` that it belongs to."""
    names = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    for position, arg in enumerate(args):
        parameter = parameters[min(position, len(parameters) - 1)]
        found = len(tensors(arg))
        is_numbered = found > 1 or parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{parameter.name}_{len(names) + i}" if is_numbered else parameter.name for i in range(found)]
    return names


def _output_names(count: int) -> list[str]:
    return [f"output_{i}" for i in range(count)] if count > 1 else ["output"]


def _dynamic_axes(names: Sequence[str], args: tuple[Any, ...]) -> dict[str, dict[int, str]]:
    found = zip(names, tensors(args), strict=True)
    return {name: {axis: f"{name}_dim_{axis}" for axis in range(min(2, tensor.dim()))} for name, tensor in found}


def _dynamic_shapes(args: tuple[Any, ...]) -> Any:
    def axes(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return {axis: torch.export.Dim.AUTO for axis in range(min(2, leaf.dim()))}

    return pytree.tree_map(axes, args)


def _example(gru: QuantGRU) -> Tensor:
    """Return an input that covers the range of the layer's input grid; torch's random stream is left alone."""
    parameter, generator = gru.weight_ih_l0, torch.Generator().manual_seed(0)
    uniform = torch.rand(7, 3, gru.input_size, generator=generator)
    low, high = -1.0, 1.0
    if gru.is_calibrated():
        grid = gru.grids()["input.x"]
        low, high = ((bound - grid.zero_point) * grid.scale for bound in (grid.qmin, grid.qmax))
    return (low + (high - low) * uniform).to(parameter)


def _called(model: nn.Module, calls: Sequence[Call]) -> dict[str, QuantGRU]:
    """Return the layers that quantize, by name."""
    names = {call.layer for call in calls}
    layers = {name or type(gru).__name__: gru for name, gru in quantized_layers(model).items()}
    return {name: gru for name, gru in layers.items() if name in names}


def _write(content: bytes, path: Path) -> None:
    """Put the file in place all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
