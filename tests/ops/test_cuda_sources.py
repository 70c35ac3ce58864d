"""Every kernel compiles for every architecture as real layers ask for it, and agrees with Python on what crosses.

NVRTC alone, from its wheel: no GPU, no toolkit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from qgru.calibration import device
from qgru.ops.cuda import structs
from qgru.ops.cuda.backward import Backward
from qgru.ops.cuda.compile import compiled, cubin, is_available, sources
from qgru.ops.cuda.geometry import Processor
from qgru.ops.cuda.layer import Layer, Shape, layer_on
from qgru.ops.cuda.macros import KERNELS, MEANINGS, Macros, Source
from qgru.ops.cuda.structs import INT, LONG, Struct
from qgru.ops.plan import plan_from
from qgru.schema import ACTIVATIONS, WEIGHTS

needs_nvrtc = pytest.mark.skipif(not is_available(), reason="NVRTC (cuda-core, nvidia-cuda-nvrtc) is not installed")

HOPPER = ((1, 132), (2, 66), (4, 30), (8, 15), (16, 7))
PROCESSORS = {
    "sm_80": Processor((8, 0), 108, 163 << 10, ((1, 108),)),
    "sm_90": Processor((9, 0), 132, 227 << 10, HOPPER),
    "sm_100": Processor((10, 0), 148, 227 << 10, HOPPER),
    "sm_120": Processor((12, 0), 170, 99 << 10, ((1, 170),)),
}


def grids(bits: int = 8, weight_bits: int = 8, **activations: str) -> str:
    """Return grids as `Plan.text` writes them; `activations` replace one, dots written as underscores."""
    of_all = f"{bits} 1 0 {bits - 1} 0"
    flat = [activations.get(name.replace(".", "_"), of_all) for name in ACTIVATIONS]
    return " ".join([*flat, *[f"{weight_bits} 0 {weight_bits - 1} {weight_bits - 1}"] * len(WEIGHTS)])


UNSIGNED = "8 0 1 7 3"
FAR = {"gate_g_pre": "16 1 0 24 0", "op_old_contrib": "16 1 0 4 0"}


class Case(NamedTuple):
    """A layer: its grids, time, batch, input and hidden size, the input's type, limbs of its gradient."""

    grids: str
    sizes: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    limbs: int = 2


CASES = {
    "inference": Case(grids(), (9, 3, 6, 10), limbs=0),
    "small, float16": Case(grids(), (9, 3, 6, 10), torch.float16),
    "zero points": Case(grids(output_h=UNSIGNED, input_x=UNSIGNED), (50, 128, 32, 128)),
    "float64, bfloat16": Case(grids(**FAR), (20, 40, 5, 37), torch.bfloat16, 3),
    "16 bits": Case(grids(16, 16, output_h="16 0 1 15 9"), (20, 64, 64, 64), torch.float32, 3),
    "two tiles a warp": Case(grids(), (16, 8, 64, 256), limbs=0),
    "16-bit activations, many inputs": Case(grids(16), (16, 32, 3000, 64)),
}
IN_CLUSTERS = {
    "a product in two parts": Case(grids(), (64, 1024, 64, 256), torch.float32, 3),
    "500 units": Case(grids(), (64, 256, 300, 500), torch.bfloat16),
    "1024 units of 16 bits": Case(grids(16, 16), (16, 96, 512, 1024)),
}
"""Too large for one CTA, or faster in several: not on a GPU without clusters."""

ASKED = [
    (arch, name)
    for arch, processor in PROCESSORS.items()
    for name in (*CASES, *(IN_CLUSTERS if len(processor.clusters) > 1 else ()))
]


def layer_for(arch: str, case: str) -> Layer:
    text, sizes, dtype, limbs = {**CASES, **IN_CLUSTERS}[case]
    layer = layer_on(PROCESSORS[arch], plan_from(text), Shape(*sizes, dtype, 0), limbs)
    assert layer is not None
    return layer


def kernels_of(layer: Layer) -> Iterator[tuple[Source, Macros, Struct]]:
    macros = {**layer.macros, **(Backward(layer).macros if layer.train else {})}
    for name, values in macros.items():
        yield KERNELS[name], values, structs.arguments(layer.wide)[name]


def with_assertions(source: Source, struct: Struct) -> str:
    return "\n".join((source.path.read_text(), *struct.assertions()))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, with a warning in every branch of the preprocessor that says where it stands."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in [*KERNELS["empty"].path.parent.iterdir(), device.SOURCE.path]:
        lines = [
            f"{line}\n#warning branch {path.name}:{number}" if re.match(r"#(if|else|elif)", line) else line
            for number, line in enumerate(path.read_text().splitlines(), 1)
        ]
        (folder / path.name).write_text("\n".join(lines))
    return folder


@cache
def branches(source: Source, macros: Macros, struct: Struct, arch: str) -> frozenset[str]:
    """Compile a marked kernel; return the branches that the compiler went through."""
    log = io.StringIO()
    compiled(with_assertions(source, struct), source.path.parent, macros, arch, log)
    known = {"1105", "177"}  # the marks themselves; a variable that this combination has no use for
    assert set(re.findall(r"warning #(\d+)", log.getvalue())) <= known, log.getvalue()
    return frozenset(re.findall(r"#warning branch (\S+)", log.getvalue()))


def compile_all(folder: Path, arch: str, case: str) -> set[str]:
    wanted = [
        (Source(folder / source.path.name, source.macros), macros, struct, arch)
        for source, macros, struct in kernels_of(layer_for(arch, case))
    ]
    with ThreadPoolExecutor() as pool:
        return set().union(*pool.map(lambda arguments: branches(*arguments), wanted))


@needs_nvrtc
@pytest.mark.parametrize(("arch", "case"), ASKED)
def test_a_layers_kernels_compile_and_lay_out_their_arguments_as_python_does(
    arch: str, case: str, marked: Path
) -> None:
    compile_all(marked, arch, case)


@needs_nvrtc
@pytest.mark.parametrize("arch", PROCESSORS)
def test_calibrations_kernel_and_the_empty_one_compile(arch: str) -> None:
    cubin(KERNELS["empty"], (), arch)
    compiled(with_assertions(device.SOURCE, device.ARGUMENTS), device.SOURCE.path.parent, device.MACROS, arch)


@needs_nvrtc
def test_every_branch_of_the_sources_is_compiled(marked: Path) -> None:
    seen = set().union(*(compile_all(marked, arch, case) for arch, case in ASKED))
    there = [re.findall(r"#warning branch (\S+)", path.read_text()) for path in marked.iterdir()]
    assert sum(there, []) and set(sum(there, [])) == seen


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_no_clusters_are_asked_for_where_there_are_none(arch: str) -> None:
    for case in CASES:
        for _, macros, _ in kernels_of(layer_for(arch, case)):
            assert dict(macros).get("CLUSTER", 1) == 1
            assert dict(macros).get("SHARED_BYTES", 0) <= PROCESSORS[arch].shared_bytes


@needs_nvrtc
@pytest.mark.parametrize(
    "other",
    [
        Struct("Matrix", (LONG, "offset codes"), *[(f.type, f.name) for f in [*structs.MATRIX.fields.values()][2:]]),
        Struct("Matrix", *[(f.type, f.name) for f in [*structs.MATRIX.fields.values()][:-1]]),
        Struct("Matrix", *[(f.type, f.name) for f in structs.MATRIX.fields.values()], (INT, "one_more another")),
    ],
    ids=["two fields swapped", "a field short", "fields too many"],
)
def test_a_struct_that_differs_does_not_compile(other: Struct) -> None:
    source, macros, _ = next(kernels_of(layer_for("sm_90", "inference")))
    assert source.name == "prepare"
    with pytest.raises(Exception, match="Matrix"):
        compiled(with_assertions(source, other), source.path.parent, macros, "sm_90")


@needs_nvrtc
@pytest.mark.parametrize("name", ["project", "forward", "walk"])
def test_less_shared_memory_than_the_kernel_lays_out_does_not_compile(name: str) -> None:
    source, macros, _ = next(kernel for kernel in kernels_of(layer_for("sm_90", "500 units")) if kernel[0].name == name)
    less = tuple(
        (macro, value - (1024 + 12288 * (name == "forward")) * (macro == "SHARED_BYTES")) for macro, value in macros
    )
    with pytest.raises(Exception, match="what Python reserves"):
        compiled(source.path.read_text(), source.path.parent, less, "sm_90")


@needs_nvrtc
@pytest.mark.parametrize("name", [name for name, source in KERNELS.items() if source.macros])
def test_a_macro_that_is_missing_does_not_compile(name: str) -> None:
    layer = layer_for("sm_90", "small, float16")
    source, macros, _ = next(kernel for kernel in kernels_of(layer) if kernel[0].name == name)
    for missing in macros:
        rest = tuple(macro for macro in macros if macro != missing)
        with pytest.raises(Exception, match=missing[0]):
            compiled(source.path.read_text(), source.path.parent, rest, "sm_90")
        with pytest.raises(ValueError, match=f"kernel '{name}'.*{missing[0]}"):
            cubin(source, rest, "sm_90")


@pytest.mark.parametrize("source", [*KERNELS.values(), device.SOURCE], ids=lambda source: source.name)
def test_a_kernel_takes_the_macros_that_its_source_reads(source: Source) -> None:
    text = re.sub(r"//.*", "", "\n".join(sources(source.path).values()))
    read = set(re.findall(r"\w+", text)) - set(re.findall(r"#define (\w+)", text))
    assert read & MEANINGS.keys() == set(source.macros)


def test_every_meaning_is_some_kernels_macro() -> None:
    assert set(MEANINGS) == {macro for source in (*KERNELS.values(), device.SOURCE) for macro in source.macros}


def test_the_map_names_every_kernel_and_every_macro() -> None:
    text = (Path(structs.__file__).parent / "README.md").read_text()
    table = {
        name: macros.split() for name, macros in re.findall(r"^\| `(\w+)` \|.*\| ([A-Z_0-9 ]*) \|$", text, re.MULTILINE)
    }
    assert table == {name: list(source.macros) for name, source in KERNELS.items()}


def test_every_file_of_the_kernels_is_read() -> None:
    read = {name for source in KERNELS.values() for name in sources(source.path)}
    assert read == {path.name for path in KERNELS["empty"].path.parent.iterdir()}


@pytest.mark.parametrize("wide", [False, True])
def test_bytes_by_name_are_those_in_order(wide: bool) -> None:
    struct = structs.elements(wide)
    names = {name: i for i, name in enumerate(struct.fields)}
    nested = {"chunk": bytes(structs.CHUNK.size), "n": bytes(structs.numbers(wide).size)}
    whole = struct.of(**{**names, **nested})
    assert len(whole) == struct.size
    assert (
        struct.after_first(**{name: value for name, value in {**names, **nested}.items() if name != "chunk"})
        == (whole[structs.CHUNK.size :])
    )
    flat = [0] * len(structs.CHUNK.fields), [0] * len(structs.numbers(wide).fields)
    assert struct.pack(*flat[0], *[v for k, v in names.items() if k not in nested and v < names["n"]], *flat[1],
                       *[v for v in names.values() if v > names["n"]]) == whole  # fmt: skip


def test_a_field_that_is_unknown_or_missing_is_named() -> None:
    with pytest.raises(TypeError, match="Matrix: got.*'wrong'.*expected.*'codes'"):
        structs.MATRIX.of(wrong=1)
