"""On a GPU, a search must not compile a kernel for every configuration."""

from __future__ import annotations

import pytest
import torch

from qgru.ops.cuda.layer import Shape, layer_on
from qgru.ops.plan import plan_from
from tests.ops.test_cuda_sources import PROCESSORS, grids

TABLES = [{"gate_z_pre": f"{bits} 1 0 {bits - 3} 0"} for bits in (3, 5, 8, 9, 12)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_kernel_serves_tables_of_any_size_where_it_does_not_share_them(arch: str) -> None:
    def variants(shares_tables: bool) -> set[tuple]:
        shape = Shape(20, 64, 32, 256, torch.float32, 0)
        plans = [plan_from(grids(16, 8, **tables)) for tables in TABLES]
        layers = [layer_on(PROCESSORS[arch], plan, shape, 0, shares_tables) for plan in plans]
        return {layer.macros["forward"] for layer in layers if layer is not None}

    assert len(variants(False)) == 1


def test_small_tables_are_shared_otherwise() -> None:
    plan, shape = plan_from(grids()), Shape(20, 64, 32, 256, torch.float32, 0)
    macros = [dict(layer_on(PROCESSORS["sm_90"], plan, shape, 0, shares).macros["forward"]) for shares in (True, False)]
    assert [found["SHARED_TABLES"] for found in macros] == [1, 0]
