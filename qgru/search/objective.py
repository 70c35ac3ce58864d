"""What an assignment lowers: a measured error, less what training will win back; and what it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qgru.schema import OPERATORS, WEIGHTS, BitwidthConfig
from qgru.search.rules import Rules
from qgru.search.sensitivity import BASE, SEARCHED, Sensitivities, Widths, config_of


@dataclass(frozen=True)
class Step:
    """A configuration that was considered.

    Attributes:
        config: bit widths.
        cost: relative to the preset ``int8``.
        error: what was minimised: the measured error, with the parameters' discounted where QAT follows.
    """

    config: BitwidthConfig
    cost: float
    error: float


class Problem:
    """One assignment: errors, costs and rules, everything measured once.

    With a discount, the parameters are measured at `BASE`, and what they add is predicted and discounted.

    Args:
        known: sensitivities of every width that `rules` allow.
        measure: returns a configuration's error.
        price: returns a configuration's cost; narrower never costs more.
        rules: of the target.
        discount: what the parameters' errors count for.
    """

    def __init__(
        self,
        known: Sensitivities,
        measure: Callable[[BitwidthConfig], float],
        price: Callable[[BitwidthConfig], float],
        rules: Rules,
        discount: float = 1.0,
    ) -> None:
        self.rules, self._known, self._discount = rules, known, discount
        self._measure, self._price = measure, price
        self._errors: dict[tuple[int, ...], float] = {}
        self._costs: dict[tuple[int, ...], float] = {}

    def added(self, name: str, width: int) -> float:
        """Return what an operator of this width is predicted to add to the error."""
        share = self._discount if OPERATORS[name].is_weight else 1.0
        return share * self._known.summed(name, width)

    def error(self, widths: Widths) -> float:
        """Return the error."""
        if self._discount == 1.0:
            return self._measured(widths)
        parameters = {name: BASE[name] for name in WEIGHTS}
        return self._measured(widths | parameters) + sum(self.added(name, widths[name]) for name in WEIGHTS)

    def _measured(self, widths: Widths) -> float:
        key = tuple(widths[name] for name in SEARCHED)
        if key not in self._errors:
            self._errors[key] = self._measure(config_of(widths))
        return self._errors[key]

    def cost(self, widths: Widths) -> float:
        """Return the cost."""
        key = tuple(widths[name] for name in SEARCHED)
        if key not in self._costs:
            self._costs[key] = self._price(config_of(widths))
        return self._costs[key]

    def takes(self, widths: Widths) -> bool:
        """Tell whether the target takes a configuration."""
        return not self.rules.violations(config_of(widths))

    def step(self, widths: Widths) -> Step:
        """Return a configuration with its cost and error."""
        return Step(config_of(widths), self.cost(widths), self.error(widths))
