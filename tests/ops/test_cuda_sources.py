"""The kernels compile for every architecture, and their structs are as long as what Python packs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from qgru.ops.cuda import compile as nvrtc
from qgru.ops.cuda.geometry import geometry
from qgru.ops.cuda.plan import ACTIVATIONS, WEIGHTS, plan_of

LOOP = {
    "CODE_BYTES": 1, "HIDDEN": 128, "ROWS": 4, "CLUSTER": 1, "PADDED": 128, "REGISTER_K64": 2, "WARPS": 8,
    "TILES_A_WARP": 1, "CTA_TILES": 8, "SHARED_TABLES": 1, "TABLE_ENTRIES": 768,
}  # fmt: skip
FORWARD = {**LOOP, "BIASED_SUMS": 1, "STATE_OFFSET": 1, "TRAIN": 1}
INPUT = {"CODE_BYTES": 1, "X_BYTES": 2, "X_BFLOAT": 0, "ROWS": 8}
CLUSTER = {"HIDDEN": 500, "CLUSTER": 4, "PADDED": 512, "REGISTER_K64": 5, "CODE_BYTES": 2, "ROWS": 8}
CASES = {
    "prepare": ("prepare", {"CODE_BYTES": 1}),
    "prepare in float64": ("prepare", {"CODE_BYTES": 1, "WIDE": 1}),
    "project": ("project", INPUT),
    "forward": ("forward", FORWARD),
    "forward, 16 rows in float64": ("forward", {**FORWARD, "ROWS": 16, "WIDE": 1, "BIASED_SUMS": 0, "CODE_BYTES": 2}),
    "forward in a cluster": ("forward", {**FORWARD, **CLUSTER}),
    "backward": ("backward", {**LOOP, "LIMBS": 2}),
    "backward with 3 limbs": ("backward", {**LOOP, "LIMBS": 3, "CODE_BYTES": 2, "SHARED_TABLES": 0}),
    "backward in a cluster": ("backward", {**LOOP, **CLUSTER, "LIMBS": 2}),
    "operand": ("operand", {"CODE_BYTES": 1, "X_BYTES": 4, "X_BFLOAT": 0}),
    "parameters": ("parameters", {"CODE_BYTES": 1, "X_BYTES": 4}),
}
TEXT = " ".join(["8 1 0 7 0"] * len(ACTIVATIONS) + ["8 0 7 7"] * len(WEIGHTS))  # grids, as `flatten` writes them
NUMBERS = len(plan_of(TEXT).numbers(wide=False))
STRUCTS = {
    "prepare": ("PrepareArgs", struct.calcsize("@13P15i8f0P")),
    "project": ("ProjectArgs", struct.calcsize("@P2q7P6i3fi2f0P")),
    "forward": ("ForwardArgs", struct.calcsize("@12P2q8i") + NUMBERS),
    "backward": ("BackwardArgs", struct.calcsize("@15P4q10i") + NUMBERS + struct.calcsize("=5f")),
    "operand": ("OperandArgs", struct.calcsize("@3P2q4i3f0P")),
    "parameters": ("ParameterArgs", 2 * struct.calcsize("@4P2i3f4x") + 2 * struct.calcsize("@3P2f") + 16),
}


def compile_source(text: str, macros: dict[str, int], arch: str, tmp_path: Path) -> None:
    """Compile with nvcc where there is one, else with NVRTC."""
    if shutil.which("nvcc"):
        file = tmp_path / "kernel.cu"
        file.write_text(text)
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        command = ["nvcc", f"-arch={arch}", "-std=c++17", *defines, "-cubin", "-o", str(tmp_path / "k"), str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif nvrtc.is_available():
        from cuda.core import Program, ProgramOptions

        defines = [(name, str(value)) for name, value in macros.items()]
        Program(text, "c++", options=ProgramOptions(std="c++17", arch=arch, define_macro=defines)).compile("cubin")
    else:
        pytest.skip("neither nvcc nor NVRTC (cuda-core) is here to compile with")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_sources_compile(case: str, arch: str, tmp_path: Path) -> None:
    name, macros = CASES[case]
    if arch == "sm_80" and macros.get("CLUSTER", 1) > 1:
        assert geometry(500, 8, 1, 0, 4, 0, 8, 108) is None  # never asked for
        return
    text = nvrtc.source(name)
    if "WIDE" not in macros and arch == "sm_90":
        kind, size = STRUCTS[name]
        aligned = -(-size // 8) * 8
        text += f'\nstatic_assert(sizeof({kind}) == {size} || sizeof({kind}) == {aligned}, "what Python packs");\n'
    compile_source(text, macros, arch, tmp_path)
