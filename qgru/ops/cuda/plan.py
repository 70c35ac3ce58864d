"""What the CUDA kernels need to know of a layer's grids beyond `qgru.ops.plan`: stored codes, tables, numbers."""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from torch import Tensor

from qgru.ops.plan import FUNCTIONS, Plan
from qgru.ops.reference import tables
from qgru.schema import OPTIONAL

SHARED_TABLE_ENTRIES = 8192


class KernelPlan(Plan):
    """A plan and everything that the kernels derive from it without a tensor's values."""

    @cached_property
    def code_bytes(self) -> int:
        """Bytes that hold a code of every operator that is stored, 1 or 2."""
        stored = ("matmul.Wx", "matmul.Rh", "gate.r_pre", "gate.z_pre", "gate.g_pre")
        return 1 if max(self.grids[name].bitwidth for name in stored) <= 8 else 2

    @cached_property
    def table_bits(self) -> tuple[int, int, int]:
        """Widths of the pre-activations r, z, g."""
        return tuple(self.grids[f"{gate}_pre"].bitwidth for gate in FUNCTIONS)  # type: ignore[return-value]

    @cached_property
    def table_starts(self) -> tuple[int, int, int]:
        """Where the tables of r, z and g start."""
        r, z, _ = self.table_bits
        return 0, 1 << r, (1 << r) + (1 << z)

    @cached_property
    def table_entries(self) -> int:
        """Entries of the three tables."""
        return sum(1 << bits for bits in self.table_bits)

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """For r, z and g in one tensor, values in steps of the products they go into, and slopes; float32, CPU."""
        n = self.exponent
        scales = {
            "gate.r": n("op.rRh") - n(OPTIONAL),
            "gate.z": n("op.old_contrib") - n("output.h"),
            "gate.g": n("op.new_contrib"),
        }
        values, slopes = [], []
        for gate, function in FUNCTIONS.items():
            value, slope = tables(function, self.grids[f"{gate}_pre"], self.grids[f"{gate}_out"], torch.device("cpu"))
            values.append(value * 2.0 ** scales[gate])
            slopes.append(slope)
        return torch.cat(values).float(), torch.cat(slopes).float()


@lru_cache(maxsize=1024)
def kernel_plan(plan: Plan) -> KernelPlan:
    """Return what the kernels need of a plan; one object for each plan."""
    return KernelPlan(plan.key, plan.grids, plan.weights)
