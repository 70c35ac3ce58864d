"""Widths under a budget: from the widest that a target takes, one operator narrower at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from qgru.schema import BIASES, WEIGHTS, BitwidthConfig
from qgru.search.rules import PRODUCTS, Rules
from qgru.search.sensitivity import BASE, SEARCHED, Progress, Sensitivities, config_of

QAT_DISCOUNT = 0.05
"""What the parameters' errors count for where quantization-aware training follows: it wins back nearly all of them."""

SHORTLIST = 3
_MEASURED_FROM = 2.0  # times the budget: above it, steps are taken by prediction alone
_GATES = ("z", "r", "g")

Widths = dict[str, int]


@dataclass(frozen=True)
class Step:
    """A configuration that was measured.

    Attributes:
        config: bit widths.
        cost: relative to the preset ``int8``.
        error: what was minimised: the measured error, with the parameters' discounted where QAT follows.
    """

    config: BitwidthConfig
    cost: float
    error: float


def assign(
    sensitivities: Sensitivities,
    measure: Callable[[BitwidthConfig], float],
    cost: Callable[[BitwidthConfig], float],
    rules: Rules,
    budget: float,
    discount: float = 1.0,
    progress: Progress | None = None,
) -> list[Step]:
    """Narrow operators, from the widest that `rules` allow, until `budget` is met.

    Each step measures the `SHORTLIST` moves that are predicted to lose least for what they save, and takes the best.

    Args:
        sensitivities: of every width that `rules` allow.
        measure: returns a configuration's error.
        cost: returns a configuration's cost; narrower never costs more.
        rules: of the target.
        budget: the largest cost of the last step.
        discount: what the parameters' errors count for.
        progress: called after every step; done and total count cost on a scale of 1000.

    Returns:
        The measured steps, the cheapest last, which meets the budget.

    Raises:
        ValueError: where no configuration meets the budget; names the least cost and the rule that forbids less.
    """
    check_budget(rules, cost, budget)
    objective = Objective(measure, sensitivities, discount)
    widths = widest(rules)
    steps: list[Step] = []
    start = spent = cost(config_of(widths))
    while spent > budget:
        moves = _cheaper(widths, spent, rules, cost, sensitivities, discount)
        if not moves:
            raise ValueError(f"no move from {widths} costs less than {spent:.3g}")
        if spent <= _MEASURED_FROM * budget:
            move = _best(moves, objective, objective(widths))
            steps.append(Step(config_of(move.widths), move.cost, objective(move.widths)))
        else:
            move = moves[0]
        widths, spent = move.widths, move.cost
        if progress:
            done = (start - spent) / max(start - budget, 1e-9)
            progress(min(int(1000 * done), 1000), 1000, f"cost {spent:.3f}")
    if not steps:
        steps.append(Step(config_of(widths), spent, objective(widths)))
    return steps


class Objective:
    """The error that is minimised, each configuration measured once.

    With a discount, the parameters are measured at `BASE`, and what they add is predicted and discounted.
    """

    def __init__(self, measure: Callable[[BitwidthConfig], float], known: Sensitivities, discount: float) -> None:
        self._measure, self._known, self._discount = measure, known, discount
        self._errors: dict[tuple[int, ...], float] = {}

    def __call__(self, widths: Widths) -> float:
        """Return the error of some widths."""
        if self._discount == 1.0:
            return self._of(widths)
        added = self._discount * sum(self._known.summed(name, widths[name]) for name in WEIGHTS)
        return self._of(widths | {name: BASE[name] for name in WEIGHTS}) + added

    def _of(self, widths: Widths) -> float:
        key = tuple(widths[name] for name in SEARCHED)
        if key not in self._errors:
            self._errors[key] = self._measure(config_of(widths))
        return self._errors[key]


@dataclass(frozen=True)
class _Move:
    widths: Widths
    cost: float
    saved: float
    added: float


def _cheaper(
    widths: Widths,
    spent: float,
    rules: Rules,
    cost: Callable[[BitwidthConfig], float],
    known: Sensitivities,
    discount: float,
) -> list[_Move]:
    """Return the moves that save something, those first that are predicted to lose least for it."""
    before = known.predicted(config_of(widths), discount)
    moves = []
    for moved in _narrower(widths, rules):
        config = config_of(moved)
        price = cost(config)
        if price < spent and not rules.violations(config):
            moves.append(_Move(moved, price, spent - price, known.predicted(config, discount) - before))
    return sorted(moves, key=lambda move: move.added / move.saved)


def _narrower(widths: Widths, rules: Rules) -> Iterator[Widths]:
    for name in SEARCHED:
        narrower = [width for width in rules.widths[name] if width < widths[name]]
        for width in narrower[-2:]:
            yield widths | {name: width}
    for pair in PRODUCTS:
        for operands in rules.products or ():
            yield widths | dict(zip(pair, operands, strict=True))


def _best(moves: Sequence[_Move], objective: Objective, error: float) -> _Move:
    """Measure the first moves; return the one that adds least to `error` for what it saves."""
    return min(moves[:SHORTLIST], key=lambda move: (objective(move.widths) - error) / move.saved)


def widest(rules: Rules) -> Widths:
    """Return the widest widths that a target takes.

    Raises:
        ValueError: where its rules leave nothing.
    """
    widths = {name: rules.widths[name][-1] for name in SEARCHED}
    for pair in PRODUCTS:
        widths |= dict(zip(pair, max(_pairs(rules, pair), key=lambda operands: operands[0] * operands[1]), strict=True))
    for gate in _GATES:
        widths |= _largest_table(rules, gate)
    found = rules.violations(config_of(widths))
    if found:
        raise ValueError(f"{rules.name} takes no configuration at all: {'; '.join(found)}")
    return widths


def _pairs(rules: Rules, pair: tuple[str, str]) -> list[tuple[int, int]]:
    allowed = [
        operands
        for operands in product(*(rules.widths[name] for name in pair))
        if rules.products is None or operands in rules.products
    ]
    if not allowed:
        raise ValueError(f"{rules.name} takes no configuration at all: it has no product for {pair[0]} by {pair[1]}")
    return allowed


def _largest_table(rules: Rules, gate: str) -> Widths:
    pre, out = f"gate.{gate}_pre", f"gate.{gate}_out"
    cap = rules.max_table_bits
    for bits in reversed(rules.widths[out]):
        fitting = [width for width in rules.widths[pre] if cap is None or bits << width <= cap]
        if fitting:
            return {pre: fitting[-1], out: bits}
    return {}


def cheapest(rules: Rules, cost: Callable[[BitwidthConfig], float]) -> tuple[Widths, float]:
    """Return the widths that cost least, and their cost."""
    widths = {name: rules.widths[name][0] for name in SEARCHED}
    for pair, bias in zip(PRODUCTS, BIASES, strict=True):
        choices = []
        for operands in _least_pairs(rules, pair):
            own = dict(zip(pair, operands, strict=True))
            if rules.wide_biases:
                own[bias] = min(width for width in rules.widths[bias] if width >= operands[1])
            choices.append(widths | own)
        widths = min(choices, key=lambda chosen: cost(config_of(chosen)))
    return widths, cost(config_of(widths))


def _least_pairs(rules: Rules, pair: tuple[str, str]) -> list[tuple[int, int]]:
    """Return the allowed operands of a product that are in neither width wider than others."""
    allowed = _pairs(rules, pair)
    return [(a, w) for a, w in allowed if not any(b <= a and v <= w for b, v in allowed if (b, v) != (a, w))]


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
