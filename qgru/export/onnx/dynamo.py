"""Replays a program into `torch.onnx.export(..., dynamo=True)`."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from qgru.export.onnx.program import ONNX_TYPES, Dimension, Node, Program, TimeLoop, Value
from qgru.torch_private import EncodedAttrs, scan_op, symbolic, symbolic_multi_out


def replay(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run the program on an exporter's symbolic tensors.

    Args:
        program: what to append to the exporter's graph.
        inputs: the program's; the first is (time, batch, features).

    Returns:
        The program's outputs.
    """
    env = {None: None, **dict(zip(program.inputs, inputs, strict=True))}
    env.update({constant: torch.from_numpy(constant.array.copy()) for constant in program.constants()})
    sizes = {"T": inputs[0].shape[0], "B": inputs[0].shape[1]}
    _run(program, env, sizes)
    # ONNX's symbolic operators are on the CPU, whatever the module is on.
    return tuple(env[value].to(inputs[0].device) for value in program.outputs)


def _run(program: Program, env: dict[Value | None, Tensor | None], sizes: dict[str, Any]) -> None:
    for node in program.nodes:
        inputs = [env[value] for value in node.inputs]
        results = _scan(node, inputs, env, sizes) if isinstance(node, TimeLoop) else _append(node, inputs, sizes)
        env.update(zip(node.outputs, results, strict=True))


def _scan(
    loop: TimeLoop, inputs: list[Tensor], env: dict[Value | None, Tensor | None], sizes: dict[str, Any]
) -> list[Tensor]:
    captured = loop.captured

    def combine(*tensors: Tensor) -> list[Tensor]:
        inner = dict(zip((*loop.body.inputs, *captured), tensors, strict=True))
        _run(loop.body, inner, {"B": tensors[0].shape[0]})
        updated = inner[loop.body.outputs[0]]
        return [updated, updated.clone()]

    state, *sequences = inputs
    final, states = scan_op(combine, [state], sequences, tuple(env[value] for value in captured))
    return [states, final]


def _append(node: Node, inputs: list[Tensor], sizes: dict[str, Any]) -> list[Tensor]:
    attributes = EncodedAttrs.from_dict(
        {name: ONNX_TYPES[value] if name == "to" else value for name, value in node.attributes.items()}
    )
    encoded = {f"attr_{part}": getattr(attributes, f"attr_{part}") for part in _PARTS}
    shapes = [[_size(dimension, sizes) for dimension in value.shape] for value in node.outputs]
    types = [ONNX_TYPES[value.dtype] for value in node.outputs]
    rest = {**encoded, "metadata_props_keys": [], "metadata_props_values": []}
    if len(node.outputs) == 1:
        return [symbolic(inputs, node.op, types[0], shape=shapes[0], **rest)]
    return list(symbolic_multi_out(inputs, node.op, types, shapes=shapes, **rest))


def _size(dimension: Dimension, sizes: dict[str, Any]) -> Any:
    if isinstance(dimension, tuple):
        return prod(_size(factor, sizes) for factor in dimension)
    return dimension if isinstance(dimension, int) else sizes[dimension]


_PARTS = ("keys", "types", "pos", "ints", "floats", "strs")
