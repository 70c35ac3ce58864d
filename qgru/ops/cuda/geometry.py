"""How a walk over time is laid over the GPU: rows, clusters, warps, and where the recurrent weights stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, TypeVar


class Processor(NamedTuple):
    """What a device offers.

    Attributes:
        capability: compute capability.
        multiprocessors: how many.
        shared_bytes: shared memory that a CTA can ask for.
        clusters: sizes of clusters, 1 first, and how many run at once with a CTA on each multiprocessor.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    clusters: tuple[tuple[int, int], ...]


class Widths(NamedTuple):
    """What a layer's grids, and the precision of its gradient, ask of the layout.

    Attributes:
        weight_limbs: 8-bit limbs of the recurrent weights.
        state_limbs: of the state.
        code_bytes: bytes of a stored code.
        table_bytes: bytes of the activation tables in shared memory.
        real_bytes: 4 or 8, the arithmetic's carrier.
        gradient_limbs: of the recurrent gradient; 0 without backward.
    """

    weight_limbs: int
    state_limbs: int
    code_bytes: int
    table_bytes: int
    real_bytes: int
    gradient_limbs: int = 0


@dataclass(frozen=True)
class Geometry:
    """A layout: of the forward's loop or the backward's, see layouts.py.

    Attributes:
        cluster: CTAs that share a sequence.
        rows: batch rows of a cluster.
        warps: of a CTA.
        tiles_a_warp: tiles of 16 hidden units that a warp owns.
        tile_warps: warps that the tiles are dealt to; the rest share them, each with some of the rows.
        padded: columns of the recurrent weights, a multiple of 64.
        groups: clusters that the batch needs.
        register_blocks: of a warp's weights, how many blocks of 64 columns stay in registers.
        shared_blocks: how many in shared memory; the rest is read from L2 at every step.
    """

    cluster: int
    rows: int
    warps: int
    tiles_a_warp: int
    tile_warps: int
    padded: int
    groups: int
    register_blocks: int = 0
    shared_blocks: int = 0

    most_warps: ClassVar[int]
    row_choices: ClassVar[tuple[int, ...]]

    @property
    def cta_tiles(self) -> int:
        """Tiles of a CTA."""
        return self.tile_warps * self.tiles_a_warp

    @property
    def tiles(self) -> int:
        """Tiles of a cluster."""
        return self.cluster * self.cta_tiles

    @property
    def units(self) -> int:
        """Hidden units, padded to whole tiles of every warp."""
        return 16 * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return 32 * self.warps

    @property
    def lane_rows(self) -> int:
        """Rows of a lane: it owns two units of each in every tile."""
        return self.rows // 4 * self.tile_warps // self.warps

    @property
    def streamed_blocks(self) -> int:
        """How many blocks don't fit on the chip."""
        return self.blocks - self.register_blocks - self.shared_blocks

    @property
    def blocks(self) -> int:
        """Blocks of a warp's weights."""
        raise NotImplementedError

    def lane_bytes(self, widths: Widths) -> int:
        """Bytes of a block in a lane."""
        raise NotImplementedError

    @property
    def stages(self) -> int:
        """Of the ring of copies ahead."""
        raise NotImplementedError

    def macros(self, widths: Widths) -> dict[str, int]:
        """What to compile with."""
        return {
            "ROWS": self.rows,
            "CLUSTER": self.cluster,
            "PADDED": self.padded,
            "WARPS": self.warps,
            "TILES_A_WARP": self.tiles_a_warp,
            "CTA_TILES": self.cta_tiles,
            "STAGES": self.stages,
            "SHARED_BYTES": self.shared_bytes(widths),
        }

    def block_bytes(self, widths: Widths) -> int:
        """Shared memory for a CTA's weights of one block a warp."""
        return self.lane_bytes(widths) * self.threads

    def shared_bytes(self, widths: Widths) -> int:
        """Dynamic shared memory: `Shared` in loop.cuh or walk.cuh."""
        weights = self.shared_blocks * self.block_bytes(widths) + 16 * self.threads
        return -(-(self.fixed_bytes(widths) + weights) // 128) * 128 + 256

    def streamed_bytes(self, widths: Widths) -> int:
        """What a CTA reads of the weights at every step."""
        return self.streamed_blocks * self.block_bytes(widths)

    def step_us(self, widths: Widths) -> float:
        """Estimate a step's time in microseconds: fitted to timings of one H200, with parts of the loop taken out."""
        raise NotImplementedError

    def fixed_bytes(self, widths: Widths) -> int:
        """Shared memory for all but the weights."""
        raise NotImplementedError

    def register_bytes(self, widths: Widths) -> int:
        """Of a thread's registers, what the weights may take."""
        raise NotImplementedError


Kind = TypeVar("Kind", bound=Geometry)


@lru_cache(maxsize=1024)
def geometry(kind: type[Kind], hidden: int, batch: int, widths: Widths, processor: Processor) -> Kind | None:
    """Return the layout of least estimated time that fits, or None.

    Args:
        kind: `Loop` or `Walk` of layouts.py.
        hidden: hidden units.
        batch: rows.
        widths: of the grids.
        processor: the device.
    """
    limit, alone = processor.shared_bytes, len(processor.clusters) == 1
    candidates = [
        (candidate.step_us(widths) * -(-candidate.groups // at_once), candidate)
        for cluster, at_once in processor.clusters
        for rows in kind.row_choices
        if (candidate := _with_weights(_candidate(kind, hidden, batch, cluster, rows, alone), widths, limit))
        and at_once
    ]
    return min(candidates, key=lambda timed: timed[0])[1] if candidates else None


def _with_weights(candidate: Kind | None, widths: Widths, limit: int) -> Kind | None:
    """Put as many of the weights on the chip as fit; None where nothing else does."""
    if candidate is None:
        return None
    held = candidate.register_bytes(widths) // candidate.lane_bytes(widths)
    registers, free = min(candidate.blocks, held), limit - candidate.shared_bytes(widths)
    if free < 0:
        return None
    shared = min(candidate.blocks - registers, free // candidate.block_bytes(widths))
    return replace(candidate, register_blocks=registers, shared_blocks=shared)


def _candidate(kind: type[Kind], hidden: int, batch: int, cluster: int, rows: int, alone: bool) -> Kind | None:
    """Return a layout without its weights; `alone` on a GPU without clusters, where a CTA takes what it can."""
    tiles = -(-hidden // (16 * cluster))
    tiles = -(-tiles // 4) * 4 if cluster > 1 else tiles  # slices of 64 units: a block of k belongs to one CTA
    tiles_a_warp = -(-tiles // kind.most_warps)
    if tiles_a_warp * kind.most_warps > 16 and not (alone and tiles_a_warp <= 4 and rows == 4):
        return None
    warps = -(-tiles // tiles_a_warp)
    padded = -(-cluster * warps * tiles_a_warp * 16 // 64) * 64
    shared_by = 2 if warps == 4 and padded >= 256 else 1
    if rows % 8 and shared_by == 2:
        return None  # they can't be shared
    return kind(cluster, rows, warps * shared_by, tiles_a_warp, warps, padded, -(-batch // rows))
