"""The kernels compile for every architecture, and their structs are as long as what Python packs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from qgru.ops.cuda import compile as nvrtc
from qgru.ops.cuda.gradient import CHUNK
from qgru.ops.cuda.layer import CALL
from qgru.ops.cuda.plan import ACTIVATIONS, WEIGHTS, plan_of

LOOP = {
    "CODE_BYTES": 1, "HIDDEN": 128, "ROWS": 4, "CLUSTER": 1, "PADDED": 128, "REGISTER_K64": 2, "WARPS": 8,
    "TILES_A_WARP": 1, "CTA_TILES": 8, "K_SPLIT": 1, "SHARED_TABLES": 1, "TABLE_ENTRIES": 768,
}  # fmt: skip
LIMBS = {"W_LIMBS": 1, "R_LIMBS": 1, "X_LIMBS": 1, "H_LIMBS": 1, "SUM_WIDE": 0}
FORWARD = {**LOOP, **LIMBS, "SHARED_K64": 0, "BIASED_SUMS": 1, "STATE_OFFSET": 1, "TRAIN": 1}
INPUT = {
    **LIMBS, "CODE_BYTES": 1, "X_BYTES": 2, "X_BFLOAT": 0, "ROWS": 8, "COLUMN_TILES": 4, "BLOCK_TILES": 8,
    "PADDED": 256, "W_SHARED": 1,
}  # fmt: skip
CLUSTER = {"HIDDEN": 500, "CLUSTER": 4, "PADDED": 512, "REGISTER_K64": 4, "CODE_BYTES": 2, "ROWS": 8}
SPLIT = {**CLUSTER, "K_SPLIT": 2, "CTA_TILES": 4, "HIDDEN": 250, "PADDED": 256, "REGISTER_K64": 2}
WALK = {**LOOP, **LIMBS, "TILE_GROUPS": 8, "REGISTER_BLOCKS": 6, "SHARED_BLOCKS": 0, "LIMBS": 2, "STAGES": 4}
WIDE = {"CODE_BYTES": 2, "WIDE": 1, "SUM_WIDE": 1, "BIASED_SUMS": 0}
STREAMED = {**WIDE, "W_LIMBS": 2, "R_LIMBS": 2, "H_LIMBS": 2, "X_LIMBS": 2, "SHARED_K64": 1, "SHARED_TABLES": 0}
CASES = {
    "prepare": ("prepare", INPUT),
    "prepare in float64": ("prepare", {**INPUT, **STREAMED}),
    "project": ("project", INPUT),
    "project, weights in global memory": ("project", {**INPUT, "W_SHARED": 0, "PADDED": 4096, "COLUMN_TILES": 1}),
    "project, two limbs": ("project", {**INPUT, **STREAMED, "ROWS": 4, "COLUMN_TILES": 2}),
    "forward": ("forward", FORWARD),
    "forward, 16 rows in float64": ("forward", {**FORWARD, **WIDE, "ROWS": 16, "H_LIMBS": 2}),
    "forward in a cluster": ("forward", {**FORWARD, **CLUSTER, "SHARED_K64": 4}),
    "forward, a product in two parts": ("forward", {**FORWARD, **SPLIT}),
    "forward, 24 rows": ("forward", {**FORWARD, **SPLIT, "ROWS": 24}),
    "forward, two limbs, streamed": ("forward", {**FORWARD, **CLUSTER, **STREAMED}),
    "factors": ("factors", {"CODE_BYTES": 1, "ROWS": 4}),
    "factors in float64": ("factors", {"CODE_BYTES": 2, "ROWS": 16, "WIDE": 1}),
    "walk": ("walk", WALK),
    "walk with 3 limbs in a cluster": ("walk", {**WALK, **CLUSTER, "SHARED_BLOCKS": 18, "LIMBS": 3}),
    "walk, a product in parts": ("walk", {**WALK, **SPLIT, "TILE_GROUPS": 1, "REGISTER_BLOCKS": 2}),
    "walk, two limbs, streamed": ("walk", {**WALK, **CLUSTER, "SHARED_BLOCKS": 1, "R_LIMBS": 2}),
    "pieces": ("pieces", {**LIMBS, "CODE_BYTES": 1, "ROWS": 8}),
    "pieces, two terms": ("pieces", {**STREAMED, "ROWS": 4}),
    "parameters": ("parameters", {}),
    "count": ("count", {}),
    "input weights": ("input_weights", {"X_BYTES": 4, "X_BFLOAT": 0, "W_LIMBS": 2}),
    "input gradient": ("input_gradient", {"X_BYTES": 2, "X_BFLOAT": 1, "W_LIMBS": 1}),
}
TEXT = " ".join(["8 1 0 7 0"] * len(ACTIVATIONS) + ["8 0 7 7"] * len(WEIGHTS))  # grids, as `flatten` writes them
NUMBERS = len(plan_of(TEXT).numbers(wide=False))
ELEMENTS = CHUNK.size + struct.calcsize("@5qP14i") + NUMBERS + struct.calcsize("@4f")
STRUCTS = {
    "prepare": ("PrepareArgs", CALL.size + 2 * struct.calcsize("@2q2i2f4i") + struct.calcsize("@6q12i7fi")),
    "project": ("ProjectArgs", CALL.size + struct.calcsize("@6q4i2f2i")),
    "forward": ("ForwardArgs", CALL.size + struct.calcsize("@7qP6i") + NUMBERS),
    "factors": ("ElementArgs", ELEMENTS),
    "pieces": ("ElementArgs", ELEMENTS),
    "walk": ("WalkArgs", CHUNK.size + struct.calcsize("@qi4fi")),
    "parameters": ("ParameterArgs", struct.calcsize("@12P7i10fi")),
    "count": ("CountArgs", struct.calcsize("@PqPP")),
    "input_weights": ("InputArgs", struct.calcsize("@6P2q2iq6i3fi")),
    "input_gradient": ("InputArgs", struct.calcsize("@6P2q2iq6i3fi")),
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
        return  # never asked for: test_library's test_no_cluster_before_hopper
    text = nvrtc.source(name)
    if "WIDE" not in macros and arch == "sm_90":
        kind, size = STRUCTS[name]
        aligned = -(-size // 8) * 8
        text += f'\nstatic_assert(sizeof({kind}) == {size} || sizeof({kind}) == {aligned}, "what Python packs");\n'
    compile_source(text, macros, arch, tmp_path)
