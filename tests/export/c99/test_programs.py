"""What C computes is what the module computes, for every kind of grid."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.export.c99.programs import (
    COMPILERS,
    WARNINGS,
    Configuration,
    available,
    configurations,
    run_all,
    sanitizers,
    write_all,
)

LEAST = 100_000


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[Configuration]:
    return configurations(tmp_path_factory.mktemp("grids"))


@pytest.fixture(scope="module")
def folder(known: list[Configuration], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    assert write_all(folder, known, LEAST // len(known) + 1) >= LEAST
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("kind", ("folded", "sanitized"))
def test_no_integer_differs(folder: Path, compiler: str, kind: str, tmp_path: Path) -> None:
    """Neither with each layer's constants folded, nor with one kernel for all, in which nothing overflows."""
    available(compiler)
    shared = ("-DQGRU_INLINE=static inline", *sanitizers(compiler, tmp_path))
    ran = run_all(folder, compiler, "-O1", *WARNINGS, *(shared if kind == "sanitized" else ()))
    assert (ran.returncode, ran.stderr) == (0, "")
    counts = re.findall(r"^c\d+: (\d+) of (\d+) integers differ$", ran.stdout, re.MULTILINE)
    assert len(counts) == ran.stdout.count("\n") and all(differing == "0" for differing, _ in counts)
    assert sum(int(total) for _, total in counts) >= LEAST


@pytest.mark.slow
def test_ties_that_are_rounded_up_are_caught(folder: Path) -> None:
    ran = run_all(folder, next(filter(shutil.which, COMPILERS)), "-O1", "-std=c99", "-DQGRU_TIE(below)=1")
    differing = re.findall(r"^(c\d+): ([1-9]\d*) of", ran.stdout, re.MULTILINE)
    assert ran.returncode == 1 and len(differing) >= 10


def test_every_kind_of_arithmetic_is_among_them(known: list[Configuration]) -> None:
    """Otherwise equality would show little."""
    cells = [direction.cell for each in known for direction in each.program.directions]
    matrices = [matrix for cell in cells for matrix in (cell.Wx, cell.Rh)]
    weights = {"QGRU_INT4", "QGRU_INT8", "QGRU_INT16"}
    assert {(m.weights.tag, m.vector.type.size) for m in matrices} == {(tag, n) for tag in weights for n in (1, 2)}
    for seen in ({m.is_wide for m in matrices}, {m.left > 0 for m in matrices}, {m.start is None for m in matrices}):
        assert seen == {False, True}
    sums = [sum for cell in cells for sum in cell.sums.values()]
    products = [product for cell in cells for product in cell.products.values()]
    functions = [function for cell in cells for function in cell.functions.values()]
    for grids in ([sum.grid for sum in sums], products):
        assert {grid.is_wide for grid in grids} == {False, True}
        assert {grid.shift > 0 for grid in grids} == {False, True} and min(grid.shift for grid in grids) < 0
    assert {function.base is None for function in functions} == {False, True}
    assert {each.program.x.type.name for each in known} >= {"int8_t", "int16_t", "uint16_t"}
    assert {link is None for each in known for d in each.program.directions for link in d.feeds} == {False, True}
