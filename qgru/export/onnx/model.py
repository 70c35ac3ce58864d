"""A program as an ONNX model of its own, which no exporter of torch has a part in."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from qgru.export.onnx.program import ONNX_TYPES, Constant, Node, Program, Value

_IR_VERSION = 10  # of opset 21, the youngest that is written


def to_model(program: Program, names: Mapping[Value, str], name: str, opset: int) -> Any:
    """Return an `onnx.ModelProto` of a program without loops.

    Args:
        program: what to write down.
        names: of its inputs and outputs, and of other values that are to have one.
        name: of the graph; in front of the other tensors' numbers.
        opset: version of ONNX's default domain.
    """
    from onnx import helper, numpy_helper

    numbers = count()
    of_value = dict(names)

    def name_of(value: Value | None) -> str:
        if value is None:
            return ""
        if value not in of_value:
            of_value[value] = f"{name}/{next(numbers)}"
        return of_value[value]

    nodes = [
        helper.make_node(
            node.op,
            [name_of(value) for value in node.inputs],
            [name_of(value) for value in node.outputs],
            name=name_of(node.outputs[0]),
            **_attributes(node),
        )
        for node in program.nodes
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [_info(helper, value, names[value]) for value in program.inputs],
        [_info(helper, value, names[value]) for value in program.outputs],
        [numpy_helper.from_array(constant.array, name_of(constant)) for constant in program.constants()],
        value_info=[_info(helper, value, given) for value, given in names.items() if _is_inner(value, program)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION, producer_name="qgru"
    )


def _attributes(node: Node) -> dict[str, Any]:
    return {name: ONNX_TYPES[value] if name == "to" else value for name, value in node.attributes.items()}


def _info(helper: Any, value: Value, name: str) -> Any:
    shape = [{"B": "batch"}.get(size, size) if isinstance(size, str) else size for size in value.shape]
    return helper.make_tensor_value_info(name, ONNX_TYPES[value.dtype], shape)


def _is_inner(value: Value, program: Program) -> bool:
    return not isinstance(value, Constant) and value not in (*program.inputs, *program.outputs)
