"""One layer and direction on a GPU: which kernels serve a shape and its grids, and how they are launched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.ops.cuda import constants
from qgru.ops.cuda.compile import Kernel, arch_of, compile_together
from qgru.ops.cuda.geometry import Processor, Widths, geometry
from qgru.ops.cuda.layouts import Loop, Walk
from qgru.ops.cuda.macros import KERNELS, Macros
from qgru.ops.cuda.plan import SHARED_TABLE_ENTRIES, KernelPlan, kernel_plan
from qgru.ops.cuda.projection import Projection, projection
from qgru.ops.plan import Plan

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
_OPERANDS = {"W": "weight.W", "R": "weight.R", "X": "input.x", "H": "output.h"}
_PREPARE_WARPS = 4  # of a CTA


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
            empty = Kernel(KERNELS["empty"], (), device, capability, 32, shared, size)
            clusters.append((size, empty.clusters_at_once()))
    return Processor(capability, count, shared, tuple(clusters))


@lru_cache(maxsize=1024)
def layer_of(plan: Plan, shape: Shape, limbs: int, shares_tables: bool = True) -> Layer | None:
    """Return what runs the layer on its device, or None; see `layer_on`."""
    return layer_on(processor(shape.device), plan, shape, limbs, shares_tables)


def layer_on(of_device: Processor, plan: Plan, shape: Shape, limbs: int, shares_tables: bool = True) -> Layer | None:
    """Return what runs the layer, or None where no kernel takes these grids or this shape.

    Args:
        of_device: what the device offers.
        plan: the grids.
        shape: the sizes.
        limbs: 8-bit limbs of the recurrent gradient, 2 (about 2**-15 of a row's largest) or 3; 0 for inference.
        shares_tables: keep tables in shared memory where they fit; a kernel is compiled for their size then.
    """
    plan, carrier = kernel_plan(plan), plan.carrier(shape.input, shape.hidden)
    if carrier is None or of_device.capability < LEAST_CAPABILITY or shape.dtype not in INPUT_DTYPES:
        return None
    for shared in (True, False):
        if shared and not (shares_tables and plan.table_entries <= SHARED_TABLE_ENTRIES):
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
        self.numbers = constants.numbers(plan, wide)
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
            "states": lanes * layout.elements * limbs("output.h") if self.train else 0,
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

    def kernels(self, macros: Mapping[str, Macros]) -> list[Kernel]:
        """Return compiled kernels, of `macros` by name."""
        device, capability = self.shape.device, processor(self.shape.device).capability
        compile_together([(KERNELS[name], values) for name, values in macros.items()], arch_of(capability))
        return [_kernel(name, values, device, capability) for name, values in macros.items()]

    def choose(self, name: str, **values: int) -> Macros:
        """Return a kernel's macros: `values`, and what this layer's grids and shape decide."""
        return KERNELS[name].choose({**self._macros, **values})

    @cached_property
    def _macros(self) -> dict[str, int]:
        """What the grids and the shape decide; the elementwise kernels read tables from global memory."""
        plan, dtype, shape = self.plan, self.shape.dtype, self.shape
        return {
            **{f"{operand}_LIMBS": plan.limbs(name) for operand, name in _OPERANDS.items()},
            "CODE_BYTES": plan.code_bytes,
            "HIDDEN": shape.hidden,
            "ROWS": self.layout.rows,
            "SHARED_TABLES": 0,
            "SUM_WIDE": int(self.sum_wide),
            "WIDE": int(self.wide),
            "X_BFLOAT": int(dtype == torch.bfloat16),
            "X_BYTES": 4 if dtype == torch.float32 else 2,
        }

    @cached_property
    def macros(self) -> dict[str, Macros]:
        """What each of the forward's kernels is compiled with."""
        plan, tables = self.plan, self.widths.table_bytes
        biased = not self.wide and not self.sum_wide and plan.accumulator("matmul.Rh", self.shape.hidden) <= 1 << 22
        of_tables = {"SHARED_TABLES": int(tables > 0), "TABLE_ENTRIES": tables // 4}
        return {
            "prepare": self.choose("prepare", WARPS=_PREPARE_WARPS),
            "project": self.choose("project", **self.projection.macros),
            "forward": self.choose(
                "forward",
                **{**self.layout.macros(self.widths), **of_tables},
                BIASED_SUMS=int(biased),
                STATE_OFFSET=int(plan.offset("output.h") != 0),
                TRAIN=int(self.train),
            ),
        }

    def run(self, stream: int, call: bytes) -> None:
        """Launch the kernels; `call` is a packed `structs.CALL`."""
        for kernel, grid, known in self._launches:
            kernel(stream, grid, call + known)

    @cached_property
    def _launches(self) -> tuple[tuple[Kernel, tuple[int, int], bytes], ...]:
        shape, layout, projection = self.shape, self.layout, self.projection
        rows = 3 * self.gate_rows + shape.time * layout.groups * layout.rows
        grids = ((-(-rows // _PREPARE_WARPS), 1), projection.grid, (layout.groups * layout.cluster, 1))
        packed = (constants.prepare(self), constants.project(self), constants.forward(self))
        return tuple(zip(self.kernels(self.macros), grids, packed, strict=True))

    @property
    def gate_rows(self) -> int:
        """Rows of a gate that are written: all that one of the layouts pads to."""
        return max(self.layout.units, self.walk.padded if self.walk else 0)


def widths_of(plan: KernelPlan, wide: bool, shared_tables: bool, limbs: int) -> Widths:
    """Return what the grids ask of the layouts."""
    tables = 4 * plan.table_entries if shared_tables else 0
    operands = (plan.limbs("weight.R"), plan.limbs("output.h"))
    return Widths(*operands, plan.code_bytes, tables, 8 if wide else 4, limbs)


@lru_cache(maxsize=256)
def _device_tables(plan: KernelPlan, device: int) -> Tensor:
    return torch.cat(plan.tables).to(f"cuda:{device}")


@lru_cache(maxsize=1024)
def _kernel(name: str, macros: Macros, device: int, capability: tuple[int, int]) -> Kernel:
    values = dict(macros)
    launch = (32 * values["WARPS"], values.get("SHARED_BYTES", 0), values.get("CLUSTER", 1))
    return Kernel(KERNELS[name], macros, device, capability, *launch)
