"""One layer as a C++ namespace: types, ROMs, and a time step whose loops have constant bounds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qgru.export.hls.types import Operator, Type, identifier, integer_type
from qgru.grid import Grid
from qgru.ops.plan import FUNCTIONS, TABLE_BITS
from qgru.ops.reference import activation_table
from qgru.schema import ACTIVATIONS, BIASES, OPTIONAL


def namespace(name: str, title: str, grids: Mapping[str, Grid], weights: Mapping[str, Tensor]) -> str:
    """Return a layer's C++.

    Args:
        name: of the namespace.
        title: for people.
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
        weights: the integers of the four parameters, (3 * hidden, ...) in PyTorch's gate order.

    Raises:
        ValueError: naming the operator, where a pre-activation is too wide for a ROM.
    """
    for gate in FUNCTIONS:
        width = grids[f"{gate}_pre"].bitwidth
        if width > TABLE_BITS:
            raise ValueError(f"operator '{gate}_pre' has {width} bits; expected at most {TABLE_BITS} for a ROM")
    operators = {operator: Operator.of(operator, grids[operator]) for operator in ACTIVATIONS}
    rows, inputs = weights["weight.W"].shape
    text = f"\n// {title}\nnamespace {name} {{\n\nconst int inputs = {inputs}, hidden = {rows // 3};\n\n"
    text += "".join(_typedef(operator) for operator in operators.values())
    for weight, operand, length in (("weight.W", "input.x", "inputs"), ("weight.R", "output.h", "hidden")):
        text += _product(weight, operators[operand], length, weights[weight], grids[weight])
    text += "".join(_bias(bias, weights[bias], grids[bias]) for bias in BIASES)
    text += "".join(_rom(gate, operators) for gate in FUNCTIONS)
    return f"{text}{_step(operators)}\n}}  // namespace {name}\n"


def _typedef(operator: Operator) -> str:
    grid = operator.grid
    note = f"  // zero point {grid.zero_point}, mantissas {grid.mantissas[0]} to {grid.mantissas[1]}\n"
    return operator.type.definition.rstrip("\n") + (note if grid.zero_point else "\n")


def _product(weight: str, operand: Operator, length: str, integers: Tensor, grid: Grid) -> str:
    """Return the ROM of a matrix, and the function of its exact products, on the finest row's exponent."""
    name, rows = identifier(weight), integers.tolist()
    finest, shifts = _aligned(grid, len(rows))
    total = max(sum(map(abs, row)) << shift for row, shift in zip(rows, shifts, strict=True))
    product = Type.exact(f"{name}_product_t", total * operand.grid.mantissa_bound, finest + operand.grid.exp2_inv)
    accumulator = Type(f"{name}_sum_t", product.width, operand.grid.exp2_inv, is_exact=True)
    arrays = array(f"{name}[3 * hidden][{length}]", rows) + array(f"{name}_shift[3 * hidden]", shifts)
    return f"""
typedef ap_{"u" * grid.is_unsigned}int<{grid.bitwidth}> {name}_t;
{accumulator.definition}{product.definition}{arrays}
inline {product.name} {name}_times(int row, const {operand.type.name} vector[{length}]) {{
  {accumulator.name} sum = 0;
{name}_terms:
  for (int i = 0; i < {length}; ++i) sum += {name}_t({name}[row][i]) * vector[i];
  return same_bits<{product.name}>(sum << int({name}_shift[row]));
}}
"""


def _bias(operator: str, integers: Tensor, grid: Grid) -> str:
    """Return the ROM of a bias, and the function of its values, on the finest channel's exponent."""
    name, values = identifier(operator), integers.tolist()
    finest, shifts = _aligned(grid, len(values))
    bound = max(abs(value) << shift for value, shift in zip(values, shifts, strict=True))
    aligned = Type.exact(f"{name}_t", bound, finest)
    arrays = array(f"{name}[3 * hidden]", values) + array(f"{name}_shift[3 * hidden]", shifts)
    return f"""
{aligned.definition}{arrays}
inline {aligned.name} {name}_of(int row) {{
  return same_bits<{aligned.name}>({aligned.bits}({name}[row]) << int({name}_shift[row]));
}}
"""


def _aligned(grid: Grid, channels: int) -> tuple[int, list[int]]:
    """Return the finest of the channels' exponents, and how far each has to be shifted to it."""
    exponents = grid.exponents if grid.is_per_channel else grid.exponents * channels
    return max(exponents), [max(exponents) - exponent for exponent in exponents]


def _rom(gate: str, operators: Mapping[str, Operator]) -> str:
    """Return a function's ROM, mantissas of its output by mantissa of its input, and the look-up."""
    name, pre, out = identifier(gate), operators[f"{gate}_pre"], operators[f"{gate}_out"]
    table = activation_table(FUNCTIONS[gate], pre.grid, out.grid) - out.grid.zero_point
    index = f"same_bits<{pre.type.bits} >(pre).to_int() - ({pre.grid.mantissas[0]})"
    return f"""
// {FUNCTIONS[gate]}
{array(f"{name}_rom[{len(table)}]", table.tolist())}
inline {out.type.name} {name}({pre.type.name} pre) {{
  return same_bits<{out.type.name}>({out.type.bits}({name}_rom[{index}]));
}}
"""


def array(declaration: str, values: Sequence[Any]) -> str:
    """Return a ROM: of C's own types, which a compiler has as data and not as constructors' calls."""
    flat = torch.tensor(values).flatten().tolist()
    text = textwrap.fill(", ".join(map(str, flat)), 116, initial_indent="    ", subsequent_indent="    ")
    if values and isinstance(values[0], list):
        rows = (", ".join(map(str, row)) for row in values)
        text = ",\n".join(
            textwrap.fill(f"{{{row}}}", 116, initial_indent="    ", subsequent_indent="     ") for row in rows
        )
    return f"static const {integer_type(min(flat), max(flat))} {declaration} = {{\n{text}}};\n"


def _step(operators: Mapping[str, Operator]) -> str:
    def declare(operator: str, expression: str, name: str) -> str:
        known = operators[operator]
        return f"    const {known.type.name} {name} = {known.quantize(expression)};\n"

    both = " + weight_bw_of({0}) + weight_br_of({0})"
    lines = declare("gate.r_pre", "Wx[r_] + Rh[r_]" + both.format("r_"), "r_pre")
    lines += declare("gate.z_pre", "Wx[z_] + Rh[z_]" + both.format("z_"), "z_pre")
    lines += "    const gate_r_out_t r = gate_r(r_pre);\n    const gate_z_out_t z = gate_z(z_pre);\n"
    lines += declare(OPTIONAL, "Rh[g_] + weight_br_of(g_)", "c")
    lines += declare("op.rRh", "r * c", "m")
    lines += declare("gate.g_pre", "Wx[g_] + weight_bw_of(g_) + m", "g_pre")
    lines += "    const gate_g_out_t g = gate_g(g_pre);\n"
    lines += declare("op.old_contrib", "z * h[j]", "old_contrib")
    lines += declare("op.new_contrib", "(ap_int<2>(1) - z) * g", "new_contrib")
    return f"""
// One time step; h is replaced by the next state.
inline void step(const input_x_t x[inputs], output_h_t h[hidden]) {{
  matmul_Wx_t Wx[3 * hidden];
  matmul_Rh_t Rh[3 * hidden];
rows:
  for (int row = 0; row < 3 * hidden; ++row) {{
    Wx[row] = {operators["matmul.Wx"].quantize("weight_W_times(row, x)")};
    Rh[row] = {operators["matmul.Rh"].quantize("weight_R_times(row, h)")};
  }}
units:
  for (int j = 0; j < hidden; ++j) {{
    const int r_ = j, z_ = hidden + j, g_ = 2 * hidden + j;
{lines}    h[j] = {operators["output.h"].quantize("old_contrib + new_contrib")};
  }}
}}
"""
