"""How a layer's shape is laid over the GPU: rows, clusters, warps, and what stays in registers and in shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

SHARED_BYTES = {8: 99 * 1024, 9: 227 * 1024, 10: 227 * 1024, 12: 99 * 1024}
CLUSTERS = (1, 2, 4, 8, 16)
ROWS = (4, 8, 16)
# Of a thread's registers, for the weights: by rows, and by tiles a warp.
_FORWARD_BYTES, _BACKWARD_BYTES = {4: 768, 8: 576, 16: 576}, {1: 480, 2: 576}
_MAX_WARPS = 8


@dataclass(frozen=True)
class Geometry:
    """A time loop's layout.

    Attributes:
        cluster: CTAs that share a sequence.
        rows: batch rows of a cluster.
        warps: of a CTA.
        tiles_a_warp: tiles of 16 hidden units that a warp owns.
        forward_k64: of a warp's weights, how many blocks of 64 columns stay in registers.
        backward_k64: likewise in backward.
        padded: columns of the recurrent weights, a multiple of 64.
        groups: clusters that the batch needs.
    """

    cluster: int
    rows: int
    warps: int
    tiles_a_warp: int
    forward_k64: int
    backward_k64: int
    padded: int
    groups: int

    @property
    def cta_tiles(self) -> int:
        """Tiles of a CTA."""
        return self.warps * self.tiles_a_warp

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
    def elements(self) -> int:
        """Elements of a lane and tile: two units of a quarter of the rows."""
        return self.rows // 2

    def fragment_bytes(self, register_k64: int) -> int:
        """Shared memory for the weights that registers don't hold."""
        blocks = (self.padded // 64 - register_k64) * 3 * self.tiles_a_warp * 2 + 1
        return 16 * blocks * self.threads

    def forward_bytes(self, code_bytes: int, table_bytes: int, real_bytes: int) -> int:
        """Dynamic shared memory of the forward loop: `Shared` in forward.cu."""
        state = 2 * self.rows * _stride(self.padded)
        ring = 6 * self.threads * (self.tiles_a_warp * self.elements * 4 * code_bytes + self.rows)
        constants = 16 * self.cta_tiles * (8 * real_bytes + 16)
        return _aligned(state + self.fragment_bytes(self.forward_k64) + ring + constants + table_bytes)

    def backward_bytes(self, code_bytes: int, table_bytes: int, real_bytes: int, limbs: int) -> int:
        """Dynamic shared memory of the backward loop: `Shared` in backward.cu."""
        columns = 2 * self.rows * (2 if limbs == 3 else 1)
        each = self.tiles_a_warp * (self.elements * (4 * code_bytes + 2) + 16 * self.rows // 4) + self.rows
        ring = 4 * self.threads * each
        small = 4 * self.rows * (self.warps + self.cluster)
        constants = 16 * self.cta_tiles * 8 * real_bytes
        limb_bytes = columns * _stride(3 * self.padded)
        return _aligned(
            limb_bytes + self.fragment_bytes(self.backward_k64) + ring + small + constants + 2 * table_bytes
        )


def _stride(length: int) -> int:
    return (length + 63) // 128 * 128 + 64


def _aligned(size: int) -> int:
    return (size + 15) // 16 * 16 + 64


@lru_cache(maxsize=1024)
def geometry(
    hidden: int,
    batch: int,
    code_bytes: int,
    table_bytes: int,
    real_bytes: int,
    limbs: int,
    capability: int,
    processors: int,
) -> Geometry | None:
    """Return the layout of least latency that fits, or None: the smallest cluster, the fewest rows on one wave.

    Args:
        hidden: hidden units.
        batch: rows.
        code_bytes: bytes of a stored code.
        table_bytes: bytes of the activation tables in shared memory.
        real_bytes: 4 or 8, the arithmetic's carrier.
        limbs: of the recurrent gradient; 0 where there is no backward.
        capability: major compute capability.
        processors: multiprocessors of the device.
    """
    limit = SHARED_BYTES.get(capability, 99 * 1024)
    for cluster in CLUSTERS if capability in (9, 10) else CLUSTERS[:1]:
        fitting = []
        for rows in ROWS:
            candidate = _candidate(hidden, batch, cluster, rows)
            if candidate is None:
                continue
            sizes = (code_bytes, table_bytes, real_bytes)
            needed = candidate.forward_bytes(*sizes)
            if limbs:
                needed = max(needed, candidate.backward_bytes(*sizes, limbs))
            if needed <= limit:
                fitting.append(candidate)
        # A GPC holds 16 to 18 multiprocessors, so that a cluster of 16 leaves some idle.
        available = processors // cluster
        on_one_wave = [candidate for candidate in fitting if candidate.groups <= available]
        if fitting:
            return on_one_wave[0] if on_one_wave else fitting[-1]
    return None


def _candidate(hidden: int, batch: int, cluster: int, rows: int) -> Geometry | None:
    tiles = -(-hidden // (16 * cluster))
    tiles = -(-tiles // 4) * 4 if cluster > 1 else tiles  # slices of 64 units: a block of k belongs to one CTA
    tiles_a_warp = -(-tiles // _MAX_WARPS)
    if tiles_a_warp > 2:
        return None
    warps = -(-tiles // tiles_a_warp)
    padded = -(-cluster * warps * tiles_a_warp * 16 // 64) * 64
    in_registers = [
        min(padded // 64, held // (96 * tiles_a_warp)) for held in (_FORWARD_BYTES[rows], _BACKWARD_BYTES[tiles_a_warp])
    ]
    return Geometry(cluster, rows, warps, tiles_a_warp, *in_registers, padded, -(-batch // rows))
