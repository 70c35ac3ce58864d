"""The ends of what a target takes: the widest and the cheapest configuration, and budgets between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from qgru.schema import BitwidthConfig
from qgru.search.rules import BIAS_OF, GATES, PRODUCTS, Rules
from qgru.search.sensitivity import SEARCHED, Widths, config_of


def widest(rules: Rules) -> Widths:
    """Return the widest widths that a target takes.

    Raises:
        ValueError: where its rules leave nothing.
    """
    widths = {name: rules.widths[name][-1] for name in SEARCHED}
    for pair in PRODUCTS:
        widths |= dict(zip(pair, max(operands(rules, pair), key=lambda bits: bits[0] * bits[1]), strict=True))
    for gate in GATES:
        widths |= _largest_table(rules, gate)
    found = rules.violations(config_of(widths))
    if found:
        raise ValueError(f"{rules.name} takes no configuration at all: {'; '.join(found)}")
    return widths


def operands(rules: Rules, pair: tuple[str, str]) -> list[tuple[int, int]]:
    """Return what a target multiplies in a matrix product, where a bias is there to go with it.

    Raises:
        ValueError: where that is nothing.
    """
    allowed = [
        (activation, weight)
        for activation, weight in product(*(rules.widths[name] for name in pair))
        if (rules.products is None or (activation, weight) in rules.products) and least_bias(rules, pair, weight)
    ]
    if not allowed:
        raise ValueError(f"{rules.name} takes no configuration at all: it has no product for {pair[0]} by {pair[1]}")
    return allowed


def least_bias(rules: Rules, pair: tuple[str, str], weight: int) -> int | None:
    """Return the least width of the bias beside weights of some width; None where there is none."""
    widths = rules.widths[BIAS_OF[pair[1]]]
    return next((width for width in widths if width >= weight or not rules.wide_biases), None)


def _largest_table(rules: Rules, gate: str) -> Widths:
    pre, out = f"gate.{gate}_pre", f"gate.{gate}_out"
    cap = rules.max_table_bits
    for bits in reversed(rules.widths[out]):
        fitting = [width for width in rules.widths[pre] if cap is None or bits << width <= cap]
        if fitting:
            return {pre: fitting[-1], out: bits}
    return {}


def cheapest(rules: Rules, cost: Callable[[BitwidthConfig], float]) -> tuple[Widths, float]:
    """Return the widths that cost least, and their cost.

    Raises:
        ValueError: where the rules leave nothing.
    """
    widths = {name: rules.widths[name][0] for name in SEARCHED}
    for pair in PRODUCTS:
        allowed = operands(rules, pair)
        least = [bits for bits in allowed if not any(_is_narrower(other, bits) for other in allowed)]
        choices = [widths | changed(rules, pair, bits) for bits in least]
        widths = min(choices, key=lambda chosen: cost(config_of(chosen)))
    return widths, cost(config_of(widths))


def changed(rules: Rules, pair: tuple[str, str], bits: tuple[int, int]) -> Widths:
    """Return the widths of a product's operands, and the least of the bias that goes with it."""
    return {**dict(zip(pair, bits, strict=True)), BIAS_OF[pair[1]]: least_bias(rules, pair, bits[1])}


def _is_narrower(bits: tuple[int, int], other: tuple[int, int]) -> bool:
    return bits != other and bits[0] <= other[0] and bits[1] <= other[1]


def check_budget(rules: Rules, cost: Callable[[BitwidthConfig], float], budget: float) -> None:
    """Refuse a budget that can't be met.

    Raises:
        ValueError: naming the least cost, and the rule that forbids less.
    """
    _, least = cheapest(rules, cost)
    if least <= budget:
        return
    relaxed = {
        f"{name} takes {', '.join(map(str, rules.widths[name]))} bits": replace(
            rules, widths={**rules.widths, name: (1, *rules.widths[name])}
        )
        for name in SEARCHED
    }
    if rules.products is not None:
        operands = {name: (1, *rules.widths[name]) for pair in PRODUCTS for name in pair}
        text = f"it multiplies {', '.join(f'{a}x{w}' for a, w in rules.products)}"
        relaxed[text] = replace(rules, products=None, widths={**rules.widths, **operands})
    rule = min(relaxed, key=lambda text: cheapest(relaxed[text], cost)[1])
    raise ValueError(
        f"a budget of {budget:g} can't be met on {rules.name}: the least cost is {least:.3g} (1 is the preset int8); "
        f"what forbids most: {rule}"
    )
