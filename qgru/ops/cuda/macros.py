"""What each kernel is compiled for: every macro's meaning, and the kernels that take it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

Macros = tuple[tuple[str, int], ...]
"""Names and values to compile with."""

MEANINGS = {
    "BIASED_SUMS": "1 where the recurrent sums start at ROUND's bits, which makes them float32 without a conversion",
    "BLOCK_TILES": "tiles of 16 hidden units of a CTA",
    "CLUSTER": "CTAs that share a sequence",
    "CODE_BYTES": "bytes of a stored code, 1 or 2",
    "COLUMN_TILES": "tiles of 8 columns, rows of the input, of a warp",
    "CTA_TILES": "tiles of 16 hidden units of a CTA",
    "HIDDEN": "hidden units",
    "H_LIMBS": "8-bit limbs of the state",
    "KEY_BITS": "bits of a float32 that name its bin",
    "K_SPLIT": "warps that share a tile's product, each over some of the columns",
    "LIMBS": "8-bit limbs of the recurrent gradient, 2 or 3",
    "PADDED": "columns of the kernel's matrix, a multiple of 64",
    "REGISTER_BLOCKS": "of a warp's weights, how many blocks of 64 columns of one gate stay in registers",
    "REGISTER_K64": "of a warp's weights, how many blocks of 64 columns of all gates stay in registers",
    "ROWS": "batch rows of a row group, which is a cluster's: the forward's, or in walk its own",
    "R_LIMBS": "8-bit limbs of the recurrent weights",
    "SHARED_BLOCKS": "how many blocks more stay in shared memory; see REGISTER_BLOCKS",
    "SHARED_BYTES": "dynamic shared memory that a launch reserves",
    "SHARED_K64": "how many blocks more stay in shared memory; see REGISTER_K64",
    "SHARED_TABLES": "1 where the activation tables are in shared memory",
    "STAGES": "of the ring of copies ahead",
    "STATE_OFFSET": "1 where the state's code is not its mantissa",
    "SUM_WIDE": "1 where a product of matrices is wider than int32 and float32 are exact for",
    "TABLE_ENTRIES": "entries of the activation tables in shared memory",
    "TILES_A_WARP": "tiles of 16 hidden units that a warp owns",
    "TILE_GROUPS": "groups of tiles that a product's warps are dealt to",
    "TRAIN": "1 where the forward saves what backward reads",
    "WARPS": "of a CTA",
    "WIDE": "1 where float64 carries the integers, 0 for float32",
    "W_LIMBS": "8-bit limbs of the input weights",
    "W_SHARED": "1 where a CTA's input weights are in shared memory",
    "X_BFLOAT": "1 where 2 bytes are bfloat16, 0 for float16",
    "X_BYTES": "bytes of a stored number of the real input, 2 or 4",
    "X_LIMBS": "8-bit limbs of the input",
}
"""What a macro says; all of them are integers."""


class Source(NamedTuple):
    """A kernel's source: a file named like its entry point.

    Attributes:
        path: the file; what it includes lies beside it.
        macros: what it is compiled with: exactly these.
    """

    path: Path
    macros: tuple[str, ...]

    @property
    def name(self) -> str:
        """The entry point."""
        return self.path.stem

    def choose(self, values: Mapping[str, int]) -> Macros:
        """Return, of many macros' values, those that this kernel takes."""
        return tuple((macro, values[macro]) for macro in self.macros)


def _kernel(name: str, macros: str) -> Source:
    return Source(Path(__file__).parent / "kernels" / f"{name}.cu", tuple(macros.split()))


_LAYOUT = "CLUSTER CTA_TILES HIDDEN PADDED ROWS SHARED_BYTES STAGES TILES_A_WARP WARPS"
_ELEMENT = "CODE_BYTES ROWS SHARED_TABLES WARPS WIDE"

KERNELS = {
    source.name: source
    for source in (
        _kernel("empty", ""),
        _kernel("prepare", "R_LIMBS SUM_WIDE WARPS WIDE W_LIMBS X_BFLOAT X_BYTES X_LIMBS"),
        _kernel(
            "project",
            "BLOCK_TILES CODE_BYTES COLUMN_TILES PADDED ROWS SHARED_BYTES SUM_WIDE WARPS W_LIMBS W_SHARED X_LIMBS",
        ),
        _kernel(
            "forward",
            f"{_LAYOUT} BIASED_SUMS CODE_BYTES H_LIMBS K_SPLIT REGISTER_K64 R_LIMBS SHARED_K64 SHARED_TABLES "
            "STATE_OFFSET SUM_WIDE TABLE_ENTRIES TRAIN WIDE",
        ),
        _kernel("factors", f"{_ELEMENT} H_LIMBS"),
        _kernel("walk", f"{_LAYOUT} LIMBS REGISTER_BLOCKS R_LIMBS SHARED_BLOCKS TILE_GROUPS"),
        _kernel("operands", f"{_ELEMENT} H_LIMBS X_LIMBS"),
        _kernel("parameters", "WARPS"),
        _kernel("input_weights", "WARPS W_LIMBS"),
        _kernel("input_gradient", "WARPS W_LIMBS X_BFLOAT X_BYTES"),
    )
}
"""The layer's kernels by name."""
