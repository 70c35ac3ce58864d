"""Run generated C on microcontrollers in QEMU: integers compared, instructions counted; one run, one CSV.

    python -m benchmarks.chips                # all chips, benchmarks/results/chips-qemu<version>.csv
    python -m benchmarks.chips --chips M4     # those with M4 in the name, printed alone

It takes gcc-arm-none-eabi, gcc-riscv64-unknown-elf, their picolibc and QEMU; `make chip-test` installs them. The
programs are those of tests/export/c99, as many as a chip's flash holds, with 1e5 outputs at least. Instructions are a
time step's, counted by examples/chip/main.c; code and stack are those of the smaller layer at int8.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from qgru.export.c99 import export_c
from tests.calibrated import calibrated
from tests.export.c99.programs import Configuration, configurations, main_of, write_vectors

RESULTS = Path(__file__).parent / "results"
MAIN = Path(__file__).parents[1] / "examples" / "chip" / "main.c"
PRESETS = ("int8", "w4a8")
SHAPES = ((32, 16), (128, 64))  # hidden, input
OUTPUTS = 110_000
SEQUENCE = 300  # outputs of a program that takes a whole sequence, which lies in memory

QUIET = "-nographic -monitor none -serial none -chardev stdio,id=o"
SEMIHOSTING = f"{QUIET} -semihosting-config enable=on,target=native,chardev=o"
PICOLIBC = "--specs=picolibc.specs --oslib=semihost --crt0=hosted -Tpicolibc.ld"


@dataclass(frozen=True)
class Chip:
    """A processor, how to compile for it, and what runs it.

    Attributes:
        name: of the processor, and what of it is used.
        compiler: the command with its flags.
        emulator: the command that a program's file is put behind.
        memory: first address and size of flash and RAM, in bytes; None under an operating system.
        counts: instructions can be counted; microbit has no SysTick.
    """

    name: str
    compiler: str
    emulator: str
    memory: tuple[int, int, int, int] | None
    counts: bool = True

    @property
    def flash(self) -> int:
        """Bytes that programs may take."""
        return self.memory[1] if self.memory else 1 << 24

    def build(self, folder: Path, sources: Sequence[str | Path], binary: str, *flags: str) -> None:
        """Compile; a warning is an error."""
        names = ("__flash", "__flash_size", "__ram", "__ram_size")
        places = [f"-Wl,--defsym={name}={value:#x}" for name, value in zip(names, self.memory or (), strict=False)]
        warnings = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O2", "-fstack-usage"]
        command = [*self.compiler.split(), *warnings, *flags, *places, *map(str, sources), "-o", binary]
        subprocess.run(command, cwd=folder, check=True)

    def run(self, folder: Path, binary: str) -> str:
        """Return what a program prints."""
        command = ["timeout", "300", *self.emulator.split(), binary]
        return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def cortex(name: str, cpu: str, machine: str, memory: tuple[int, int, int, int], flags: str = "") -> Chip:
    """Return a Cortex-M."""
    compiler = f"arm-none-eabi-gcc -mthumb -mcpu={cpu} {flags} {PICOLIBC}"
    return Chip(name, compiler, f"qemu-system-arm -M {machine} -icount shift=0 {SEMIHOSTING} -kernel", memory)


MPS2 = (0, 0x400000, 0x20000000, 0x400000)
MPS3 = (0, 0x80000, 0x20000000, 0x80000)
RV32 = "riscv64-unknown-elf-gcc -march=rv32imac -mabi=ilp32 -mcmodel=medany"
CHIPS = (
    replace(cortex("Cortex-M0", "cortex-m0", "microbit", (0, 0x40000, 0x20000000, 0x4000)), counts=False),
    cortex("Cortex-M3", "cortex-m3", "mps2-an385", MPS2),
    cortex("Cortex-M4, plain C", "cortex-m4", "mps2-an386", MPS2, "-DQGRU_SIMD=0"),
    cortex("Cortex-M4, SMLAD", "cortex-m4", "mps2-an386", MPS2),
    cortex("Cortex-M7, SMLAD", "cortex-m7", "mps2-an500", MPS2),
    cortex("Cortex-M55, plain C", "cortex-m55", "mps3-an547", MPS3, "-mfloat-abi=hard -DQGRU_SIMD=0"),
    cortex("Cortex-M55, SMLAD", "cortex-m55", "mps3-an547", MPS3, "-mfloat-abi=hard -DQGRU_SIMD=1"),
    cortex("Cortex-M55, Helium", "cortex-m55", "mps3-an547", MPS3, "-mfloat-abi=hard"),
    Chip(
        "rv32imac",
        f"{RV32} {PICOLIBC}",
        f"qemu-system-riscv32 -M virt -bios none -icount shift=0 {SEMIHOSTING} -kernel",
        (0x80000000, 0x200000, 0x80200000, 0x200000),
    ),
    Chip("rv64gc", "riscv64-linux-gnu-gcc -static", "qemu-riscv64", None, counts=False),
)


def write(folder: Path) -> list[tuple[Configuration, int, int]]:
    """Write every configuration's program; returns it, its outputs and its bytes."""
    (folder / "grids").mkdir()
    known = configurations(folder / "grids")
    sequential = [each for each in known if not each.program.is_bidirectional]
    wanted = {each.name: SEQUENCE if each.program.is_bidirectional else OUTPUTS // len(sequential) for each in known}
    return [(each, *write_vectors(folder, each, wanted[each.name])) for each in known]


def groups(chip: Chip, written: Sequence[tuple[Configuration, int, int]]) -> Iterator[list[str]]:
    """Yield names of programs that go into the chip's flash together."""
    room, group = chip.flash * 3 // 4, []
    left = room
    for each, _, size in written:
        if size > room:
            continue
        if size > left:
            yield group
            group, left = [], room
        group.append(each.name)
        left -= size
    yield group


def compare(chip: Chip, folder: Path, written: Sequence[tuple[Configuration, int, int]]) -> dict[str, int]:
    """Run all programs that fit; returns how many, their outputs, and how many of these differ."""
    counts = []
    for group in groups(chip, written):
        (folder / "group.c").write_text(main_of(group))
        chip.build(folder, ["group.c"], "group.elf")
        printed = chip.run(folder, "group.elf")
        found = re.findall(r"^\w+: (\d+) of (\d+) integers differ$", printed, re.MULTILINE)
        if len(found) != len(group):
            raise RuntimeError(f"{chip.name} ran {len(found)} of {len(group)} programs: {printed[-500:]}")
        counts += found
    outputs, differing = (sum(int(pair[i]) for pair in counts) for i in (1, 0))
    return {"programs": len(counts), "outputs": outputs, "differing": differing}


def measure(chip: Chip, folder: Path) -> dict[str, int]:
    """Count instructions a step of every preset and shape, and the bytes of code and stack of the first one."""
    found: dict[str, int] = {}
    for preset, (hidden, inputs) in product(PRESETS, SHAPES):
        model = folder / f"{preset}-{hidden}"
        if not model.exists():
            export_c(calibrated(hidden, inputs, preset), model)
        if chip.counts:
            chip.build(model, ["model.c", MAIN], "count.elf", "-I.")
            printed = chip.run(model, "count.elf")
            known = re.search(r"^0 integers differ from qgru's\n(\d+) instructions a step$", printed, re.MULTILINE)
            if known is None:
                raise RuntimeError(f"{chip.name} printed {printed[-500:]!r}")
            found[f"{preset} H {hidden} I {inputs}"] = int(known[1])
    small = folder / f"{PRESETS[0]}-{SHAPES[0][0]}"
    chip.build(small, ["model.c"], "model.o", "-c")
    size = subprocess.run(["size", "-A", "model.o"], cwd=small, capture_output=True, text=True).stdout
    code = sum(map(int, re.findall(r"^\.text\S*\s+(\d+)", size, re.MULTILINE)))
    usage = dict(re.findall(r":(\w+)\t(\d+)\t", (small / "model.su").read_text()))
    stack = int(usage["model_step"]) + int(usage.get("model_l0_step", 0))
    return {"code bytes": code, "stack bytes": stack, **found}


def version(command: str) -> str:
    """Return the version in a tool's first line."""
    line = subprocess.run([command, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return re.findall(r"\d+(?:\.\d+)+", line)[-1]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="", help="only those with this in the name, and no file is written")
    chosen = parser.parse_args().chips
    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written = write(folder)
        for chip in (chip for chip in CHIPS if chosen in chip.name):
            compiler = chip.compiler.split()[0]
            tools = {"chip": chip.name, "compiler": f"{compiler} {version(compiler)}", "flags": "-O2"}
            rows.append({**tools, **compare(chip, folder, written), **measure(chip, folder)})
            print(rows[-1], flush=True)
    if not chosen:
        columns = max(rows, key=len)
        path = RESULTS / f"chips-qemu{version('qemu-system-arm')}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(any(row["differing"] or row["outputs"] < 100_000 for row in rows))


if __name__ == "__main__":
    main()
