"""What each operator's width costs in accuracy: one operator, layer and direction at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from qgru.direction import Direction
from qgru.schema import BIASES, OPERATORS, OPTIONAL, BitwidthConfig
from qgru.search.cost import reference
from qgru.search.evaluation import Evaluator, Place
from qgru.stages.passes import ForwardFn

Progress = Callable[[int, int, str], None]
"""``progress(done, total, text)``."""

PRE_ACTIVATIONS = ("gate.z_pre", "gate.r_pre", "gate.g_pre")

SEARCHED = tuple(name for name in OPERATORS if name != OPTIONAL)
"""The operators whose widths are chosen."""

BASE: Mapping[str, int] = MappingProxyType({name: 12 if name in PRE_ACTIVATIONS else 16 for name in SEARCHED})
"""What all other operators have while one is measured: 16 bits, and 12 in front of a table, which has 4096 entries."""

WIDTHS = tuple(range(2, 13))

Widths = dict[str, int]
"""The bit width of every operator that is searched."""


def config_of(widths: Mapping[str, int]) -> BitwidthConfig:
    """Return a configuration of these widths, with the symmetry and signs of the preset ``int8``."""
    known = reference().operators
    return BitwidthConfig({name: replace(known[name], bitwidth=width) for name, width in widths.items()})


def widths_of(config: BitwidthConfig) -> Widths:
    """Return the width of every operator that is searched."""
    return {name: config.operators[name].bitwidth for name in SEARCHED}


@dataclass(frozen=True)
class Sensitivities:
    """The error of every operator alone.

    Attributes:
        errors: by (layer name, direction, operator, width): with this operator at this width and all others at
            `BASE`. ``input.x``, which both directions share, stands with the first.
        base: with all at `BASE`.
    """

    errors: Mapping[tuple[str, Direction, str, int], float]
    base: float

    @cached_property
    def _summed(self) -> dict[tuple[str, int], float]:
        sums: dict[tuple[str, int], float] = defaultdict(float)
        for (_, _, operator, width), error in self.errors.items():
            sums[operator, width] += max(error - self.base, 0.0)
        return dict(sums)

    def summed(self, operator: str, width: int) -> float:
        """Return what an operator adds to the error where it has this width in all layers and directions.

        Raises:
            KeyError: for a width that was not measured.
        """
        return 0.0 if width == BASE[operator] else self._summed[operator, width]

    def predicted(self, config: BitwidthConfig) -> float:
        """Return the sum over all operators: how a configuration of measured widths ranks, not what it measures."""
        return self.base + sum(self.summed(name, width) for name, width in widths_of(config).items())

    def rows(self) -> list[dict[str, Any]]:
        """Return the errors as rows of a table: layer, direction, operator, width, error."""
        return [
            {"layer": layer, "direction": str(direction), "operator": operator, "width": width, "error": error}
            for (layer, direction, operator, width), error in self.errors.items()
        ]


def sensitivities(
    module: nn.Module,
    batches: Sequence[Any],
    widths: Sequence[int] = WIDTHS,
    forward_fn: ForwardFn | None = None,
    logits: bool = False,
    progress: Progress | None = None,
) -> Sensitivities:
    """Measure every operator of every layer and direction alone at every width, the others at `BASE`.

    Args:
        module: a converted module whose layers have observed data; it stays as it is.
        batches: what to compare outputs on, without labels.
        widths: bit widths.
        forward_fn: see `Evaluator`.
        logits: likewise.
        progress: called after every measurement.

    Raises:
        ValueError: see `Evaluator`.
    """
    evaluator = Evaluator(module, batches, forward_fn, logits)
    return measured_alone(evaluator, {name: widths for name in SEARCHED}, progress)


def measured_alone(
    evaluator: Evaluator, widths: Mapping[str, Sequence[int]], progress: Progress | None = None
) -> Sensitivities:
    """Return `sensitivities` with other widths for each operator."""
    base_config = config_of(BASE)
    base, errors = evaluator.error(base_config), {}
    wanted = [(place, name, width) for place, name in _alone(evaluator) for width in widths[name]]
    for done, (place, name, width) in enumerate(wanted, 1):
        layer, direction = place
        error = base
        if width != BASE[name] and (name not in BIASES or evaluator.has_bias(layer)):
            config = config_of({**BASE, name: width})
            error = evaluator.error(base_config, dict.fromkeys(_sharing(evaluator, place, name), config))
        errors[layer, direction, name, width] = error
        if progress:
            progress(done, len(wanted), f"{name} at {width} bits: {error:.2g}")
    return Sensitivities(errors, base)


def _alone(evaluator: Evaluator) -> Iterator[tuple[Place, str]]:
    for place in evaluator.places:
        yield from ((place, name) for name in SEARCHED if name != "input.x" or not place[1].reverse)


def _sharing(evaluator: Evaluator, place: Place, name: str) -> list[Place]:
    """Return the places that have a width in common."""
    if name != "input.x":
        return [place]
    return [other for other in evaluator.places if other[0] == place[0] and other[1].layer == place[1].layer]
