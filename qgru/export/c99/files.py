"""The files of a folder, from the program and the C sources beside this module."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qgru.export.c99.code import definitions, output_links
from qgru.export.c99.header import header
from qgru.export.c99.program import Link, Numbers, Program, link
from qgru.export.c99.source import Constants, define_cell, define_link, matrix_fields
from qgru.export.c99.vectors import test_body, vectors

SOURCES = Path(__file__).parent / "c"
"""The kernels, as they stand in every folder, and the templates of what has a model's name in it."""

KERNELS = ("qgru.h", "qgru_dot.h", "qgru_dsp.h", "qgru_helium.h")
_TEMPLATES = ("test.c", "Makefile", "CMakeLists.txt")


def write(folder: Path, program: Program, x: Tensor, y: Tensor) -> int:
    """Write a program's folder.

    Args:
        folder: exists.
        program: what to write.
        x: (steps, input) integers for the vectors.
        y: (steps, output) integers that they lead to.

    Returns:
        Bytes of all constants.
    """
    constants, structures = Constants(), ""
    for direction in program.directions:
        structures += define_cell(direction, constants)
    if program.head:
        structures += f"static const qgru_matrix head = {matrix_fields('head_W', program.head.matrix, constants)};\n"
    structures += "".join(define_link(name, used) for name, used in _links(program).items())
    name = program.name
    model = f'#include "{name}.h"\n\n#include "qgru.h"\n\n{constants.text}\n{structures}{"".join(definitions(program))}'
    files = {kernel: (SOURCES / kernel).read_text(encoding="utf-8") for kernel in KERNELS}
    for template in _TEMPLATES:
        text = (SOURCES / template).read_text(encoding="utf-8")
        files[template] = text.replace("@name@", name).replace("@body@", test_body(program))
    files[f"{name}.h"], files[f"{name}.c"] = header(program, constants.size), model
    files[f"{name}_vectors.h"] = vectors(program, x, y)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return constants.size


def _links(program: Program) -> dict[str, Link]:
    """Return the links that C code names, by name."""
    found = {f"{d.name}_feed_{i}": used for d in program.directions for i, used in enumerate(d.feeds) if used}
    for (_, name), direction, numbers in zip(output_links(program), program.layers[-1], program.y, strict=True):
        if name:
            found[name] = link(Numbers.of_codes(direction.cell.h), numbers)
    return found
