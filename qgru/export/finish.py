"""What is done to a graph between torch's exporter and the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qgru.export.tracing import Call
from qgru.export.verify import CALLS_KEY, FORMAT_KEY

QUANT_PARAMS_KEY = "qgru.quant_params"


def tidy(proto: Any) -> None:
    """Turn constants into initializers, and drop the exporter's notes, which hold paths of its machine."""
    graph = proto.graph
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")]
    for node in constants:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
    del proto.metadata_props[:]
    _drop_notes(graph)
    for function in proto.functions:
        _drop_notes(function)


def untap(proto: Any, calls: Sequence[Call], outputs: int) -> list[dict[str, Any]]:
    """Take the layers' inputs and outputs back out of the graph's outputs, where they follow the model's own.

    Args:
        proto: an `onnx.ModelProto`; changed.
        calls: of the layers, in the order of the extra outputs.
        outputs: how many are the model's own.

    Returns:
        For each call its layer and the names of the tensors in the graph.
    """
    from onnx import helper

    graph = proto.graph
    names = [_untapped(graph, info.name) for info in graph.output[outputs:]]
    del graph.output[outputs:]
    known = {info.name for info in (*graph.input, *graph.output)}
    for info in [info for info in graph.value_info if info.name in names]:
        graph.value_info.remove(info)
    described, remaining = [], iter(names)
    for call in calls:
        entry: dict[str, Any] = {"layer": call.layer}
        for kind, tensors in (("inputs", call.inputs), ("outputs", call.outputs)):
            entry[kind] = [next(remaining) for _ in tensors]
            for name, tensor in zip(entry[kind], tensors, strict=True):
                if name not in known:
                    known.add(name)
                    shape = [*(f"{name}_dim_{axis}" for axis in range(tensor.dim() - 1)), tensor.shape[-1]]
                    kind_of = helper.np_dtype_to_tensor_dtype(tensor.detach().cpu().numpy().dtype)
                    graph.value_info.append(helper.make_tensor_value_info(name, kind_of, shape))
        described.append(entry)
    return described


def describe(proto: Any, format: str, calls: list[dict[str, Any]], grids: Mapping[str, Any]) -> None:
    """Write what the file is into its metadata.

    Args:
        proto: an `onnx.ModelProto`; changed.
        format: ``"qdq"`` or ``"float"``.
        calls: as `untap` returned them.
        grids: the content of ``quant_params.json`` for each quantized layer.
    """
    entries = {FORMAT_KEY: format, CALLS_KEY: json.dumps(calls), QUANT_PARAMS_KEY: json.dumps(grids)}
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)


def _untapped(graph: Any, name: str) -> str:
    """Return the tensor that a tap copies, and remove the copy."""
    for node in graph.node:
        if name in node.output and node.op_type == "Identity":
            graph.node.remove(node)
            return node.input[0]
    return name


def _drop_notes(graph: Any) -> None:
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _drop_notes(attribute.g)
    for info in (*graph.value_info, *graph.input, *graph.output):
        del info.metadata_props[:]
