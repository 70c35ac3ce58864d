"""Cutting the part between given tensors out of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def extract(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return a model that computes `outputs` from `inputs`, both names of tensors in `model`'s outermost graph.

    Args:
        model: an `onnx.ModelProto`; left as it is.
        inputs: where the part begins; the graph must give their types.
        outputs: where it ends; likewise.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        ValueError: where an output depends on more than `inputs`, or the graph doesn't give a type.
    """
    from onnx import helper

    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    infos = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    needed, used, pending = set(), set(), [name for name in outputs if name not in inputs]
    while pending:
        name = pending.pop()
        if name in used or name in inputs:
            continue
        used.add(name)
        if name in producers:
            needed.add(id(producers[name]))
            pending.extend(read_names(producers[name]))
        elif name not in initializers:
            raise ValueError(f"the graph's {name!r} is not among {list(inputs)}, and {list(outputs)} depend on it")
    missing = [name for name in (*inputs, *outputs) if name not in infos]
    if missing:
        raise ValueError(f"the graph gives no type for {missing}")
    part = helper.make_graph(
        [node for node in graph.node if id(node) in needed],
        graph.name,
        [infos[name] for name in inputs],
        [infos[name] for name in outputs],
        [initializers[name] for name in initializers if name in used],
    )
    return helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def read_names(node: Any) -> Iterator[str]:
    """Yield the outer tensors that a node reads, those that its loop bodies and branches read included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            inner = {entry.name for entry in (*attribute.g.input, *attribute.g.initializer)}
            inner.update(name for child in attribute.g.node for name in child.output)
            for child in attribute.g.node:
                yield from (name for name in read_names(child) if name not in inner)
            yield from (entry.name for entry in attribute.g.output if entry.name not in inner)
