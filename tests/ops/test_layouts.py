"""How shapes are laid over a GPU, without one."""

from __future__ import annotations

import random
from itertools import product

import pytest

from qgru.ops.cuda.geometry import Geometry, Processor, Widths, geometry
from qgru.ops.cuda.layouts import Loop, Walk
from qgru.ops.cuda.projection import projection

HOPPER = Processor((9, 0), 132, 227 * 1024, ((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)))
AMPERE = Processor((8, 6), 84, 99 * 1024, ((1, 84),))


@pytest.mark.parametrize("kind", [Loop, Walk])
def test_every_layout_covers_the_units_and_fits(kind: type[Geometry]) -> None:
    rng = random.Random(0)
    for _ in range(500):
        hidden, batch = rng.randint(1, 2048), rng.choice((1, 3, 32, 128, 1000, 4096))
        limbs, table_bytes = rng.choice(((1, 1), (1, 2), (2, 2))), rng.choice((0, 3072, 18432))
        widths = Widths(*limbs, rng.choice((1, 2)), table_bytes, rng.choice((4, 8)), rng.choice((2, 3)))
        layout = geometry(kind, hidden, batch, widths, HOPPER)
        assert layout is not None
        assert layout.units >= hidden and layout.padded >= layout.units and layout.padded % 64 == 0
        assert (
            layout.groups * layout.rows >= batch
            and layout.lane_rows * layout.warps == layout.rows // 4 * layout.tile_warps
        )
        assert layout.cluster == 1 or (layout.cta_tiles % 4 == 0 and layout.padded == layout.units)
        assert layout.threads * (layout.register_blocks * layout.lane_bytes(widths) // 4 + 56) <= 65536
        assert layout.streamed_blocks >= 0 and layout.shared_bytes(widths) <= HOPPER.shared_bytes


def test_no_cluster_before_hopper() -> None:
    widths = Widths(1, 1, 1, 3072, 4, 2)
    for kind, hidden in product((Loop, Walk), (1, 37, 128, 256)):
        layout = geometry(kind, hidden, 8, widths, AMPERE)
        assert layout is not None and layout.cluster == 1 and layout.shared_bytes(widths) <= AMPERE.shared_bytes


def test_layouts_mind_how_many_clusters_run_at_once() -> None:
    widths = Widths(1, 1, 1, 3072, 4, 2)
    layout = geometry(Walk, 1024, 56, widths, HOPPER)
    assert layout is not None and (layout.cluster, layout.groups) == (16, 7)


def test_projections_fit() -> None:
    rng = random.Random(0)
    for _ in range(300):
        inputs, tiles, columns = rng.randint(1, 3000), rng.randint(1, 128), 8 * rng.randint(1, 20000)
        limbs, padded = rng.choice(((1, 1), (1, 2), (2, 1), (2, 2))), -(-inputs // 64) * 64
        layout = projection(columns, padded, tiles, *limbs, 132, 227 * 1024)
        assert layout is not None and layout.shared_bytes <= 227 * 1024
        of_block = 8 * layout.column_tiles * 16 // layout.block_tiles
        assert layout.blocks * of_block >= columns and layout.grid[1] * layout.block_tiles >= tiles
