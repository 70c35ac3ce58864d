"""The exactness domain: where every backend gives the same integers in any order of summation."""

from __future__ import annotations

from collections.abc import Iterator

from qgru.ops.plan import STEP, Plan, Product, Sum

_PRODUCT_BITS, _SUM_BITS = 62, 60


def outside_domain(plan: Plan, input_size: int, hidden_size: int) -> Iterator[str]:
    """Yield a description of every product and sum of a time step that may not be exact.

    The rule is docs/numerics.md's, "Exactness domain".

    Args:
        plan: one direction's grids.
        input_size: length of the input's inner products.
        hidden_size: length of the state's inner products.
    """
    lengths = {"input": input_size, "hidden": hidden_size, None: 1}
    for made_of in dict.fromkeys(STEP.values()):
        is_sum = isinstance(made_of, Sum)
        bits = _sum_bits(plan, made_of) if is_sum else _product_bits(plan, made_of, lengths[made_of.inner])
        most = _SUM_BITS if is_sum else _PRODUCT_BITS
        if bits > most:
            yield f"{made_of} takes {bits} bits (at most {most})"


def _product_bits(plan: Plan, product: Product, length: int) -> int:
    first = (plan.complement - 1).bit_length() if product.is_complement else plan.bitwidth(product.a)
    return first + plan.bitwidth(product.b) + (length - 1).bit_length()


def _sum_bits(plan: Plan, total: Sum) -> int:
    least, most = zip(*(plan.exponents(term) for term in total.terms), strict=True)
    return max(plan.bitwidth(term) - n for term, n in zip(total.terms, least, strict=True)) + max(most)
