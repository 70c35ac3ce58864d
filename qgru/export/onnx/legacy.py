"""Replays a program into `torch.onnx.export(..., dynamo=False)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qgru.export.onnx.program import ONNX_TYPES, Node, Program, TimeLoop, Value
from qgru.torch_private import OptionalType, TensorType, add_op_with_blocks


class Replay(torch.autograd.Function):
    """A program as one opaque operator, which the exporter asks to write itself."""

    @staticmethod
    def forward(ctx: Any, program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return zeros of the shapes of the program's outputs: an exporter looks at nothing else."""
        sizes = {"T": inputs[0].shape[0], "B": inputs[0].shape[1]}
        shapes = [[sizes.get(size, size) for size in value.shape] for value in program.outputs]
        return tuple(inputs[0].new_zeros(shape) for shape in shapes)

    @staticmethod
    def symbolic(g: Any, program: Program, *inputs: Any) -> tuple[Any, ...]:
        """Append the program's nodes to the exporter's graph."""
        absent = g.op("prim::Constant")
        absent.setType(OptionalType.ofTensor())
        env = {None: absent, **dict(zip(program.inputs, inputs, strict=True))}
        for constant in program.constants():
            env[constant] = g.op("Constant", value_t=torch.from_numpy(constant.array.copy()))
        _append(g, program, env)
        return tuple(env[value] for value in program.outputs)


def _append(g: Any, program: Program, env: dict[Value | None, Any]) -> None:
    for node in program.nodes:
        inputs = [env[value] for value in node.inputs]
        if isinstance(node, TimeLoop):
            results = _append_loop(g, node, inputs, env)
        else:
            results = g.op(node.op, *inputs, outputs=len(node.outputs), **_attributes(node))
        results = results if len(node.outputs) > 1 else (results,)
        for value, result in zip(node.outputs, results, strict=True):
            result.setType(_type(result, value))
            env[value] = result


def _append_loop(g: Any, loop: TimeLoop, inputs: list[Any], env: dict[Value | None, Any]) -> tuple[Any, Any]:
    state, *sequences = inputs
    shape = g.op("Shape", sequences[0])
    zero = g.op("Constant", value_t=torch.tensor(0))
    steps = g.op("Gather", shape, zero, axis_i=0)
    true = g.op("Constant", value_t=torch.tensor(True))
    (final, states), (body,), _ = add_op_with_blocks(g, "Loop", steps, true, state, outputs=2, n_blocks=1)
    step, condition, carried = (body.block.addInputToBlock() for _ in range(3))
    step.setType(TensorType.get().with_dtype(torch.int64).with_sizes([]))
    condition.setType(TensorType.get().with_dtype(torch.bool).with_sizes([]))
    carried.setType(_type(carried, loop.body.inputs[0]))
    slices = [body.op("Gather", sequence, step, axis_i=0) for sequence in sequences]
    for value, part in zip(loop.body.inputs, (carried, *slices), strict=True):
        part.setType(_type(part, value))
        env[value] = part
    _append(body, loop.body, env)
    updated = env[loop.body.outputs[0]]
    for result in (condition, updated, body.op("Identity", updated)):
        body.block.registerOutput(result)
    return states, final


def _attributes(node: Node) -> dict[str, Any]:
    """Return the attributes with the suffix that tells the exporter their type."""
    values = {name: ONNX_TYPES[value] if name == "to" else value for name, value in node.attributes.items()}
    return {f"{name}_{'s' if isinstance(value, str) else 'i'}": value for name, value in values.items()}


def _type(result: Any, value: Value) -> Any:
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    return TensorType.get().with_dtype(getattr(torch, value.dtype)).with_sizes(sizes)
