"""How the input's projection is laid over the GPU."""

from __future__ import annotations

from dataclasses import dataclass

WARPS = 16  # of a CTA


@dataclass(frozen=True)
class Projection:
    """The layout of project.cu.

    Attributes:
        block_tiles: tiles of 16 hidden units of a CTA.
        column_tiles: tiles of 8 columns (rows of the input) of a warp.
        weights_shared: the CTA's weights fit in shared memory.
        padded: columns of the weights, a multiple of 64.
        shared_bytes: dynamic shared memory: `Shared` in project.cu.
        blocks: of columns, over which the CTAs go.
        grid: CTAs.
    """

    block_tiles: int
    column_tiles: int
    weights_shared: bool
    padded: int
    shared_bytes: int
    blocks: int
    grid: tuple[int, int]

    @property
    def macros(self) -> dict[str, int]:
        """What to compile with."""
        return {
            "WARPS": WARPS,
            "BLOCK_TILES": self.block_tiles,
            "COLUMN_TILES": self.column_tiles,
            "PADDED": self.padded,
            "W_SHARED": int(self.weights_shared),
            "SHARED_BYTES": self.shared_bytes,
        }


def projection(
    columns: int, padded: int, tiles: int, weight_limbs: int, input_limbs: int, processors: int, limit: int
) -> Projection | None:
    """Return the layout that reads the weights least often, or None where not even a few columns fit.

    Args:
        columns: rows of the input, padded to whole tiles of 8.
        padded: their length, a multiple of 64.
        tiles: of hidden units.
        weight_limbs: 8-bit limbs of the weights.
        input_limbs: of the input.
        processors: multiprocessors of the device.
        limit: bytes of shared memory.
    """
    most_tiles = next(n for n in (1, 2, 4, 8) if n >= min(tiles, 8))
    most_columns = 4 if weight_limbs * input_limbs == 1 else 2  # sums are in registers
    for shared in (True, False):
        for column_tiles in (n for n in (4, 2, 1) if n <= most_columns):
            for block_tiles in (*(n for n in (8, 4, 2, 1) if n <= most_tiles), 8, 16):
                of_block = 8 * column_tiles * WARPS // block_tiles
                size = 2 * input_limbs * of_block * _stride(padded)
                size += 48 * block_tiles * (padded + 32) * weight_limbs if shared else 0
                if size > limit:
                    continue
                blocks, across = -(-columns // of_block), -(-tiles // block_tiles)
                grid = (min(blocks, max(1, processors // across)), across)
                return Projection(block_tiles, column_tiles, shared, padded, size, blocks, grid)
    return None


def _stride(padded: int) -> int:
    """Bytes of a column in shared memory: off a multiple of 128, against bank conflicts."""
    return (padded + 63) // 128 * 128 + 64
