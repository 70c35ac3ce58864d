"""Inputs and the integers that the module computes from them, as C arrays, and the program that compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qgru.export.c99.arrays import INT16, Array
from qgru.export.c99.program import Program
from qgru.export.c99.source import definition
from qgru.grid import Grid
from qgru.gru import QuantGRU

STEPS = 32
"""Time steps of a folder's vectors."""


def example(grid: Grid, inputs: int, steps: int = STEPS) -> Tensor:
    """Return (steps, inputs) integers that cover a grid, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(grid.qmin, grid.qmax + 1, (steps, inputs), generator=generator)


def expected(grus: Sequence[QuantGRU], x: Tensor) -> Tensor:
    """Return what the modules compute of a sequence, one behind the other.

    Args:
        grus: each is fed what the one before returns.
        x: (steps, input) integers on the first one's ``input.x``.

    Returns:
        (steps, directions * hidden) integers on the last one's ``output.h``.
    """
    for above, gru in enumerate(grus, 1):
        output = gru.forward_integers(x.unsqueeze(int(not gru.batch_first)))[0].squeeze(int(not gru.batch_first))
        if above == len(grus):
            return output
        grids = gru.output_grid if isinstance(gru.output_grid, tuple) else (gru.output_grid,)
        parts = zip(output.chunk(len(grids), -1), grids, strict=True)
        x = grus[above].input_grid.quantize(torch.cat([grid.dequantize(part) for part, grid in parts], -1))
    raise ValueError("no layer was given; expected at least one")


def vectors(program: Program, x: Tensor, y: Tensor) -> str:
    """Return ``<name>_vectors.h``.

    Args:
        program: the program.
        x: (steps, input) integers.
        y: (steps, output) integers, which they lead to from a state of zeros.
    """
    name = program.name
    text = "/* Inputs, and what qgru computes of them from a state of zeros. */\n"
    text += f"#define {name.upper()}_STEPS {len(x)}\n\n"
    text += definition(f"{name}_inputs", Array(tuple(x.flatten().tolist()), program.x.type))
    text += definition(f"{name}_outputs", Array(tuple(y.flatten().tolist()), program.y[0].type))
    if program.head:
        logits = program.head.integers(y.long())
        text += definition(f"{name}_expected_logits", Array(tuple(logits.flatten().tolist()), INT16))
    return text


def test_body(program: Program) -> str:
    """Return the function of ``test.c`` that runs the vectors."""
    return _run_test(program) if program.is_bidirectional else _step_test(program)


def _step_test(program: Program) -> str:
    name, guard = program.name, program.name.upper()
    logits = f"""        int16_t logits[{guard}_LOGITS];
        {name}_logits(&state, logits);
        for (int i = 0; i < {guard}_LOGITS; ++i)
            {name}_compare("logit", t, i, {name}_expected_logits[t * {guard}_LOGITS + i], logits[i]);
"""
    return f"""static void {name}_test(void)
{{
    static {name}_state state;
    {name}_reset(&state);
    for (int32_t t = 0; t < {guard}_STEPS; ++t) {{
        static {name}_y y[{guard}_OUTPUT];
        {name}_step(&state, {name}_inputs + t * {guard}_INPUT, y);
        for (int i = 0; i < {guard}_OUTPUT; ++i)
            {name}_compare("output", t, i, {name}_outputs[t * {guard}_OUTPUT + i], y[i]);
{logits if program.head else ""}    }}
}}
"""


def _run_test(program: Program) -> str:
    name, guard = program.name, program.name.upper()
    is_deep = len(program.layers) > 1
    work = f"    static {name}_work work[{guard}_STEPS];\n" * is_deep
    return f"""static void {name}_test(void)
{{
    static {name}_y y[{guard}_STEPS * {guard}_OUTPUT];
{work}    {name}_run({name}_inputs, {guard}_STEPS, y{", work" * is_deep});
    for (int32_t i = 0; i < {guard}_STEPS * {guard}_OUTPUT; ++i)
        {name}_compare("output", i / {guard}_OUTPUT, i % {guard}_OUTPUT, {name}_outputs[i], y[i]);
}}
"""
