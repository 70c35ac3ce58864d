"""The whole search: sensitivities, assignment, and every reported point measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from qgru.configs import load_config
from qgru.presets import preset_names
from qgru.schema import BitwidthConfig
from qgru.search.assign import QAT_DISCOUNT, Step, assign, cheapest, check_budget
from qgru.search.cost import REFERENCE, Cost, cost_of
from qgru.search.evaluation import Evaluator
from qgru.search.rules import Rules, load_rules
from qgru.search.sensitivity import SEARCHED, Progress, Sensitivities, measured_alone, widths_of
from qgru.stages.passes import ForwardFn

_NARROWEST = 0.5  # of the budget: where the points below it end


@dataclass(frozen=True)
class Point:
    """A measured configuration.

    Attributes:
        config: bit widths of all layers and directions.
        cost: relative to the preset ``int8`` on the same module.
        parts: what the cost is made of.
        predicted: error, the sum of the operators' own.
        measured: error of the whole, before any QAT.
        reasons: for every operator, why it has its width.
    """

    config: BitwidthConfig
    cost: float
    parts: Cost
    predicted: float
    measured: float
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        chosen: as many points as were asked for, the dearest first.
        front: every measured point that no other beats in both cost and error, the cheapest first.
        presets: the presets' points, by name.
        sensitivities: of every operator.
        measured: every point that was measured.
    """

    chosen: tuple[Point, ...]
    front: tuple[Point, ...]
    presets: Mapping[str, Point]
    sensitivities: Sensitivities
    measured: tuple[Point, ...]


def search(
    module: nn.Module,
    batches: Sequence[Any],
    budget: float = 1.0,
    max_error: float | None = None,
    target: str | Path | Mapping[str, Any] | Rules | None = None,
    points: int = 1,
    qat: bool = True,
    forward_fn: ForwardFn | None = None,
    logits: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Find the bit widths that lose least under a budget.

    Args:
        module: a converted module whose layers have observed data; it stays as it is.
        batches: what to compare outputs on, without labels.
        budget: the largest cost; 1 is the preset ``int8``'s on this module.
        max_error: the largest error, as measured before QAT; the cheapest point that keeps it is chosen.
        target: rules; see `load_rules`.
        points: how many to choose, at budgets evenly spread from `budget` down to half of it.
        qat: quantization-aware training follows, which wins back most of the parameters' error; not so where there
            is a `max_error`.
        forward_fn: see `Evaluator`.
        logits: likewise.
        progress: ``progress(done, total, text)``.

    Raises:
        ValueError: where the budget or the error can't be met, or as `Evaluator`.
        FileNotFoundError: for an unknown target.
    """
    rules = load_rules(target)
    _check(budget, max_error, points)
    reference = cost_of(module, load_config(REFERENCE))

    def price(config: BitwidthConfig) -> float:
        return cost_of(module, config).relative_to(reference)

    check_budget(rules, price, budget)
    evaluator = Evaluator(module, batches, forward_fn, logits)
    known = measured_alone(evaluator, _widths(rules), progress)
    seen: dict[BitwidthConfig, Point] = {}

    def point(config: BitwidthConfig) -> Point:
        if config not in seen:
            parts = cost_of(module, config)
            error, reasons = evaluator.error(config), _reasons(config, known, rules)
            seen[config] = Point(config, parts.relative_to(reference), parts, _predicted(known, config), error, reasons)
        return seen[config]

    discount = QAT_DISCOUNT if qat and max_error is None else 1.0
    least = max(_NARROWEST * budget, cheapest(rules, price)[1]) if points > 1 or max_error is not None else budget
    steps = assign(known, lambda config: point(config).measured, price, rules, least, discount, progress)
    chosen = _choose(steps, [budget - (budget - least) * i / max(points - 1, 1) for i in range(points)], point)
    if max_error is not None:
        chosen = [_within(steps, budget, max_error, point)]
    presets = {name: point(load_config(name)) for name in preset_names()}
    measured = tuple(seen.values())
    front = [p for p in measured if not rules.violations(p.config)]
    return Found(tuple(chosen), _front(front), MappingProxyType(presets), known, measured)


def _check(budget: float, max_error: float | None, points: int) -> None:
    if not budget > 0:
        raise ValueError(f"budget is {budget!r}; expected a number above 0 (1 is the cost of the preset int8)")
    if max_error is not None and not max_error > 0:
        raise ValueError(f"max_error is {max_error!r}; expected a number above 0, or None")
    if type(points) is not int or points < 1:
        raise ValueError(f"points is {points!r}; expected an integer of 1 or more")


def _widths(rules: Rules) -> dict[str, tuple[int, ...]]:
    return {name: rules.widths[name] for name in SEARCHED}


def _choose(steps: Sequence[Step], budgets: Sequence[float], point: Callable[[BitwidthConfig], Point]) -> list[Point]:
    chosen = []
    for budget in budgets:
        best = min((step for step in steps if step.cost <= budget + 1e-12), key=lambda step: step.error)
        chosen.append(point(best.config))
    return chosen


def _within(steps: Sequence[Step], budget: float, max_error: float, point: Callable[[BitwidthConfig], Point]) -> Point:
    affordable = [step for step in steps if step.cost <= budget + 1e-12]
    kept = [step for step in affordable if step.error <= max_error]
    if not kept:
        least = min(step.error for step in affordable)
        raise ValueError(
            f"an error of {max_error:g} can't be met at a cost of {budget:g}: the least found is {least:.3g}"
        )
    return point(min(kept, key=lambda step: step.cost).config)


def _front(points: Sequence[Point]) -> tuple[Point, ...]:
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.measured)):
        if not front or point.measured < front[-1].measured:
            front.append(point)
    return tuple(front)


def _predicted(known: Sensitivities, config: BitwidthConfig) -> float:
    try:
        return known.predicted(config)
    except KeyError:  # a preset's width that the target does not have
        return float("nan")


def _reasons(config: BitwidthConfig, known: Sensitivities, rules: Rules) -> dict[str, str]:
    reasons = {}
    for name, width in widths_of(config).items():
        if width not in rules.widths[name]:
            reasons[name] = f"{rules.name} does not take {width}"
            continue
        narrower = [other for other in rules.widths[name] if other < width]
        own = f"error {known.summed(name, width):.1e} at {width}"
        rest = f"{known.summed(name, narrower[-1]):.1e} at {narrower[-1]}" if narrower else f"{rules.name}'s least"
        reasons[name] = f"{own}, {rest}"
    return reasons
