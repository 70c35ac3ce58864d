"""The C text of a program's header: what it costs, its grids, its types and its functions."""

from __future__ import annotations

from qgru.export.c99.program import Program
from qgru.grid import Grid


def header(program: Program, data_bytes: int) -> str:
    """Return ``<name>.h``."""
    name, guard = program.name, program.name.upper()
    return f"""/* {name}: a quantized GRU on integers, written by qgru. No float, no heap, no recursion.
 *
{_table(program)} *
 * An integer q on a grid stands for (q - zero point) * 2^-exponent. Inputs are taken to be on their grid.
 * Bytes: constants {data_bytes:,}; state {program.state_bytes:,}; arrays on the stack {program.stack_bytes:,}.
 * Multiply-accumulates a time step: {program.multiply_accumulates:,}.
 */
#ifndef {guard}_H
#define {guard}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {guard}_INPUT {program.layers[0][0].cell.input}
#define {guard}_OUTPUT {program.output_size}
{_exponents(f"{guard}_X", program.x.grid)}{_outputs(program)}
typedef {program.x.type.name} {name}_x;
typedef {program.y[0].type.name} {name}_y;

{_bidirectional(program) if program.is_bidirectional else _unidirectional(program)}
#ifdef __cplusplus
}}
#endif

#endif
"""


def _table(program: Program) -> str:
    rows = [("layer", "inputs", "units", "weights", "input.x", "output.h")]
    for direction in program.directions:
        cell = direction.cell
        bits = " ".join("4" if m.weights.is_packed else str(8 * m.weights.type.size) for m in (cell.Wx, cell.Rh))
        sizes = (str(cell.input), str(cell.hidden), f"{bits} bits")
        rows.append((direction.title, *sizes, _grid(cell.x.grid), _grid(cell.h.grid)))
    if program.head:
        head = program.head
        sizes = (str(head.weights.shape[1]), str(len(head.biases)), "8 bits")
        rows.append((head.name, *sizes, _grid(head.state), _grid(head.grid)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f" *   {line}\n" for line in lines)


def _grid(grid: Grid) -> str:
    zero = f", zero {grid.zero_point}" if grid.zero_point else ""
    return f"{'u' * grid.is_unsigned}int{grid.bitwidth} 2^{-grid.exp2_inv}{zero}"


def _exponents(prefix: str, grid: Grid) -> str:
    return f"#define {prefix}_EXP ({grid.exp2_inv})\n#define {prefix}_ZERO ({grid.zero_point})\n"


def _outputs(program: Program) -> str:
    guard, (forward, *reverse) = program.name.upper(), program.y
    text = f"#define {guard}_HIDDEN {program.layers[-1][0].cell.hidden}\n" + _exponents(f"{guard}_H", forward.grid)
    for numbers in reverse:
        text += _exponents(f"{guard}_H_REVERSE", numbers.grid)
    if program.head:
        text += f"#define {guard}_LOGITS {len(program.head.biases)}\n"
        text += _exponents(f"{guard}_LOGITS", program.head.grid)
    return text


def _unidirectional(program: Program) -> str:
    name, guard = program.name, program.name.upper()
    members = "".join(f"    {d.cell.h.type.name} {d.name}[{d.cell.hidden}];\n" for d in program.directions)
    text = f"""typedef struct {{
{members}}} {name}_state;

/* A state of zeros: the start of a sequence. */
void {name}_reset({name}_state *state);

/* One time step. x: {guard}_INPUT integers; y: {guard}_OUTPUT, or null. */
void {name}_step({name}_state *state, const {name}_x *x, {name}_y *y);

/* `steps` time steps, one behind the other. x: [steps][{guard}_INPUT]; y: [steps][{guard}_OUTPUT], or null. */
void {name}_run({name}_state *state, const {name}_x *x, int32_t steps, {name}_y *y);
"""
    if program.head:
        text += f"""
/* {program.head.name} of the state after the last step. logits: {guard}_LOGITS integers. */
void {name}_logits(const {name}_state *state, int16_t *logits);
"""
    return text


def _bidirectional(program: Program) -> str:
    name, guard = program.name, program.name.upper()
    between = [direction for layer in program.layers[:-1] for direction in layer]
    members = "".join(f"    {d.cell.h.type.name} {d.name}[{d.cell.hidden}];\n" for d in between)
    struct = f"/* What layers hand to each other of one time step. */\ntypedef struct {{\n{members}}} {name}_work;\n\n"
    parameter, text = (f", {name}_work *work", "; work: [steps]") if between else ("", "")
    shapes = f"x: [steps][{guard}_INPUT]; y: [steps][{guard}_OUTPUT]{text}"
    return f"""{struct if between else ""}/* A whole sequence, which two directions need. {shapes}. */
void {name}_run(const {name}_x *x, int32_t steps, {name}_y *y{parameter});
"""
