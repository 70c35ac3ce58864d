"""One layer and direction on a GPU: which kernels serve a shape and its grids, and how they are launched."""

from __future__ import annotations

import struct
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qgru.ops.cuda.compile import Kernel, Macros
from qgru.ops.cuda.geometry import Geometry, geometry
from qgru.ops.cuda.plan import SHARED_TABLE_ENTRIES, Plan, plan_of
from qgru.schema import OPTIONAL

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COLUMNS = 32  # of the projection's CTA
_MOST_INPUTS = 4096  # whose quantized columns fit in shared memory


class Shape(NamedTuple):
    """Everything but the tensors: what kernels are compiled and memory is laid out for."""

    time: int
    batch: int
    input: int
    hidden: int
    dtype: torch.dtype
    device: int


@lru_cache(maxsize=32)
def processor(device: int) -> tuple[tuple[int, int], int]:
    """Return the compute capability and the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


@lru_cache(maxsize=1024)
def layer_of(grids: str, shape: Shape, limbs: int) -> Layer | None:
    """Return what runs the layer, or None where no kernel takes these grids or this shape.

    Args:
        grids: by `flatten`.
        shape: the sizes.
        limbs: 8-bit limbs of the recurrent gradient, 2 (about 2**-15 of a row's largest) or 3; 0 for inference.
    """
    plan = plan_of(grids)
    arithmetic = plan.arithmetic(shape.input, shape.hidden)
    capability, processors = processor(shape.device)
    if arithmetic is None or capability < (8, 0) or shape.dtype not in INPUT_DTYPES or shape.input > _MOST_INPUTS:
        return None
    for shared in (True, False):
        if shared and plan.table_entries > SHARED_TABLE_ENTRIES:
            continue
        sizes = (plan.code_bytes, 4 * plan.table_entries if shared else 0, 8 if arithmetic.wide else 4)
        layout = geometry(shape.hidden, shape.batch, *sizes, limbs, capability[0], processors)
        if layout is not None:
            return Layer(plan, shape, layout, arithmetic.wide, shared, limbs)
    return None


class Layer:
    """Launches the kernels of one shape and set of grids; holds no tensor but the tables.

    Args:
        plan: the grids.
        shape: the sizes.
        layout: of the time loop.
        wide: carry integers in float64.
        shared_tables: the activations' tables fit in shared memory.
        limbs: of the recurrent gradient; 0 saves nothing for it.
    """

    def __init__(self, plan: Plan, shape: Shape, layout: Geometry, wide: bool, shared_tables: bool, limbs: int) -> None:
        self.plan, self.shape, self.layout, self.wide = plan, shape, layout, wide
        self.limbs, self.train = limbs, limbs > 0
        self.shared_tables = shared_tables
        self.padded_input = -(-shape.input // 64) * 64
        self.numbers = plan.numbers(wide)
        self.offsets, self.bytes = self._sections()
        self._table_bytes = 4 * plan.table_entries if shared_tables else 0

    def _sections(self) -> tuple[dict[str, int], int]:
        """Lay the workspace out: offsets by name, and the total."""
        shape, layout = self.shape, self.layout
        rows, lanes = 3 * layout.units, shape.time * layout.groups * layout.tiles * 32
        sizes = {
            "Rt": rows * layout.padded if self.train else 0,
            "W": rows * self.padded_input,
            "R": rows * layout.padded,
            "W_scale": 4 * rows,
            "W_offset": 4 * rows,
            "R_offset": 4 * rows,
            "constants": layout.units * 8 * (8 if self.wide else 4),
            "diverged": rows,
            "flags": shape.time * layout.groups * layout.rows,
            "codes": lanes * layout.elements * 4 * self.plan.code_bytes,
            "bits": lanes * layout.elements * 2 if self.train else 0,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += -(-size // 256) * 256
        return offsets, end

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Values and slopes on the device."""
        return _device_tables(self.plan, self.shape.device)

    def kernel(self, name: str, macros: Macros, threads: int, shared: int = 0, cluster: int = 1) -> Kernel:
        """Return a compiled kernel."""
        device = self.shape.device
        return _kernel(name, macros, device, processor(device)[0], threads, shared, cluster)

    @cached_property
    def _numeric(self) -> Macros:
        return (("CODE_BYTES", self.plan.code_bytes), *((("WIDE", 1),) if self.wide else ()))

    @cached_property
    def input_macros(self) -> Macros:
        """How the input is stored."""
        dtype = self.shape.dtype
        return (("X_BYTES", 4 if dtype == torch.float32 else 2), ("X_BFLOAT", int(dtype == torch.bfloat16)))

    @cached_property
    def _loop(self) -> Macros:
        layout = self.layout
        return (
            *self._numeric,
            ("ROWS", layout.rows),
            ("CLUSTER", layout.cluster),
            ("HIDDEN", self.shape.hidden),
            ("PADDED", layout.padded),
            ("WARPS", layout.warps),
            ("TILES_A_WARP", layout.tiles_a_warp),
            ("CTA_TILES", layout.cta_tiles),
            ("SHARED_TABLES", int(self.shared_tables)),
            ("TABLE_ENTRIES", self.plan.table_entries if self.shared_tables else 0),
        )

    @cached_property
    def prepare(self) -> Kernel:
        """Quantizes the parameters."""
        return self.kernel("prepare", self._numeric, 128)

    @cached_property
    def project(self) -> Kernel:
        """Quantizes and projects the input."""
        macros = (*self._numeric, *self.input_macros, ("ROWS", self.layout.rows))
        shared = _COLUMNS * ((self.padded_input + 63) // 128 * 128 + 64)
        return self.kernel("project", macros, 32 * min(8, self.layout.tiles), shared)

    @cached_property
    def forward(self) -> Kernel:
        """Walks over the time steps."""
        biased = not self.wide and self.plan.accumulator(self.shape.hidden) <= 1 << 22
        offset = self.plan.offset("output.h") != 0
        held = ("REGISTER_K64", self.layout.forward_k64)
        macros = (
            *self._loop,
            held,
            ("BIASED_SUMS", int(biased)),
            ("STATE_OFFSET", int(offset)),
            ("TRAIN", int(self.train)),
        )
        real_bytes = 8 if self.wide else 4
        shared = self.layout.forward_bytes(self.plan.code_bytes, self._table_bytes, real_bytes)
        return self.kernel("forward", macros, self.layout.threads, shared, self.layout.cluster)

    @cached_property
    def backward(self) -> Kernel:
        """Walks back over the time steps."""
        sizes = (self.plan.code_bytes, self._table_bytes, 8 if self.wide else 4)
        shared = self.layout.backward_bytes(*sizes, self.limbs)
        macros = (*self._loop, ("REGISTER_K64", self.layout.backward_k64), ("LIMBS", self.limbs))
        return self.kernel("backward", macros, self.layout.threads, shared, self.layout.cluster)

    def run(
        self,
        stream: int,
        x: Tensor,
        h0: Tensor,
        parameters: tuple[Tensor, Tensor, Tensor, Tensor],
        exponents: Tensor,
        active: Tensor | None,
        diverged: Tensor | None,
        reverse: bool,
        states: Tensor,
        last: Tensor,
        workspace: Tensor,
    ) -> None:
        """Fill `states` (time, batch, hidden) and `last` (batch, hidden)."""
        shape, layout = self.shape, self.layout
        base = workspace.data_ptr()
        at = {name: base + offset for name, offset in self.offsets.items()}
        bits = at["bits"] if self.train else 0
        if self.train and not shape.hidden == layout.units == layout.padded:
            workspace[: self.offsets["W"]].zero_()
        arguments = struct.pack(
            "@13P",
            *(parameter.data_ptr() for parameter in parameters),
            exponents.data_ptr(),
            at["W"],
            at["R"],
            at["Rt"] if self.train else 0,
            at["W_scale"],
            at["W_offset"],
            at["R_offset"],
            at["constants"],
            at["diverged"],
        )
        self.prepare(stream, (-(-3 * layout.units // 4), 1), arguments + self._prepare_tail)
        arguments = struct.pack(
            "@P2q7P",
            x.data_ptr(),
            *(x.stride(0), x.stride(1)),
            0 if active is None else active.data_ptr(),
            *(at["W"], at["W_scale"], at["W_offset"], at["codes"], bits, at["flags"]),
        )
        self.project(stream, self._project_grid, arguments + self._project_tail)
        arguments = struct.pack(
            "@12P2q8i",
            *(at[name] for name in ("R", "constants", "R_offset", "diverged")),
            0 if diverged is None else diverged.data_ptr(),
            self.tables[0].data_ptr(),
            h0.data_ptr(),
            *(at["codes"], at["flags"], bits),
            states.data_ptr(),
            last.data_ptr(),
            *(states.stride(0), states.stride(1)),
            *(shape.time, shape.batch, layout.groups, reverse),
            *self.plan.table_starts[1:],
            *(self.plan.offset("output.h"), 0),
        )
        self.forward(stream, (layout.groups * layout.cluster, 1), arguments + self.numbers)

    @cached_property
    def _prepare_tail(self) -> bytes:
        plan, n = self.plan, self.plan.exponent
        names = ("weight.W", "weight.R", "weight.bw", "weight.br")
        return struct.pack(
            "@15i8f",
            *(self.shape.hidden, self.shape.input, self.layout.units, self.layout.padded, self.padded_input),
            *(n("matmul.Wx"), n("matmul.Rh"), n("input.x"), n("output.h")),
            *(-plan.offset("input.x"), -plan.offset("output.h")),
            *(n("gate.r_pre"), n("gate.z_pre"), n("gate.g_pre"), n(OPTIONAL)),
            *(bound for name in names for bound in plan.range(name)),
        )

    @cached_property
    def _columns(self) -> int:
        """Columns of the projection: rows and steps, padded to tiles."""
        shape, layout = self.shape, self.layout
        steps = -(-shape.time // 2) if layout.rows == 4 else shape.time
        return steps * layout.groups * max(layout.rows, 8)

    @cached_property
    def _project_grid(self) -> tuple[int, int]:
        tiles = self.layout.tiles
        return -(-self._columns // _COLUMNS), -(-tiles // min(8, tiles))

    @cached_property
    def _project_tail(self) -> bytes:
        plan, shape, layout = self.plan, self.shape, self.layout
        return struct.pack(
            "@6i3fi2f",
            *(shape.time, shape.batch, shape.input, self.padded_input, layout.tiles, layout.groups),
            2.0 ** plan.exponent("input.x"),
            *plan.range("input.x"),
            plan.offset("input.x"),
            *plan.range("matmul.Wx"),
        )


@lru_cache(maxsize=256)
def _device_tables(plan: Plan, device: int) -> tuple[Tensor, Tensor]:
    values, slopes = plan.tables
    return values.to(f"cuda:{device}"), slopes.to(f"cuda:{device}")


@lru_cache(maxsize=1024)
def _kernel(*arguments: object) -> Kernel:
    return Kernel(*arguments)  # type: ignore[arg-type]
