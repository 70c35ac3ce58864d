"""The files of a folder, from the program and the C sources beside this module."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qgru.export.c99.code import definitions
from qgru.export.c99.header import header
from qgru.export.c99.program import Program
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
    name, constants, structures = program.name, Constants(), ""
    for direction in program.directions:
        structures += define_cell(direction, constants)
    if program.head:
        head = matrix_fields(f"{name}_head_W", program.head.matrix, constants)
        structures += f"static const qgru_matrix {name}_head = {head};\n"
    structures += "".join(define_link(name, used) for name, used in program.links.items())
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
