"""Encodings as quantizers in their graph, for a check that needs no AIMET."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def with_quantizers(proto: Any, content: Mapping[str, Any]) -> Any:
    """Return a graph in which every tensor with an encoding goes through QuantizeLinear and DequantizeLinear.

    Args:
        proto: an `onnx.ModelProto`; left as it is.
        content: of an ``.encodings`` file.

    Raises:
        ValueError: where an encoding's tensor is not in the graph.
    """
    from onnx import ModelProto, helper, numpy_helper

    model = ModelProto()
    model.CopyFrom(proto)
    graph, nodes = model.graph, []
    known = {tensor.name: tensor for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    for name, kind, scale, zero_point in _quantizers(content):
        if name not in known and name not in made:
            raise ValueError(f"the encodings' {name!r} is no tensor of the graph")
        of_scale = numpy_helper.from_array(np.asarray(scale, "float32"), f"{name}:scale")
        of_zero = helper.make_tensor(f"{name}:zero_point", kind, np.shape(scale), np.ravel(zero_point).tolist())
        graph.initializer.extend([of_scale, of_zero])
        inputs, axis = [of_scale.name, of_zero.name], {"axis": -1} if np.ndim(scale) else {}
        for node in graph.node:
            node.input[:] = [f"{name}:real" if read == name else read for read in node.input]
        nodes.append(helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}:integers"], **axis))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}:integers", *inputs], [f"{name}:real"], **axis))
    ordered = list(_in_order([*graph.node, *nodes], {*known, *(entry.name for entry in graph.input)}, graph))
    del graph.node[:]
    graph.node.extend(ordered)
    return model


def _quantizers(content: Mapping[str, Any]) -> Iterator[tuple[str, int, Any, Any]]:
    """Yield each encoding's tensor, ONNX type, scale and zero point."""
    from onnx import TensorProto

    for entry in content.get("encodings", ()):
        scale = entry["y_scale"]
        zero_point = entry.get("y_zero_point", np.zeros(np.shape(scale), int))
        yield entry["name"], getattr(TensorProto, entry["output_dtype"].upper()), scale, zero_point
    for entry in (*content.get("activation_encodings", ()), *content.get("param_encodings", ())):
        signed, bits = entry["is_sym"], entry["bw"]
        kind = getattr(TensorProto, f"{'' if signed else 'U'}INT{bits}")
        zero_point = -np.array(entry["offset"]) - (1 << bits - 1 if signed else 0)
        is_one = entry["enc_type"] == "PER_TENSOR"
        yield entry["name"], kind, *(pair[0] if is_one else pair for pair in (entry["scale"], zero_point))


def _in_order(nodes: list[Any], known: set[str], graph: Any) -> Iterator[Any]:
    known |= {tensor.name for tensor in graph.initializer}
    while nodes:
        ready = [node for node in nodes if known.issuperset(filter(None, node.input))]
        nodes = [node for node in nodes if not known.issuperset(filter(None, node.input))]
        known.update(name for node in ready for name in node.output)
        yield from ready
