"""The C text of a program's functions: reset, step, run, logits."""

from __future__ import annotations

from collections.abc import Iterator

from qgru.export.c99.program import Direction, Program, is_copied


def definitions(program: Program) -> Iterator[str]:
    """Yield the functions' definitions in order."""
    for direction in program.directions:
        yield _cell_step(direction)
    if program.is_bidirectional:
        yield _run_layers(program)
        return
    yield _reset(program)
    yield _step(program)
    yield _run(program)
    if program.head:
        yield _logits(program)


def _cell_step(direction: Direction) -> str:
    cell, symbol = direction.cell, direction.symbol
    return f"""
/* {direction.title}: one time step. */
static void {symbol}_step(const {cell.x.type.name} *x, {cell.h.type.name} *h)
{{
    {cell.h.type.name} next[{cell.hidden}];
    qgru_step(&{symbol}, x, h, next);
    memcpy(h, next, sizeof next);
}}
"""


def _reset(program: Program) -> str:
    lines = [_reset_line(direction, f"state->{direction.name}") for direction in program.directions]
    return f"""
void {program.name}_reset({program.name}_state *state)
{{
{"".join(lines)}}}
"""


def _reset_line(direction: Direction, state: str, indent: str = "    ") -> str:
    h = direction.cell.h
    return f"{indent}qgru_reset({state}, {h.type.tag}, {h.offset}, {direction.cell.hidden});\n"


def _feed(direction: Direction, sources: list[str], indent: str) -> tuple[str, str]:
    """Return the lines that put a layer's input together, and what it is then called."""
    kind = direction.cell.x.type.name
    if not is_copied(direction):
        return "", f"(const {kind} *)({sources[0]})"
    part = direction.cell.input // len(sources)
    lines = ""
    for i, (source, feed) in enumerate(zip(sources, direction.feeds, strict=True)):
        target = f"codes + {i * part}" if i else "codes"
        if feed:
            lines += f"{indent}qgru_convert(&{direction.symbol}_feed_{i}, {source}, {target}, {part});\n"
        else:
            lines += f"{indent}memcpy({target}, {source}, {part} * sizeof *codes);\n"
    return lines, "codes"


def _codes(direction: Direction, indent: str) -> str:
    cell = direction.cell
    return f"{indent}{cell.x.type.name} codes[{cell.input}];\n" if is_copied(direction) else ""


def _step(program: Program) -> str:
    lines, source = "", "x"
    for direction in program.directions:
        feed, x = _feed(direction, [source], "        ")
        call = f"{direction.symbol}_step({x}, state->{direction.name});\n"
        codes = _codes(direction, "        ")
        lines += f"    {{\n{codes}{feed}        {call}    }}\n" if codes else f"    {call}"
        source = f"state->{direction.name}"
    write = _output(program, program.layers[-1][0], source, "y")
    return f"""
void {program.name}_step({program.name}_state *state, const {program.name}_x *x, {program.name}_y *y)
{{
{lines}    if (y)
        {write};
}}
"""


def _output(program: Program, direction: Direction, state: str, y: str) -> str:
    """Return the call that writes a state to its part of the output."""
    if program.outputs[direction.symbol]:
        return f"qgru_convert(&{direction.symbol}_to_y, {state}, {y}, {direction.cell.hidden})"
    return f"memcpy({y}, {state}, sizeof {state})"


def _run(program: Program) -> str:
    inputs, outputs = program.layers[0][0].cell.input, program.output_size
    return f"""
void {program.name}_run({program.name}_state *state, const {program.name}_x *x, int32_t steps, {program.name}_y *y)
{{
    for (int32_t t = 0; t < steps; ++t)
        {program.name}_step(state, x + t * {inputs}, y ? y + t * {outputs} : 0);
}}
"""


def _logits(program: Program) -> str:
    last, head = program.layers[-1][0], program.head
    outputs = len(head.biases)
    return f"""
void {program.name}_logits(const {program.name}_state *state, int16_t *logits)
{{
    for (int32_t unit = 0; unit < {len(head.matrix.shift.values) // 3}; ++unit) {{
        int32_t product[3];
        qgru_multiply(&{program.name}_head, unit, state->{last.name}, product);
        for (int32_t i = 0; i < 3 && 3 * unit + i < {outputs}; ++i)
            logits[3 * unit + i] = (int16_t)product[i];
    }}
}}
"""


def _run_layers(program: Program) -> str:
    """Layer by layer, for a walk from the end needs all of the sequence below it."""
    work = f", {program.name}_work *work" if len(program.layers) > 1 else ""
    blocks, sources = "", [f"x + t * {program.layers[0][0].cell.input}"]
    for layer in program.layers:
        offset = 0
        for direction in layer:
            cell, size = direction.cell, direction.cell.hidden
            feed, x = _feed(direction, sources, " " * 12)
            order = "int32_t t = steps; t-- > 0;" if direction.reverse else "int32_t t = 0; t < steps; ++t"
            row = f"y + t * {program.output_size}" + (f" + {offset}" if offset else "")
            between = f"memcpy(work[t].{direction.name}, h, sizeof h)"
            write = _output(program, direction, "h", row) if layer is program.layers[-1] else between
            reset = _reset_line(direction, "h", " " * 8)
            blocks += f"""    {{ /* {direction.title} */
        {cell.h.type.name} h[{size}];
{_codes(direction, " " * 8)}{reset}        for ({order}) {{
{feed}            {direction.symbol}_step({x}, h);
            {write};
        }}
    }}
"""
            offset += size
        sources = [f"work[t].{direction.name}" for direction in layer]
    return f"""
void {program.name}_run(const {program.name}_x *x, int32_t steps, {program.name}_y *y{work})
{{
{blocks}}}
"""
