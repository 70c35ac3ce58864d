"""One layer and direction on a GPU: which kernels serve a shape and its grids, and how they are launched."""

from __future__ import annotations

import struct
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.ops.cuda.compile import Kernel, Macros, arch_of, compile_together
from qgru.ops.cuda.geometry import Processor, Widths, geometry
from qgru.ops.cuda.layouts import Loop, Walk
from qgru.ops.cuda.plan import SHARED_TABLE_ENTRIES, KernelPlan, kernel_plan
from qgru.ops.cuda.projection import WARPS, Projection, projection
from qgru.ops.plan import Plan
from qgru.schema import OPTIONAL

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
CALL = struct.Struct("@12P4q2i")
"""A forward call, as the kernels' `Call`: pointers and strides."""


class Shape(NamedTuple):
    """Everything but the tensors: what kernels are compiled and memory is laid out for."""

    time: int
    batch: int
    input: int
    hidden: int
    dtype: torch.dtype
    device: int


@lru_cache(maxsize=32)
def processor(device: int) -> Processor:
    """Return what a device, the current one, offers."""
    properties = torch.cuda.get_device_properties(device)
    capability, count = (properties.major, properties.minor), properties.multi_processor_count
    shared = properties.shared_memory_per_block_optin
    clusters = [(1, count)]
    if capability[0] in (9, 10):
        for size in (2, 4, 8, 16):
            clusters.append((size, Kernel("empty", (), device, capability, 32, shared, size).clusters_at_once()))
    return Processor(capability, count, shared, tuple(clusters))


@lru_cache(maxsize=1024)
def layer_of(plan: Plan, shape: Shape, limbs: int) -> Layer | None:
    """Return what runs the layer, or None where no kernel takes these grids or this shape.

    Args:
        plan: the grids.
        shape: the sizes.
        limbs: 8-bit limbs of the recurrent gradient, 2 (about 2**-15 of a row's largest) or 3; 0 for inference.
    """
    plan, carrier, of_device = kernel_plan(plan), plan.carrier(shape.input, shape.hidden), processor(shape.device)
    if carrier is None or of_device.capability < LEAST_CAPABILITY or shape.dtype not in INPUT_DTYPES:
        return None
    for shared in (True, False):
        if shared and plan.table_entries > SHARED_TABLE_ENTRIES:
            continue
        widths = widths_of(plan, carrier.is_double, shared, limbs)
        layout = geometry(Loop, shape.hidden, shape.batch, widths, of_device)
        walk = geometry(Walk, shape.hidden, shape.batch, widths, of_device) if limbs else None
        if layout is None or (limbs and walk is None):
            continue
        steps = -(-shape.time // 2) if layout.rows == 4 else shape.time
        columns, padded = steps * layout.groups * max(layout.rows, 8), -(-shape.input // 64) * 64
        product = (plan.limbs("weight.W"), plan.limbs("input.x"), of_device.multiprocessors, of_device.shared_bytes)
        projected = projection(columns, padded, layout.tiles, *product)
        return projected and Layer(plan, shape, layout, walk, projected, carrier.is_double, widths)
    return None


class Layer:
    """Launches the kernels of one shape and set of grids; holds no tensor but the tables.

    Args:
        plan: the grids.
        shape: the sizes.
        layout: of the time loop.
        walk: of the backward's, or None where nothing is saved for it.
        projection: of the product before the loop.
        wide: carry integers in float64.
        widths: that the layouts were made for.
    """

    def __init__(
        self,
        plan: KernelPlan,
        shape: Shape,
        layout: Loop,
        walk: Walk | None,
        projection: Projection,
        wide: bool,
        widths: Widths,
    ) -> None:
        self.plan, self.shape, self.layout, self.walk = plan, shape, layout, walk
        self.projection, self.wide, self.widths = projection, wide, widths
        self.limbs, self.train = widths.gradient_limbs, walk is not None
        self.sum_wide = plan.sum_wide(shape.input)
        self.numbers = plan.numbers(wide)
        self.offsets, self.bytes = self._sections()

    def _sections(self) -> tuple[dict[str, int], int]:
        """Lay the workspace out: offsets by name, and the total."""
        shape, layout, limbs = self.shape, self.layout, self.plan.limbs
        rows, steps = 3 * layout.units, shape.time * layout.groups
        lanes, sum_bytes = steps * layout.tiles * 32, 8 if self.sum_wide else 4
        Rt = 3 * self.walk.units * self.walk.padded * limbs("weight.R") if self.walk else 0
        sizes = {
            "Rt": Rt,
            "W": rows * self.projection.padded * limbs("weight.W"),
            "R": rows * layout.padded * limbs("weight.R"),
            "W_scale": 4 * rows,
            "W_offset": sum_bytes * rows,
            "R_offset": sum_bytes * rows,
            "constants": layout.units * 8 * (8 if self.wide else 4),
            "diverged": rows,
            "x": steps * layout.rows * self.projection.padded * limbs("input.x"),
            "flags": steps * layout.rows,
            "codes": lanes * layout.elements * 4 * self.plan.code_bytes,
            "bits": lanes * layout.elements * 2 if self.train else 0,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-size // 256) * 256
        return offsets, end

    @cached_property
    def tables(self) -> Tensor:
        """Values, then slopes, on the device."""
        return _device_tables(self.plan, self.shape.device)

    def kernels(self, *wanted: tuple[Any, ...]) -> list[Kernel]:
        """Return compiled kernels; `wanted` are `kernel`'s arguments."""
        compile_together([(name, macros) for name, macros, *_ in wanted], arch_of(self._processor.capability))
        return [self.kernel(*arguments) for arguments in wanted]

    @property
    def _processor(self) -> Processor:
        return processor(self.shape.device)

    def kernel(self, name: str, macros: Macros, threads: int, shared: int = 0, cluster: int = 1) -> Kernel:
        """Return a compiled kernel."""
        device = self.shape.device
        return _kernel(name, macros, device, processor(device).capability, threads, shared, cluster)

    @cached_property
    def numeric(self) -> Macros:
        """Of the carrier and the stored codes."""
        return (("CODE_BYTES", self.plan.code_bytes), *((("WIDE", 1),) if self.wide else ()))

    @cached_property
    def input_macros(self) -> Macros:
        """How the input is stored."""
        dtype = self.shape.dtype
        return (("X_BYTES", 4 if dtype == torch.float32 else 2), ("X_BFLOAT", int(dtype == torch.bfloat16)))

    def _limbs(self, **operands: str) -> Macros:
        of = tuple((f"{macro}_LIMBS", self.plan.limbs(name)) for macro, name in operands.items())
        return (*of, ("SUM_WIDE", int(self.sum_wide)))

    def _forward_macros(self) -> Macros:
        plan, tables = self.plan, self.widths.table_bytes
        biased = not self.wide and not self.sum_wide and plan.accumulator("matmul.Rh", self.shape.hidden) <= 1 << 22
        return (
            *self.numeric,
            *self._limbs(R="weight.R", H="output.h"),
            *self.layout.macros,
            ("HIDDEN", self.shape.hidden),
            ("SHARED_TABLES", int(tables > 0)),
            ("TABLE_ENTRIES", tables // 4),
            ("BIASED_SUMS", int(biased)),
            ("STATE_OFFSET", int(plan.offset("output.h") != 0)),
            ("TRAIN", int(self.train)),
        )

    def run(self, stream: int, call: bytes) -> None:
        """Launch the kernels; `call` is a packed `CALL`."""
        for kernel, grid, constants in self._launches:
            kernel(stream, grid, call + constants)

    @cached_property
    def _launches(self) -> tuple[tuple[Kernel, tuple[int, int], bytes], ...]:
        shape, layout, projection = self.shape, self.layout, self.projection
        limbs = self._limbs(W="weight.W", R="weight.R", X="input.x")
        projected = (*self.numeric, *self._limbs(W="weight.W", X="input.x"), ("ROWS", layout.rows), *projection.macros)
        kernels = self.kernels(
            ("prepare", (*self.numeric, *self.input_macros, *limbs), 128),
            ("project", projected, 32 * WARPS, projection.shared_bytes),
            ("forward", self._forward_macros(), layout.threads, layout.shared_bytes(self.widths), layout.cluster),
        )
        rows = 3 * self._columns + shape.time * layout.groups * layout.rows
        grids = ((-(-rows // 4), 1), projection.grid, (layout.groups * layout.cluster, 1))
        constants = (self._prepare_constants(), self._project_constants(), self._forward_constants())
        return tuple(zip(kernels, grids, constants, strict=True))

    @property
    def _columns(self) -> int:
        """Rows of a gate that are written: all that one of the layouts pads to."""
        return max(self.layout.units, self.walk.padded if self.walk else 0)

    def _prepare_constants(self) -> bytes:
        plan, shape, layout, at = self.plan, self.shape, self.layout, self.offsets
        n = plan.exponent

        def matrix(weight: str, product: str, operand: str, length: int, padded: int) -> bytes:
            section, code_offset = weight[-1], -plan.offset(operand)
            sections = (at[section], at[f"{section}_offset"])
            exponents = (n(product), n(operand), code_offset, 0)
            return struct.pack("@2q2i2f4i", *sections, length, padded, *plan.range(weight), *exponents)

        return b"".join((
            matrix("weight.W", "matmul.Wx", "input.x", shape.input, self.projection.padded),
            matrix("weight.R", "matmul.Rh", "output.h", shape.hidden, layout.padded),
            struct.pack("@6q", *(at[name] for name in ("Rt", "W_scale", "constants", "diverged", "x", "flags"))),
            struct.pack("@3i", shape.hidden, layout.units, self._columns),
            struct.pack("@2i", *((self.walk.units, self.walk.padded) if self.walk else (0, 0))),
            struct.pack("@3i", shape.time, shape.batch, layout.groups * layout.rows),
            struct.pack("@4i", n("gate.r_pre"), n("gate.z_pre"), n("gate.g_pre"), n(OPTIONAL)),
            struct.pack("@4f", *plan.range("weight.bw"), *plan.range("weight.br")),
            struct.pack("@3fi", 2.0 ** n("input.x"), *plan.range("input.x"), plan.offset("input.x")),
        ))  # fmt: skip

    def _project_constants(self) -> bytes:
        layout, names = self.layout, ("x", "W", "W_scale", "W_offset", "codes", "bits")
        sections = (self.offsets[name] for name in names)
        sizes = (self.shape.time, layout.tiles, layout.groups, self.projection.blocks)
        return struct.pack("@6q4i2f2i", *sections, *sizes, *self.plan.range("matmul.Wx"), self.train, 0)

    def _forward_constants(self) -> bytes:
        names = ("R", "constants", "R_offset", "diverged", "codes", "flags", "bits")
        sections = (self.offsets[name] for name in names)
        sizes = (self.shape.time, self.shape.batch, self.layout.groups)
        rest = (*sizes, *self.plan.table_starts[1:], self.plan.offset("output.h"))
        return struct.pack("@7qP6i", *sections, self.tables.data_ptr(), *rest) + self.numbers


def widths_of(plan: KernelPlan, wide: bool, shared_tables: bool, limbs: int) -> Widths:
    """Return what the grids ask of the layouts."""
    tables = 4 * plan.table_entries if shared_tables else 0
    operands = (plan.limbs("weight.R"), plan.limbs("output.h"))
    return Widths(*operands, plan.code_bytes, tables, 8 if wide else 4, limbs)


@lru_cache(maxsize=256)
def _device_tables(plan: KernelPlan, device: int) -> Tensor:
    return torch.cat(plan.tables).to(f"cuda:{device}")


@lru_cache(maxsize=1024)
def _kernel(*arguments: object) -> Kernel:
    return Kernel(*arguments)  # type: ignore[arg-type]
