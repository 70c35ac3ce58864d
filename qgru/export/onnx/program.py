"""A small graph of ONNX operators that no exporter owns: built once, then replayed by each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

ONNX_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "float16": 10,
    "float64": 11,
}
"""ONNX's numbers of element types, by numpy's names."""

Dimension: TypeAlias = "int | str | tuple[Dimension, ...]"
"""A size, ``"T"`` (time), ``"B"`` (batch), or the product of several."""
_INT64_MIN = -(2**63)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in a graph.

    Attributes:
        dtype: numpy's name of the element type, ``"float32"``.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True, eq=False)
class Constant(Value):
    """A tensor whose elements are known."""

    array: np.ndarray

    @classmethod
    def of(cls, array: Any, dtype: str) -> Constant:
        """Make a constant of anything numpy takes."""
        elements = np.asarray(array, dtype=dtype)
        return cls(dtype, elements.shape, elements)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of ONNX's default domain; an input that is None is left out."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TimeLoop(Node):
    """A recurrence over dimension 0.

    Its inputs are (initial state, sequence, ...), its outputs (states of all steps, final state). The body's inputs
    are (state, a slice of each sequence), its output is the next state; it also reads values of the outer graph.
    """

    body: Program = None  # type: ignore[assignment]

    @property
    def captured(self) -> tuple[Value, ...]:
        """The outer values, constants among them, that the body reads."""
        inner = {id(value) for value in self.body.inputs}
        inner.update(id(value) for node in self.body.nodes for value in node.outputs)
        read = {id(value): value for node in self.body.nodes for value in node.inputs if id(value) not in inner}
        return tuple(read.values())


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """Nodes in the order they run, with what goes in and comes out."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def constants(self) -> Iterator[Constant]:
        """Yield every constant once, in the order of use, those of loop bodies included."""
        seen = set()
        for node in self.nodes:
            captured = node.captured if isinstance(node, TimeLoop) else ()
            for value in (*node.inputs, *captured):
                if isinstance(value, Constant) and id(value) not in seen:
                    seen.add(id(value))
                    yield value


class Builder:
    """Collects the nodes of a graph, or of a loop's body inside another graph."""

    def __init__(self, inputs: Sequence[Value], outer: Builder | None = None) -> None:
        self.inputs = tuple(inputs)
        self.outer = outer
        self.nodes: list[Node] = []
        self._casts: dict[tuple[Value, str], Value] = {}
        self._constants: dict[tuple[Any, ...], Constant] = {}

    def op(self, op: str, *inputs: Value, dtype: str, shape: Sequence[Dimension], **attributes: Any) -> Value:
        """Append a node with one output, of the given dtype and shape, and return that."""
        (output,) = self.node(op, inputs, [Value(dtype, tuple(shape))], **attributes)
        return output

    def node(
        self, op: str, inputs: Sequence[Value | None], outputs: Sequence[Value], **attributes: Any
    ) -> tuple[Value, ...]:
        """Append a node and return its outputs."""
        self.nodes.append(Node(op, tuple(map(self._shared, inputs)), tuple(outputs), attributes))
        return self.nodes[-1].outputs

    def cast(self, value: Value, dtype: str) -> Value:
        """Return the value in another type; what a loop only reads is cast outside of it."""
        if value.dtype == dtype:
            return value
        if self.outer is not None and not self._owns(value):
            return self.outer.cast(value, dtype)
        if (value, dtype) not in self._casts:
            self._casts[value, dtype] = self.op("Cast", value, dtype=dtype, shape=value.shape, to=dtype)
        return self._casts[value, dtype]

    def split(self, value: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        """Cut the last dimension into parts of the given sizes."""
        outputs = [Value(value.dtype, (*value.shape[:-1], size)) for size in sizes]
        return self.node("Split", (value, Constant.of(sizes, "int64")), outputs, axis=len(value.shape) - 1)

    def flip(self, value: Value) -> Value:
        """Reverse dimension 0."""
        bounds = (Constant.of([number], "int64") for number in (-1, _INT64_MIN, 0, -1))  # starts, ends, axes, steps
        return self.op("Slice", value, *bounds, dtype=value.dtype, shape=value.shape)

    def concatenate(self, values: Sequence[Value], axis: int) -> Value:
        """Join values of one type along a dimension of known size."""
        if len(values) == 1:
            return values[0]
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.op("Concat", *values, dtype=values[0].dtype, shape=shape, axis=axis)

    def zero_state(self, sequence: Value, hidden: int) -> Value:
        """Return zeros (B, hidden) for a sequence (T, B, features)."""
        shape = self.op("Shape", sequence, dtype="int64", shape=[3])
        batch = self.op("Gather", shape, Constant.of([1], "int64"), dtype="int64", shape=[1], axis=0)
        shape = self.concatenate([batch, Constant.of([hidden], "int64")], axis=0)
        return self.op("Expand", Constant.of(0, sequence.dtype), shape, dtype=sequence.dtype, shape=("B", hidden))

    def loop(self, state: Value, sequences: Sequence[Value], body: Program) -> tuple[Value, Value]:
        """Append a recurrence; returns the states of all steps and the final state."""
        outputs = (Value(state.dtype, ("T", *state.shape)), Value(state.dtype, state.shape))
        self.nodes.append(TimeLoop("Loop", (state, *sequences), outputs, body=body))
        return outputs

    def program(self, *outputs: Value) -> Program:
        """Close the graph."""
        return Program(self.inputs, tuple(self.nodes), outputs)

    def _shared(self, value: Value | None) -> Value | None:
        """Return one object for equal constants: a loop hands each of them to every step."""
        if not isinstance(value, Constant):
            return value
        if self.outer is not None:
            return self.outer._shared(value)
        return self._constants.setdefault((value.dtype, value.shape, value.array.tobytes()), value)

    def _owns(self, value: Value) -> bool:
        return value in self.inputs or any(value in node.outputs for node in self.nodes)
