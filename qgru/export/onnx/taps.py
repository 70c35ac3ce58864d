"""Extra outputs of a graph, which show where the quantized layers are in it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qgru.export.onnx.session import Call, Session


@contextmanager
def added(model: nn.Module, session: Session) -> Iterator[None]:
    """Make a model also return what goes into and comes out of its quantized layers, behind its own outputs."""
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        session.calls.clear()
        outputs = forward(*args, **kwargs)
        taps = [tensor for call in session.calls for tensor in (*call.inputs, *call.outputs)]
        return (outputs, taps) if taps else outputs

    model.forward = tapped
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def removed(proto: Any, calls: Sequence[Call], outputs: int) -> list[dict[str, Any]]:
    """Take the layers' inputs and outputs back out of the graph's, where they follow the model's own outputs.

    Args:
        proto: an `onnx.ModelProto`; changed.
        calls: of the layers, in the order of the extra outputs.
        outputs: how many are the model's own.

    Returns:
        For each call its layer and the names of the tensors in the graph: those in the caller's layout, or, where the
        exporter left none of these, the program's own, and then ``"time_first": true``.
    """
    graph = proto.graph
    names = [_untapped(graph, info.name) for info in graph.output[outputs:]]
    del graph.output[outputs:]
    known = {info.name for info in (*graph.input, *graph.output)}
    described, remaining = [], iter(names)
    for call in calls:
        entry: dict[str, Any] = {"layer": call.layer}
        for kind, tensors in (("inputs", call.inputs), ("outputs", call.outputs)):
            entry[kind] = [next(remaining) for _ in tensors]
        if call.batch_first:
            entry |= _batch_first(graph, entry) or {"time_first": True}
        for kind, tensors in (("inputs", call.inputs), ("outputs", call.outputs)):
            for name, tensor in zip(entry[kind], tensors, strict=True):
                if name not in known:
                    known.add(name)
                    _set_type(graph, name, tensor)
        described.append(entry)
    return described


def _batch_first(graph: Any, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the ends of a call with the batch first, as far as the graph holds them."""
    transposes = [node for node in graph.node if node.op_type == "Transpose"]
    swaps = [node for node in transposes if any(list(attribute.ints) == [1, 0, 2] for attribute in node.attribute)]
    read = next((node.input[0] for node in swaps if node.output[0] == entry["inputs"][0]), None)
    given = next((node.output[0] for node in swaps if node.input[0] == entry["outputs"][0]), None)
    if read is None or given is None:
        return None
    return {"inputs": [read, *entry["inputs"][1:]], "outputs": [given, *entry["outputs"][1:]]}


def _set_type(graph: Any, name: str, tensor: Tensor) -> None:
    from onnx import helper

    for info in [info for info in graph.value_info if info.name == name]:
        graph.value_info.remove(info)
    shape = [*(f"{name}_dim_{axis}" for axis in range(tensor.dim() - 1)), tensor.shape[-1]]
    kind = helper.np_dtype_to_tensor_dtype(tensor.detach().cpu().numpy().dtype)
    graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _untapped(graph: Any, name: str) -> str:
    """Return the tensor that a tap copies, and remove the copy."""
    for node in graph.node:
        if name in node.output and node.op_type == "Identity":
            graph.node.remove(node)
            return node.input[0]
    return name
