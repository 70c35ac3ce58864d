"""What an exporter leaves in a graph that a file should not hold."""

from __future__ import annotations

from typing import Any


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


def _drop_notes(graph: Any) -> None:
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                del attribute.g.value_info[:]  # ONNX Runtime's Scan takes a tenth longer with them
                _drop_notes(attribute.g)
    for info in (*graph.value_info, *graph.input, *graph.output):
        del info.metadata_props[:]
