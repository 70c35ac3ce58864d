"""One time step as a graph, states in and out, in which every operator's tensor has the operator's name.

The equations are those of `quantized`; what differs here is what a quantizer is: nothing in the float graph, a pair of
QuantizeLinear and DequantizeLinear in the quantized one, and in the one for encodings the place where another tool puts
that pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qgru.export.onnx.arithmetic import Arithmetic, Exact, Target, Weight, wider
from qgru.export.onnx.program import Builder, Constant, Program, Value
from qgru.export.onnx.quantized import Cell, step
from qgru.grid import Grid
from qgru.ops.plan import TABLE_BITS
from qgru.ops.reference import FUNCTIONS
from qgru.schema import BIASES

_OPERATORS = {"sigmoid": "Sigmoid", "tanh": "Tanh"}
_STATE = "input.h"
_FLOAT32_ERROR = 2.0**-21  # of a sigmoid or tanh in float32; its rounding alone is 2**-25


@dataclass(frozen=True)
class OperatorGrid(Grid):
    """A grid that knows whose it is.

    Attributes:
        tensor: what the graph calls the operator's values.
    """

    tensor: str = ""


@dataclass(frozen=True)
class StepGraph:
    """A graph of one time step.

    Attributes:
        program: from x (B, input) and the states (layers, B, hidden) to y (B, hidden) and the next states.
        names: of its values, as far as they have any.
        grids: of every operator's tensor in it, by the tensor's name, in the order of computation.
    """

    program: Program
    names: Mapping[Value, str]
    grids: Mapping[str, Grid]


def step_graph(layers: Sequence[Cell], name: str, dtype: str, kind: type[StepArithmetic], target: Target) -> StepGraph:
    """Build the graph of one time step.

    Args:
        layers: one direction each; ``weight.*`` as integers, or as real numbers for `FloatStep`.
        name: of the module, in front of the tensors' names.
        dtype: of the module's input and output.
        kind: what quantizers are.
        target: what the file may hold.

    Raises:
        ValueError: where an operator can't be held exactly; names it.
    """
    hidden = layers[0].hidden_size
    x, states = Value(dtype, ("B", layers[0].input_size)), Value(dtype, (len(layers), "B", hidden))
    builder = Builder((x, states))
    names: dict[Value, str] = {x: "x", states: f"{name}.h_in"}
    grids: dict[str, Grid] = {}
    feed, updated = builder.cast(x, wider(dtype)), []
    for layer, cell in enumerate(layers):
        own = {op: _owned(grid, _tensor(name, op, layer)) for op, grid in cell.grids.items()}
        math = kind(builder, target, cell.name, names, grids)
        index = Constant.of(layer, "int64")
        h0 = builder.op("Gather", states, index, dtype=dtype, shape=("B", hidden), axis=0)
        h = math.quantize(builder.cast(h0, wider(dtype)), _owned(own["output.h"], _tensor(name, _STATE, layer)))
        h = _append_layer(math, replace(cell, grids=own), math.quantize(feed, own["input.x"]), h)
        feed = h.value
        updated.append(math.unfused(h).value)  # ONNX Runtime moves Unsqueeze before DequantizeLinear, and fails
    zero = Constant.of([0], "int64")
    rows = [builder.op("Unsqueeze", h, zero, dtype=h.dtype, shape=(1, "B", hidden)) for h in updated]
    same = wider(*(row.dtype for row in rows))
    stacked = builder.concatenate([builder.cast(row, same) for row in rows], axis=0)
    ends = [_end(builder, value, dtype) for value in (feed, stacked)]
    names |= dict(zip(ends, ("y", f"{name}.h_out"), strict=True))
    return StepGraph(builder.program(*ends), names, grids)


def _append_layer(math: StepArithmetic, cell: Cell, x: Exact, h: Exact) -> Exact:
    weights = {name: math.weight(integers, cell.grids[name]) for name, integers in cell.weights.items()}
    sizes = (2 * cell.hidden_size, cell.hidden_size)
    biases = [math.split(weights[name].exact, sizes) for name in BIASES if name in weights]
    Wx = math.quantize(math.matmul("matmul.Wx", x, weights["weight.W"]), cell.grids["matmul.Wx"])
    gates, new = math.split(Wx, sizes)
    if biases:
        gates = math.add("gate.r_pre, gate.z_pre", gates, *(of_gates for of_gates, _ in biases))
        new = math.add("gate.g_pre", new, biases[0][1])
    return step(math, cell.grids, h, gates, new, weights["weight.R"], biases[1][1] if biases else None)


def _end(builder: Builder, value: Value, dtype: str) -> Value:
    if value.dtype != dtype:
        return builder.op("Cast", value, dtype=dtype, shape=value.shape, to=dtype)
    return builder.op("Identity", value, dtype=dtype, shape=value.shape)


def _tensor(name: str, operator: str, layer: int) -> str:
    return f"{name}/{operator}{f'_l{layer}' if layer else ''}"


def _owned(grid: Grid, tensor: str) -> OperatorGrid:
    return OperatorGrid(grid.bitwidth, grid.is_symmetric, grid.is_unsigned, grid.exp2_inv, grid.zero_point, tensor)


class StepArithmetic(Arithmetic):
    """The quantized graph: each quantizer is a pair of nodes, and what comes out has the operator's name.

    No table stands for a function, so that the graph has a tensor for every operator. It is evaluated in float32 where
    no error of that can change an integer, otherwise in float64, and rounded there.
    """

    def __init__(
        self, builder: Builder, target: Target, where: str, names: dict[Value, str], grids: dict[str, Grid]
    ) -> None:
        super().__init__(builder, target, where)
        self.names, self.grids = names, grids

    def quantize(self, a: Exact | Value, grid: Grid) -> Exact:
        """Return ``Q(a)`` in a tensor of the operator's name."""
        return self._named(super().quantize(a, grid), grid)

    def activate(self, function: str, pre: Exact, pre_grid: Grid, grid: Grid) -> Exact:
        """Return ``Q(function(Q(pre)))``, both in tensors of their operators' names."""
        dtype = "float32" if _is_safe(function, pre_grid, grid) else "float64"
        return self.quantize(self._function(function, self.quantize(pre, pre_grid), dtype), grid)

    def weight(self, integers: torch.Tensor, grid: Grid) -> Weight:
        """Return weights, out of a tensor of the operator's name.

        Not right out of it: ONNX Runtime would make of that an integer product, which saturates on x86 without VNNI, or
        a product that rounds its other factor.
        """
        weight = super().weight(integers, grid)
        return replace(weight, exact=self.unfused(self._named(weight.exact, grid)))

    def multiply(self, operator: str, a: Exact, b: Exact) -> Exact:
        """Return the elementwise product; none that ONNX Runtime fuses with its quantizer, which would move ties."""
        return super().multiply(operator, self.unfused(a) if a.value in self.names else a, b)

    def _function(self, function: str, at: Exact, dtype: str) -> Value:
        point = self.builder.cast(at.value, dtype)
        return self.builder.op(_OPERATORS[function], point, dtype=dtype, shape=point.shape)

    def _named(self, a: Exact, grid: Grid) -> Exact:
        if a.value in self.names:  # a tensor has one name
            a = replace(a, value=self.builder.op("Identity", a.value, dtype=a.value.dtype, shape=a.value.shape))
        assert isinstance(grid, OperatorGrid)
        self.names[a.value] = grid.tensor
        self.grids[grid.tensor] = grid
        return a


class FloatStep(StepArithmetic):
    """The float graph: a quantizer only gives its name, and weights are real numbers."""

    def quantize(self, a: Exact | Value, grid: Grid) -> Exact:
        """Return `a` in a tensor of the operator's name."""
        return self._named(a if isinstance(a, Exact) else _real(a), grid)

    def activate(self, function: str, pre: Exact, pre_grid: Grid, grid: Grid) -> Exact:
        """Return ``function(pre)``, both in tensors of their operators' names."""
        at = self.quantize(pre, pre_grid)
        return self.quantize(self._function(function, at, at.value.dtype), grid)

    def weight(self, integers: torch.Tensor, grid: Grid) -> Weight:
        """Return weights, given as real numbers, in a tensor of the operator's name."""
        array = integers.cpu().numpy().T
        return Weight(self._named(_real(Constant.of(array, wider(str(array.dtype)))), grid), array)

    def unfused(self, a: Exact) -> Exact:
        """Return the tensor: nothing here is dequantized."""
        return a

    def _dtype(self, operator: str, exponent: np.ndarray, limit: np.ndarray) -> str:
        return wider(self.builder.inputs[0].dtype)


def _real(value: Value) -> Exact:
    return Exact(value, np.array(0.0), np.array(0.0))


class EncodedStep(StepArithmetic):
    """The graph for encodings: float32 wherever that is proven exact, and no quantizer.

    What is not exact in float32 is rounded to the grid in float64 first; the quantizer that the encodings ask for then
    finds it there.
    """

    def quantize(self, a: Exact | Value, grid: Grid) -> Exact:
        """Return what is to be quantized in a tensor of the operator's name."""
        value = a.value if isinstance(a, Exact) else a
        if isinstance(a, Exact) and bool(np.all(a.limit * 2.0**a.exponent <= 2.0**24)):
            value = self.builder.cast(value, "float32")
        if value.dtype == "float64":
            steps = self._scale(value, 2.0**grid.exp2_inv)
            rounded = self.builder.op("Round", steps, dtype="float64", shape=steps.shape)
            value = self.builder.cast(self._scale(rounded, grid.scale), "float32")
        exact = Exact(value, np.array(float(grid.exp2_inv)), np.array(grid.mantissa_bound * grid.scale))
        return self._named(exact, grid)

    def _stored_weight(self, array: np.ndarray, scale: np.ndarray, grid: Grid) -> Value:
        return Constant.of(array * scale, "float32")


def _is_safe(function: str, pre: Grid, out: Grid) -> bool:
    """Tell whether a function that is off by `_FLOAT32_ERROR` still gives its integer at every grid point."""
    if pre.bitwidth > TABLE_BITS:
        return False
    steps = FUNCTIONS[function](pre.dequantize(torch.arange(pre.qmin, pre.qmax + 1))) * 2.0**out.exp2_inv
    return bool(((steps - steps.floor() - 0.5).abs() > _FLOAT32_ERROR * 2.0**out.exp2_inv).all())
