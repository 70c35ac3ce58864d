"""Generated programs of many configurations, and one executable that runs them all."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from qgru import QuantGRU
from qgru.export.c99.files import write
from qgru.export.c99.program import Program, program
from qgru.export.c99.vectors import example, expected
from tests.calibrated import calibrated as calibrated_alike
from tests.export.models import calibrated
from tests.oracle import OracleGrid
from tests.random_gru import build, random_gru, uniform_grids

COMPILERS = ("gcc", "clang")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror")
SANITIZERS = (
    ("-fsanitize=undefined,address", "-fno-sanitize-recover=all"),
    ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),  # needs no library, which a compiler may lack
)
UP_TO_16_BITS = range(1, 17)


@dataclass(frozen=True)
class Configuration:
    """A layer and the program made of it."""

    name: str
    gru: QuantGRU
    program: Program


def available(compiler: str) -> str:
    """The compiler, or the test is skipped; one of them is on every machine that builds the kernels."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    return compiler


def sanitizers(compiler: str, folder: Path) -> tuple[str, ...]:
    """The flags of the strictest sanitizers that the compiler can link."""
    (folder / "empty.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    for flags in SANITIZERS:
        linked = subprocess.run([compiler, *flags, "empty.c", "-o", "empty"], cwd=folder, capture_output=True)
        if linked.returncode == 0:
            return flags
    raise AssertionError(f"{compiler} links none of {SANITIZERS}")


def presets() -> Iterator[QuantGRU]:
    yield calibrated_alike(12, 7, "int8", bias=False)
    yield calibrated_alike(32, 16, "int8")
    yield calibrated_alike(8, 5, "int8_mixed", num_layers=2)
    yield calibrated_alike(9, 6, "int8_mixed", num_layers=3, bidirectional=True)
    yield calibrated_alike(17, 33, "w4a8", bidirectional=True)
    yield calibrated_alike(16, 40, "w4a8")
    yield calibrated_alike(7, 4, "w8a16", num_layers=2, batch_first=True)
    yield calibrated_alike(10, 70, "int16")


def at_the_ends(folder: Path) -> Iterator[QuantGRU]:
    """Sums of terms that are far apart, which take 64 bits, and biases that tip every tie or saturate."""
    far = {"matmul__Wx": OracleGrid(16, False, 27), "matmul__Rh": OracleGrid(16, False, 9)}
    fine = {"weight__bw": OracleGrid(16, False, 44), "weight__br": OracleGrid(8, False, 40)}
    coarse = {"weight__bw": OracleGrid(16, False, -20), "weight__br": OracleGrid(16, False, 2)}
    for i, special in enumerate((far, fine, coarse)):
        yield build(folder / f"ends{i}.json", [[uniform_grids(3, 8, **special)]])[0]


def configurations(folder: Path, randoms: Sequence[int] = range(14), calibrations: Sequence[int] = range(8)) -> list:
    """Presets, random grids, and calibrated random widths; layers, directions and zero points among them."""
    grus = [*presets(), *at_the_ends(folder)]
    for seed in randoms:
        grus.append(random_gru(seed, folder / "quant_params.json", UP_TO_16_BITS)[0])
    for seed in calibrations:
        grus.append(calibrated(seed, UP_TO_16_BITS, num_layers=1 + seed % 2, bidirectional=seed % 3 == 0))
    return [Configuration(f"c{i}", gru, program([("", gru)], f"c{i}")) for i, gru in enumerate(grus)]


def write_vectors(folder: Path, each: Configuration, outputs: int) -> tuple[int, int]:
    """Write a program into a folder of its name, with vectors of about so many outputs; returns these and its bytes."""
    gru = each.gru
    x = example(gru.input_grid, gru.input_size, -(-outputs // each.program.output_size))
    y = expected([gru], x)
    (folder / each.name).mkdir(parents=True)
    size = write(folder / each.name, each.program, x, y)
    return y.numel(), size + x.numel() * each.program.x.type.size + y.numel() * each.program.y[0].type.size


def main_of(names: Iterable[str]) -> str:
    """A C file of all programs of these names, which runs one behind the other."""
    includes = [
        f'#define main {name}_main\n#include "{name}/{name}.c"\n#include "{name}/test.c"\n#undef main\n'
        for name in names
    ]
    calls = [f"    failed |= {name}_main();\n" for name in names]
    return f"{''.join(includes)}int main(void)\n{{\n    int failed = 0;\n{''.join(calls)}    return failed;\n}}\n"


def write_all(folder: Path, known: Sequence[Configuration], outputs: int) -> int:
    """Write every program with vectors of about as many outputs each, and what runs all; returns how many there are."""
    total = sum(write_vectors(folder, each, outputs)[0] for each in known)
    (folder / "all.c").write_text(main_of([each.name for each in known]))
    return total


def run_all(folder: Path, compiler: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile every program and run it; whatever the compiler says is an error."""
    command = [compiler, *flags, "all.c", "-o", f"all-{compiler}"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return subprocess.run([folder / f"all-{compiler}"], capture_output=True, text=True)
