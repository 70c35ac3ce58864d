"""Swaps after a greedy assignment: one operator wider, one or two others narrower, within the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

from qgru.search.limits import changed, operands
from qgru.search.objective import Problem, Step
from qgru.search.rules import BIAS_OF, PRODUCTS, Rules
from qgru.search.sensitivity import SEARCHED, Progress, Widths, widths_of

ROUNDS = 12
_ROUND = 8  # measured before the best is taken
_HOPELESS = 0.3  # of the error: a swap that is predicted to add more is not measured
_GAIN = 1e-3  # of the error: less is not worth a round
_SLACK = 0.02  # of the budget, for costs that don't add up


class _Change(NamedTuple):
    widths: Widths  # of what changes
    added: float
    paid: float


def swapped(problem: Problem, start: Step, budget: float, progress: Progress | None = None) -> list[Step]:
    """Lower a configuration's error by swaps that stay within the budget.

    `ROUNDS` rounds measure the swaps that are predicted best and take the best of them, or fewer where no swap that is
    left looks promising.

    Args:
        problem: what to lower.
        start: meets the budget.
        budget: the largest cost.
        progress: called after every round.

    Returns:
        The steps that were taken, each better than the one before; none where `start` was as good.
    """
    widths, error, steps, tried = widths_of(start.config), start.error, [], set()
    for number in range(ROUNDS):
        promising = _promising(problem, widths, budget, _HOPELESS * error)
        shortlist = list(islice((moved for moved in promising if tuple(moved.values()) not in tried), _ROUND))
        tried |= {tuple(moved.values()) for moved in shortlist}
        if not shortlist:
            break
        best = min(shortlist, key=problem.error)
        if problem.error(best) < (1 - _GAIN) * error:
            widths, error = best, problem.error(best)
            steps.append(problem.step(best))
        if progress:
            text = f"swapped to an error of {error:.2g} at a cost of {problem.cost(widths):.3f}"
            progress(number + 1, ROUNDS, text)
    return steps


def _promising(problem: Problem, widths: Widths, budget: float, limit: float) -> Iterator[Widths]:
    """Yield what the target takes and the budget allows, those first that are predicted to add least."""
    spent = problem.cost(widths)
    changes = [_priced(problem, widths, spent, change) for change in _changes(widths, problem.rules)]
    wider, narrower = [c for c in changes if c.paid > 0], [c for c in changes if c.paid < 0]
    several = ((up, *downs) for up in wider for count in (0, 1, 2) for downs in combinations(narrower, count))
    swaps = [
        (sum(change.added for change in changes), changes)
        for changes in several
        if spent + sum(change.paid for change in changes) <= (1 + _SLACK) * budget and _are_apart(changes)
    ]
    for added, changes in sorted(swaps, key=lambda swap: swap[0]):
        moved = dict(widths)
        for change in changes:
            moved |= change.widths
        if added > limit:
            return
        if problem.cost(moved) <= budget and problem.takes(moved):
            yield moved


def _are_apart(changes: Sequence[_Change]) -> bool:
    names = [name for change in changes for name in change.widths]
    return len(set(names)) == len(names)


def _priced(problem: Problem, widths: Widths, spent: float, change: Widths) -> _Change:
    added = sum(problem.added(name, width) - problem.added(name, widths[name]) for name, width in change.items())
    return _Change(change, added, problem.cost(widths | change) - spent)


def _changes(widths: Widths, rules: Rules) -> Iterator[Widths]:
    """Yield single operators up to two widths wider or narrower, and what has to change together."""
    for name in SEARCHED:
        allowed, width = rules.widths[name], widths[name]
        narrower, wider = [w for w in allowed if w < width][-2:], [w for w in allowed if w > width][:2]
        yield from ({name: w} for w in (*narrower, *wider))
    for pair in PRODUCTS:
        known = tuple(widths[name] for name in pair)
        wider = [width for width in rules.widths[pair[1]] if width > known[1]][:2]
        several = operands(rules, pair) if rules.products is not None else [(known[0], width) for width in wider]
        for bits in several:
            change = changed(rules, pair, bits)
            bias = BIAS_OF[pair[1]]
            if bits != known and change[bias] is not None:
                yield {**change, bias: max(change[bias], widths[bias])}
