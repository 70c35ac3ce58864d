"""What a file says of itself: its format, where its quantized layers are, and their grids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from qgru.convert import quantized_layers

CALLS_KEY, FORMAT_KEY, QUANT_PARAMS_KEY = "qgru.calls", "qgru.format", "qgru.quant_params"


def describe(proto: Any, format: str, calls: list[dict[str, Any]], grids: Mapping[str, Any]) -> None:
    """Write what the file is into its metadata.

    Args:
        proto: an `onnx.ModelProto`; changed.
        format: ``"qdq"`` or ``"float"``.
        calls: for each call of a quantized layer its name and those of its tensors in the graph, as `taps.removed`
            returns them.
        grids: the content of ``quant_params.json`` for each quantized layer.
    """
    entries = {FORMAT_KEY: format, CALLS_KEY: json.dumps(calls), QUANT_PARAMS_KEY: json.dumps(grids)}
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)


def read_calls(proto: Any, model: nn.Module, where: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a file's format and calls, as they were given to `describe`.

    Args:
        proto: an `onnx.ModelProto`, with that metadata unless `model` is a `QuantGRU` and `proto` an export of it.
        model: what it was exported from.
        where: what errors call the file.

    Raises:
        ValueError: where the file doesn't say which of its tensors belong to which layer.
    """
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if CALLS_KEY in metadata:
        return metadata[FORMAT_KEY], json.loads(metadata[CALLS_KEY])
    if model not in quantized_layers(model).values():
        raise ValueError(f"{where}: has no metadata {CALLS_KEY!r}; expected a file that export_onnx wrote")
    names = {kind: [entry.name for entry in getattr(proto.graph, kind[:-1])] for kind in ("inputs", "outputs")}
    return model.export_format, [{"layer": type(model).__name__, **names}] if model.export_format == "qdq" else []
