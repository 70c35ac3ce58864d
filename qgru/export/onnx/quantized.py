"""The definition of a quantized GRU as a graph: the one place where the equations meet ONNX's operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qgru.export.onnx.arithmetic import Arithmetic, Exact, Target, Weight, wider
from qgru.export.onnx.program import Builder, Constant, Program, Value
from qgru.grid import Grid
from qgru.schema import OPTIONAL


@dataclass(frozen=True)
class Cell:
    """One layer and direction.

    Attributes:
        name: what errors call it.
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
        weights: ``weight.W`` (3 * hidden, input), ``weight.R`` (3 * hidden, hidden) and, unless the module has no
            biases, ``weight.bw``, ``weight.br`` (3 * hidden,), as integers in PyTorch's gate order r, z, n.
        reverse: the walk is from the last time step to the first.
    """

    name: str
    grids: Mapping[str, Grid]
    weights: Mapping[str, torch.Tensor]
    reverse: bool

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return self.weights["weight.W"].shape[1]

    @property
    def hidden_size(self) -> int:
        """Units."""
        return self.weights["weight.R"].shape[1]


def gru_program(layers: Sequence[Sequence[Cell]], dtype: str, has_hx: bool, target: Target) -> Program:
    """Build the graph of a whole module.

    Args:
        layers: for each layer the cells of its directions.
        dtype: of the module's input and output, ``"float16"``, ``"float32"`` or ``"float64"``.
        has_hx: False leaves hx out of the program's inputs; the initial state is zero then.
        target: what the file may hold.

    Returns:
        A program from input (T, B, input) and hx (layers * directions, B, hidden) to output
        (T, B, directions * hidden) and h_n (layers * directions, B, hidden).

    Raises:
        ValueError: where an exact sum or product takes more than 53 bits; names the operator that rounds it.
    """
    hidden, rows = layers[0][0].hidden_size, sum(len(cells) for cells in layers)
    input = Value(dtype, ("T", "B", layers[0][0].input_size))
    hx = Value(dtype, (rows, "B", hidden))
    builder = Builder((input, hx) if has_hx else (input,))
    given = builder.cast(input, wider(dtype))  # float16 takes part in no arithmetic
    sequence, finals = given, []
    for cells in layers:
        x = Arithmetic(builder, target, cells[0].name).quantize(sequence, cells[0].grids["input.x"])
        outputs = []
        for cell in cells:
            if has_hx:
                index = Constant.of(len(finals), "int64")
                h0 = builder.op("Gather", hx, index, dtype=dtype, shape=("B", hidden), axis=0)
                h0 = builder.cast(h0, wider(dtype))
            else:
                h0 = builder.zero_state(given, hidden)
            output, final = _append_cell(builder, target, cell, x, h0)
            outputs.append(output)
            finals.append(final)
        sequence = _join(builder, outputs, axis=2)
    zero = Constant.of([0], "int64")
    finals = [builder.op("Unsqueeze", h, zero, dtype=h.dtype, shape=(1, "B", hidden)) for h in finals]
    return builder.program(builder.cast(sequence, dtype), builder.cast(_join(builder, finals, axis=0), dtype))


def _append_cell(builder: Builder, target: Target, cell: Cell, x: Exact, h0: Value) -> tuple[Value, Value]:
    """Append one layer and direction; returns all states (T, B, hidden) and the final one (B, hidden)."""
    math = Arithmetic(builder, target, cell.name)
    weights = {name: math.weight(integers, cell.grids[name]) for name, integers in cell.weights.items()}
    sizes = (2 * cell.hidden_size, cell.hidden_size)
    biases = {name: math.split(weights[name].exact, sizes) for name in ("weight.bw", "weight.br") if name in weights}

    # ONNX Runtime would make this an integer product, which saturates on x86 without VNNI.
    W = replace(weights["weight.W"], exact=math.unfused(weights["weight.W"].exact))
    product = math.matmul("matmul.Wx", x, W)
    if cell.reverse:
        product = replace(product, value=builder.flip(product.value))
    gates, new = math.split(math.quantize(product, cell.grids["matmul.Wx"]), sizes)
    if biases:
        gates = math.add("gate.r_pre, gate.z_pre", gates, *(gates_bias for gates_bias, _ in biases.values()))
        new = math.add("gate.g_pre", new, biases["weight.bw"][1])

    h = math.quantize(h0, cell.grids["output.h"])
    inner = Builder([Value(value.dtype, value.shape[-2:]) for value in (h.value, gates.value, new.value)], builder)
    in_step = [replace(e, value=value) for e, value in zip((h, gates, new), inner.inputs, strict=True)]
    br_g = biases["weight.br"][1] if biases else None
    updated = step(Arithmetic(inner, target, cell.name), cell.grids, *in_step, weights["weight.R"], br_g)
    states, final = builder.loop(h.value, (gates.value, new.value), inner.program(updated.value))
    return (builder.flip(states) if cell.reverse else states), final


def step(
    math: Arithmetic, grids: Mapping[str, Grid], h: Exact, gates: Exact, new: Exact, R: Weight, br_g: Exact | None
) -> Exact:
    """Append one time step; returns the next state.

    Args:
        math: of the loop's body.
        grids: by operator.
        h: (B, hidden), the state.
        gates: (B, 2 * hidden), ``Wx + bw + br`` of r and z.
        new: (B, hidden), ``Wx + bw`` of g.
        R: recurrent weights.
        br_g: recurrent bias of g, or None.
    """
    hidden = h.value.shape[-1]
    Rh_gates, Rh_g = math.split(math.quantize(math.matmul("matmul.Rh", h, R), grids["matmul.Rh"]), (2 * hidden, hidden))
    r, z = _gates(math, grids, math.add("gate.r_pre, gate.z_pre", gates, Rh_gates))
    c = math.quantize(Rh_g if br_g is None else math.add(OPTIONAL, Rh_g, br_g), grids[OPTIONAL])
    m = math.quantize(math.multiply("op.rRh", r, c), grids["op.rRh"])
    g = math.activate("tanh", math.add("gate.g_pre", new, m), grids["gate.g_pre"], grids["gate.g_out"])
    old_contrib = math.quantize(math.multiply("op.old_contrib", z, h), grids["op.old_contrib"])
    one_minus_z = math.one_minus("op.new_contrib", z)
    new_contrib = math.quantize(math.multiply("op.new_contrib", one_minus_z, g), grids["op.new_contrib"])
    return math.quantize(math.add("output.h", old_contrib, new_contrib), grids["output.h"])


def _gates(math: Arithmetic, grids: Mapping[str, Grid], pre: Exact) -> list[Exact]:
    """Append the sigmoids of r and z, one for both where their grids are the same; returns both (B, hidden).

    r does not come right out of DequantizeLinear: ONNX Runtime would fuse its product with another 8-bit factor and the
    quantizer behind into a kernel that moves ties.
    """
    sizes = (pre.value.shape[-1] // 2,) * 2
    r, z = ((grids[f"gate.{gate}_pre"], grids[f"gate.{gate}_out"]) for gate in "rz")
    if r == z:
        return math.split(math.activate("sigmoid", pre, *r), sizes)
    r_pre, z_pre = math.split(pre, sizes)
    return [math.unfused(math.activate("sigmoid", r_pre, *r)), math.activate("sigmoid", z_pre, *z)]


def _join(builder: Builder, values: Sequence[Value], axis: int) -> Value:
    dtype = wider(*(value.dtype for value in values))
    return builder.concatenate([builder.cast(value, dtype) for value in values], axis)
