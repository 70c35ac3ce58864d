"""The whole search: sensitivities, assignment, and every reported point measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from qgru.configs import load_config
from qgru.presets import preset_names
from qgru.schema import BitwidthConfig
from qgru.search.assign import MEASURED_FROM, QAT_DISCOUNT, narrowed_to, narrowing
from qgru.search.cost import Cost, cost_of, reference
from qgru.search.evaluation import Evaluator
from qgru.search.limits import cheapest, check_budget
from qgru.search.objective import Problem, Step
from qgru.search.rules import Rules, load_rules
from qgru.search.sensitivity import SEARCHED, Progress, Sensitivities, measured_alone, widths_of
from qgru.search.swaps import swapped
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
    of_int8 = cost_of(module, reference())

    def price(config: BitwidthConfig) -> float:
        return cost_of(module, config).relative_to(of_int8)

    check_budget(rules, price, budget)
    evaluator = Evaluator(module, batches, forward_fn, logits)
    known = measured_alone(evaluator, {name: rules.widths[name] for name in SEARCHED}, progress)
    error = cache(evaluator.error)

    @cache
    def point(config: BitwidthConfig) -> Point:
        parts, predicted = cost_of(module, config), _predicted(known, config)
        reasons = MappingProxyType(_reasons(config, known, rules))
        return Point(config, parts.relative_to(of_int8), parts, predicted, error(config), reasons)

    presets = {name: load_config(name) for name in preset_names()}
    problem = Problem(known, error, price, rules, QAT_DISCOUNT if qat and max_error is None else 1.0)
    if max_error is None:
        least = budget if points == 1 else max(_NARROWEST * budget, cheapest(rules, price)[1])
        shares = [1 - number / max(points - 1, 1) for number in range(points)]
        budgets = [min(least + share * (budget - least), budget) for share in shares]
        steps = [problem.step(widths_of(config)) for config in presets.values() if not rules.violations(config)]
        best = _under(problem, budgets, steps, progress)
    else:
        best, steps = _within(problem, budget, max_error, progress)
    configs = dict.fromkeys((*(step.config for step in steps), *presets.values()))
    measured = tuple(map(point, configs))
    return Found(
        chosen=tuple(point(step.config) for step in best),
        front=_front([p for p in measured if not rules.violations(p.config)]),
        presets=MappingProxyType({name: point(config) for name, config in presets.items()}),
        sensitivities=known,
        measured=measured,
    )


def _under(problem: Problem, budgets: Sequence[float], steps: list[Step], progress: Progress | None) -> list[Step]:
    """Return the best step under each budget, the largest budget first; add all that were taken to `steps`."""
    steps += narrowed_to(problem, budgets[-1], MEASURED_FROM * budgets[0], progress)
    chosen = []
    for budget in budgets:
        steps += swapped(problem, _best(steps, budget), budget, progress)
        chosen.append(_best(steps, budget))
    return chosen


def _best(steps: Sequence[Step], budget: float) -> Step:
    return min((step for step in steps if step.cost <= budget), key=lambda step: step.error)


def _within(
    problem: Problem, budget: float, max_error: float, progress: Progress | None
) -> tuple[list[Step], list[Step]]:
    """Return the cheapest step that keeps an error, within the budget, and all steps."""
    steps = []
    for step in narrowing(problem, MEASURED_FROM * budget):
        steps.append(step)
        if progress:
            progress(0, 0, f"narrowed to a cost of {step.cost:.3f}: error {step.error:.2g}")
        if step.cost <= budget and step.error > max_error:
            break
    found = [step for step in steps if step.cost <= budget and step.error <= max_error]
    for step in {step.config: step for step in (*found[-1:], steps[-1])}.values():
        steps += swapped(problem, step, step.cost, progress)
    kept = [step for step in steps if step.cost <= budget and step.error <= max_error]
    if not kept:
        least = _best(steps, budget).error
        raise ValueError(
            f"an error of {max_error:g} can't be kept at a cost of {budget:g} on {problem.rules.name}: "
            f"the least that was found is {least:.3g}"
        )
    return [min(kept, key=lambda step: step.cost)], steps


def _check(budget: float, max_error: float | None, points: int) -> None:
    if not budget > 0:
        raise ValueError(f"budget is {budget!r}; expected a number above 0 (1 is the cost of the preset int8)")
    if max_error is not None and not max_error > 0:
        raise ValueError(f"max_error is {max_error!r}; expected a number above 0, or None")
    if type(points) is not int or points < 1:
        raise ValueError(f"points is {points!r}; expected an integer of 1 or more")


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
