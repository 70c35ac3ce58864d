"""The exactness domain: where every backend gives the same integers in any order of summation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qgru.grid import Grid
from qgru.ops.exact import complement_bound
from qgru.schema import OPTIONAL

_PRODUCT_BITS, _SUM_BITS = 62, 60

_PRODUCTS = (("gate.r_out", OPTIONAL), ("gate.z_out", "output.h"))
_SUMS = (
    ("matmul.Wx", "matmul.Rh", "weight.bw", "weight.br"),
    ("matmul.Rh", "weight.br"),
    ("matmul.Wx", "weight.bw", "op.rRh"),
    ("op.old_contrib", "op.new_contrib"),
)


def outside_domain(grids: Mapping[str, Grid], input_size: int, hidden_size: int) -> Iterator[str]:
    """Yield a description of every product and sum of a time step that may not be exact.

    Args:
        grids: canonical operator name to grid, ``op.Rh_add_br`` included.
        input_size: length of the input's inner products.
        hidden_size: length of the state's inner products.
    """
    for weight, activation, length in (("weight.W", "input.x", input_size), ("weight.R", "output.h", hidden_size)):
        bits = grids[weight].bitwidth + grids[activation].bitwidth + (length - 1).bit_length()
        if bits > _PRODUCT_BITS:
            yield f"{weight} x {activation} takes {bits} bits (at most {_PRODUCT_BITS})"
    for a, b in _PRODUCTS:
        bits = grids[a].bitwidth + grids[b].bitwidth
        if bits > _PRODUCT_BITS:
            yield f"{a} x {b} takes {bits} bits (at most {_PRODUCT_BITS})"
    bits = (complement_bound(grids["gate.z_out"]) - 1).bit_length() + grids["gate.g_out"].bitwidth
    if bits > _PRODUCT_BITS:
        yield f"(1 - gate.z_out) x gate.g_out takes {bits} bits (at most {_PRODUCT_BITS})"
    for names in _SUMS:
        terms = [grids[name] for name in names]
        bits = max(g.bitwidth - min(g.exponents) for g in terms) + max(max(g.exponents) for g in terms)
        if bits > _SUM_BITS:
            yield f"{' + '.join(names)} takes {bits} bits (at most {_SUM_BITS})"
