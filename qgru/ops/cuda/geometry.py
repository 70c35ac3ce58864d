"""How a walk over time is laid over the GPU: rows, clusters, warps, and where the recurrent weights stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, TypeVar

ROWS = (4, 8, 16)


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
    """A layout: of the forward's loop (`Loop`) or the backward's (`Walk`).

    Attributes:
        cluster: CTAs that share a sequence.
        rows: batch rows of a cluster.
        warps: of a CTA.
        tiles_a_warp: tiles of 16 hidden units that a warp owns.
        k_split: warps that share a tile's product, each over some of the columns.
        padded: columns of the recurrent weights, a multiple of 64.
        groups: clusters that the batch needs.
        register_k64: of a warp's weights, how many blocks of 64 columns stay in registers.
        shared_k64: how many in shared memory; the rest is read from L2 at every step.
    """

    cluster: int
    rows: int
    warps: int
    tiles_a_warp: int
    k_split: int
    padded: int
    groups: int
    register_k64: int = 0
    shared_k64: int = 0

    most_warps: ClassVar[int]

    @property
    def cta_tiles(self) -> int:
        """Tiles of a CTA."""
        return self.warps // self.k_split * self.tiles_a_warp

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
        return self.rows // 4 // self.k_split

    @property
    def streamed_k64(self) -> int:
        """How many blocks don't fit on the chip."""
        return self.padded // 64 // self.k_split - self.register_k64 - self.shared_k64

    @property
    def macros(self) -> tuple[tuple[str, int], ...]:
        """What to compile with."""
        return (
            ("ROWS", self.rows),
            ("CLUSTER", self.cluster),
            ("PADDED", self.padded),
            ("WARPS", self.warps),
            ("TILES_A_WARP", self.tiles_a_warp),
            ("CTA_TILES", self.cta_tiles),
            ("K_SPLIT", self.k_split),
            ("REGISTER_K64", self.register_k64),
            ("SHARED_K64", self.shared_k64),
        )

    def block_bytes(self, widths: Widths) -> int:
        """Shared memory for a CTA's weights of one block a warp."""
        return 16 * 3 * 2 * self.tiles_a_warp * widths.weight_limbs * self.threads

    def shared_bytes(self, widths: Widths) -> int:
        """Dynamic shared memory: `Shared` in loop.cuh or walk.cuh."""
        weights = self.shared_k64 * self.block_bytes(widths) + 16 * self.threads
        return -(-(self.fixed_bytes(widths) + weights) // 128) * 128 + 256

    def streamed_bytes(self, widths: Widths) -> int:
        """What a CTA reads of the weights at every step."""
        return self.streamed_k64 * self.block_bytes(widths)

    def step_us(self, widths: Widths) -> float:
        """Estimate a step's time in microseconds: fitted to timings of one H200, with parts of the loop taken out."""
        raise NotImplementedError

    def fixed_bytes(self, widths: Widths) -> int:
        """Shared memory for all but the weights."""
        raise NotImplementedError

    def register_bytes(self, widths: Widths) -> int:
        """Of a thread's registers, what the weights may take."""
        raise NotImplementedError


class Loop(Geometry):
    """The forward's layout."""

    STAGES = 6  # of the copies ahead, in loop.cuh
    most_warps = 8

    @property
    def elements(self) -> int:
        """Elements of a tile's slot in the stored codes: two units of a quarter of the rows."""
        return self.rows // 2

    def step_us(self, widths: Widths) -> float:
        """See `Geometry`."""
        products = self.cta_tiles * (self.padded // 64) * -(-self.rows // 8) * widths.weight_limbs * widths.state_limbs
        shared = self.shared_k64 * self.block_bytes(widths)
        exchange = 0.15 + 0.03 * self.cluster if self.cluster > 1 else 0
        pointwise = 0.3 * self.lane_rows * self.tiles_a_warp * self.warps / 8
        return 0.15 + pointwise + exchange + 0.006 * products + (shared + 2 * self.streamed_bytes(widths)) / 220e3

    def fixed_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        elements = self.tiles_a_warp * 2 * self.lane_rows  # of a lane
        levels = widths.weight_limbs + widths.state_limbs - 1
        state = 2 * self.rows * self.padded * widths.state_limbs
        ring = self.STAGES * self.threads * (elements * 4 * widths.code_bytes + self.rows)
        partial = 4 * 3 * elements * levels * self.threads if self.k_split > 1 else 0
        constants = 16 * self.cta_tiles * (8 * widths.real_bytes + 2 * 4 * 8)
        return state + ring + partial + constants + widths.table_bytes

    def register_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        if self.tiles_a_warp > 2 or (self.rows == 16 and widths.weight_limbs + widths.state_limbs == 4):
            return 384
        return 768 if self.rows == 4 else 576


class Walk(Geometry):
    """The backward's layout."""

    most_warps = 16

    @property
    def stages(self) -> int:
        """Of the copies ahead."""
        return 4 if self.cluster == 1 else 3

    def step_us(self, widths: Widths) -> float:
        """See `Geometry`."""
        columns = self.rows * 2 * (2 if widths.gradient_limbs == 3 else 1)
        operands = (
            self.warps // self.k_split * 3 * self.padded * columns * widths.weight_limbs
        )  # bytes from shared memory
        slices = 3 * self.padded * columns * (self.cluster - 1) / self.cluster
        pointwise = 0.4 * self.lane_rows * self.tiles_a_warp * self.warps / 8
        shared = self.shared_k64 * self.block_bytes(widths)
        exchange = 0.45 + slices / 32e3 if self.cluster > 1 else 0
        return 0.2 + pointwise + exchange + operands / 100e3 + (shared + 2 * self.streamed_bytes(widths)) / 220e3

    def fixed_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        columns = self.rows * 2 * (2 if widths.gradient_limbs == 3 else 1)
        slices = 3 * self.padded * columns + 4 * self.rows * self.cluster
        pairs = self.tiles_a_warp * self.lane_rows * self.threads
        largest = 4 * self.rows * self.warps // self.k_split
        partial = 8 * pairs if self.k_split > 1 else 0
        return slices + self.stages * pairs * 40 + largest + partial

    def register_bytes(self, widths: Widths) -> int:
        """See `Geometry`."""
        if self.warps > 8:
            return 288 if self.tiles_a_warp == 1 else 192
        return 576 if widths.weight_limbs == 1 and self.rows < 16 else 480


Kind = TypeVar("Kind", bound=Geometry)


@lru_cache(maxsize=1024)
def geometry(kind: type[Kind], hidden: int, batch: int, widths: Widths, processor: Processor) -> Kind | None:
    """Return the layout of least estimated time that fits, or None.

    Args:
        kind: `Loop` or `Walk`.
        hidden: hidden units.
        batch: rows.
        widths: of the grids.
        processor: the device.
    """
    limit, alone = processor.shared_bytes, len(processor.clusters) == 1
    candidates = [
        (candidate.step_us(widths) * -(-candidate.groups // at_once), candidate)
        for cluster, at_once in processor.clusters
        for rows in ROWS
        if (candidate := _with_weights(_candidate(kind, hidden, batch, cluster, rows, alone), widths, limit))
        and at_once
    ]
    return min(candidates, key=lambda timed: timed[0])[1] if candidates else None


def _with_weights(candidate: Kind | None, widths: Widths, limit: int) -> Kind | None:
    """Put as many of the weights on the chip as fit; None where nothing else does."""
    if candidate is None:
        return None
    blocks = candidate.padded // 64 // candidate.k_split
    held = candidate.register_bytes(widths) // (96 * candidate.tiles_a_warp * widths.weight_limbs)
    registers, free = min(blocks, held), limit - candidate.shared_bytes(widths)
    if free < 0:
        return None
    shared = min(blocks - registers, free // candidate.block_bytes(widths))
    return replace(candidate, register_k64=registers, shared_k64=shared)


def _candidate(kind: type[Kind], hidden: int, batch: int, cluster: int, rows: int, alone: bool) -> Kind | None:
    """Return a layout without its weights; `alone` on a GPU without clusters, where a CTA takes what it can."""
    tiles = -(-hidden // (16 * cluster))
    tiles = -(-tiles // 4) * 4 if cluster > 1 else tiles  # slices of 64 units: a block of k belongs to one CTA
    tiles_a_warp = -(-tiles // kind.most_warps)
    if tiles_a_warp * kind.most_warps > 16 and not (alone and tiles_a_warp <= 4 and rows == 4):
        return None
    warps = -(-tiles // tiles_a_warp)
    padded = -(-cluster * warps * tiles_a_warp * 16 // 64) * 64
    k_split = 2 if warps == 4 and padded >= 256 else 1
    if rows == 4 and k_split == 2:
        return None  # as many elements a lane as 8 rows have
    return kind(cluster, rows, warps * k_split, tiles_a_warp, k_split, padded, -(-batch // rows))
