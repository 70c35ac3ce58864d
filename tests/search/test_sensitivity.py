"""What each operator's width costs alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qgru
from qgru.direction import Direction
from qgru.search import Sensitivities, sensitivities
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import BASE, SEARCHED, config_of
from tests.search.models import Classifier, batches, observed, uniform

PLACES = [("first", Direction()), *(("second", Direction(*place)) for place in ((0, 0), (0, 1), (1, 0), (1, 1)))]


def test_every_operator_of_every_direction_alone() -> None:
    module = observed(Classifier())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    seen: list[tuple[int, int, str]] = []
    known = sensitivities(module, batches(1), widths=(3, 8), progress=lambda *args: seen.append(args))
    shared = [place for place in PLACES if place[1].reverse]
    expected = {(*p, name, w) for p in PLACES for name in SEARCHED for w in (3, 8)}
    expected -= {(*place, "input.x", width) for place in shared for width in (3, 8)}
    assert set(known.errors) == expected
    assert [done for done, _, _ in seen] == list(range(1, len(expected) + 1)) and seen[0][1] == len(expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())

    evaluator = Evaluator(module, batches(1))
    assert known.base == evaluator.error(config_of(BASE))
    alone = evaluator.error(config_of(BASE), {PLACES[4]: config_of({**BASE, "gate.z_out": 3})})
    assert known.errors["second", Direction(1, True), "gate.z_out", 3] == alone
    both = dict.fromkeys(PLACES[1:3], config_of({**BASE, "input.x": 3}))
    assert known.errors["second", Direction(0), "input.x", 3] == evaluator.error(config_of(BASE), both)


def test_errors_are_summed_over_places_above_what_is_there_anyway() -> None:
    key = Direction()
    errors = {("a", key, "input.x", 4): 0.5, ("b", key, "input.x", 4): 0.25, ("a", key, "weight.W", 4): 0.05}
    known = Sensitivities(errors, base=0.1)
    assert known.summed("input.x", 4) == pytest.approx(0.4 + 0.15)
    assert known.summed("weight.W", 4) == 0.0  # less than the base is nothing
    assert known.summed("input.x", 16) == 0.0
    everything = {("a", key, name, 4): 0.1 + 2.0**-i for i, name in enumerate(SEARCHED)}
    assert Sensitivities(everything, 0.1).predicted(uniform(4)) == pytest.approx(0.1 + 2 - 2.0**-16)
    assert known.rows()[1] == {"layer": "b", "direction": "layer 0", "operator": "input.x", "width": 4, "error": 0.25}


def test_missing_biases_cost_nothing() -> None:
    model = nn.Sequential(nn.GRU(3, 4, bias=False))
    observed(model, forward_fn=lambda own, batch: own(batch[0])[0])
    known = sensitivities(model, batches(1), (3,), lambda own, batch: own(batch[0])[0])
    assert known.errors["0", Direction(), "weight.bw", 3] == known.base < known.errors["0", Direction(), "weight.W", 3]


def test_what_can_not_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="has observed no data"):
        sensitivities(qgru.convert(Classifier()), batches())
