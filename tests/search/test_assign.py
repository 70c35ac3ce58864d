"""Assignments, with errors and costs that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from torch import nn

import qgru
from qgru.direction import Direction
from qgru.schema import BitwidthConfig
from qgru.search import Rules, Sensitivities, assign, load_rules, relative_cost
from qgru.search.limits import cheapest
from qgru.search.objective import Problem
from qgru.search.sensitivity import BASE, SEARCHED, config_of, widths_of
from qgru.search.swaps import swapped

MODULE = qgru.convert(nn.GRU(5, 7))
PRICES: dict[BitwidthConfig, float] = {}


def price(config: BitwidthConfig) -> float:
    if config not in PRICES:
        PRICES[config] = relative_cost(MODULE, config)
    return PRICES[config]


def made_up(rng: random.Random, rules: Rules) -> Sensitivities:
    """Errors that fall by about four a bit, from where an operator's start."""
    errors = {}
    for name in SEARCHED:
        start = 4.0 ** rng.uniform(-3, 3)
        for width in rules.widths[name]:
            errors["", Direction(), name, width] = start * 4.0**-width * rng.uniform(0.8, 1.2)
    return Sensitivities(errors, 0.0)


def coupled(rng: random.Random, known: Sensitivities) -> Callable[[BitwidthConfig], float]:
    """A measurement that the sum misses by up to a factor of two, the same for the same configuration."""
    salt = rng.random()

    def measure(config: BitwidthConfig) -> float:
        own = random.Random(hash((*widths_of(config).values(), salt)))
        return known.predicted(config) * own.uniform(0.7, 2.1)

    return measure


def random_rules(rng: random.Random) -> Rules:
    widths = {name: sorted(rng.sample(range(2, 17), rng.randint(1, 5))) for name in SEARCHED}
    for gate in "zrg":
        widths[f"gate.{gate}_pre"] = sorted(rng.sample(range(2, 13), 2))
    for bias in ("weight.bw", "weight.br"):
        widths[bias] = sorted({*widths[bias], 16})
    products = None
    if rng.random() < 0.6:
        pairs = [
            (rng.choice(widths[a]), rng.choice(widths[w]))
            for a, w in (("input.x", "weight.W"), ("output.h", "weight.R"))
        ]
        products = [list(pair) for pair in (*pairs, (rng.choice(widths["input.x"]), rng.choice(widths["weight.W"])))]
    least = max(min(widths[f"gate.{g}_out"]) << min(widths[f"gate.{g}_pre"]) for g in "zrg")
    cap = rng.choice((None, least, 3 * least))
    return Rules.from_mapping(
        {
            "widths": {"default": [8], **widths},
            "products": products,
            "max_table_bits": cap,
            "wide_biases": rng.random() < 0.7,
        }
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_targets_rules_and_the_budget_are_kept_whatever_they_are(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_rules(rng)
    known = made_up(rng, rules)
    least = cheapest(rules, price)[1]
    for share in (1.0, rng.uniform(1, 1.5)):
        steps = assign(known, coupled(rng, known), price, rules, share * least, rng.choice((1.0, 0.05)))
        assert not [text for step in steps for text in rules.violations(step.config)]
        assert steps[-1].cost <= share * least and steps[-1].cost == price(steps[-1].config)


@pytest.mark.parametrize("target", ["fpga", "npu_4x8", "npu_8x8", "npu_8x16"])
def test_the_targets_that_ship(target: str) -> None:
    rng, rules = random.Random(1), load_rules(target)
    known = made_up(rng, rules)
    steps = assign(known, coupled(rng, known), price, rules, 1.1, 0.05)
    assert not [text for step in steps for text in rules.violations(step.config)] and steps[-1].cost <= 1.1


def test_the_cheapest_of_all() -> None:
    """Against all of a small set of rules."""
    rules = Rules.from_mapping(
        {
            "widths": {"default": [8], "input.x": [4, 8], "weight": {"W": [4, 8, 16], "bw": [6, 16]}},
            "products": [[8, 4], [4, 8], [4, 16], [8, 8]],
        }
    )
    everything = [
        config_of({**dict.fromkeys(SEARCHED, 8), "input.x": x, "weight.W": W, "weight.bw": bw})
        for x in (4, 8) for W in (4, 8, 16) for bw in (6, 16)
    ]  # fmt: skip
    allowed = [config for config in everything if not rules.violations(config)]
    widths, cost = cheapest(rules, price)
    assert cost == min(map(price, allowed)) and config_of(widths) in allowed


def test_what_matters_least_is_narrowed_first() -> None:
    rules = Rules.from_mapping({"widths": {"default": [8], "output.h": [4, 8], "op.rRh": [4, 8]}})
    errors = {("", Direction(), name, width): 0.0 for name in SEARCHED for width in rules.widths[name]}
    errors["", Direction(), "output.h", 4] = 1.0
    known = Sensitivities(errors, 0.0)
    budget = price(config_of({**dict.fromkeys(SEARCHED, 8), "op.rRh": 4}))
    last = assign(known, known.predicted, price, rules, budget)[-1]
    assert widths_of(last.config) == {**dict.fromkeys(SEARCHED, 8), "op.rRh": 4}


def test_a_measurement_overrules_the_prediction() -> None:
    rules = Rules.from_mapping({"widths": {"default": [8], "op.old_contrib": [4, 8], "op.rRh": [4, 8]}})
    errors = {("", Direction(), name, width): 0.0 for name in SEARCHED for width in rules.widths[name]}
    errors["", Direction(), "op.old_contrib", 4] = 1.0

    def measure(config: BitwidthConfig) -> float:
        return 5.0 if config.operators["op.rRh"].bitwidth == 4 else 0.5

    budget = price(config_of({**dict.fromkeys(SEARCHED, 8), "op.rRh": 4}))
    last = assign(Sensitivities(errors, 0.0), measure, price, rules, budget)[-1]
    assert widths_of(last.config)["op.rRh"] == 8 and last.error == 0.5


def test_with_a_discount_parameters_are_measured_wide_and_predicted() -> None:
    rng, rules = random.Random(2), load_rules("fpga")
    known = made_up(rng, rules)
    asked = []
    problem = Problem(known, lambda config: asked.append(config) or 0.25, price, rules, 0.1)
    widths = {**dict.fromkeys(SEARCHED, 8), "weight.R": 3}
    added = sum(known.summed(name, widths[name]) for name in SEARCHED if name.startswith("weight"))
    assert problem.error(widths) == pytest.approx(0.25 + 0.1 * added)
    wide = {name: BASE[name] if name.startswith("weight") else 8 for name in SEARCHED}
    assert [widths_of(config) for config in asked] == [wide]


def test_swaps_lower_the_error_within_the_budget() -> None:
    rng, rules = random.Random(3), load_rules("fpga")
    known = made_up(rng, rules)
    problem = Problem(known, known.predicted, price, rules)
    start = problem.step(dict.fromkeys(SEARCHED, 8))
    steps = swapped(problem, start, 1.0)
    errors = [step.error for step in (start, *steps)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]
    assert max(step.cost for step in steps) <= 1.0


def test_a_budget_that_can_not_be_met_names_the_rule_and_the_least() -> None:
    known = made_up(random.Random(4), load_rules("npu_8x8"))
    with pytest.raises(ValueError) as caught:
        assign(known, known.predicted, price, load_rules("npu_8x8"), 0.8)
    assert str(caught.value) == (
        "a budget of 0.8 can't be met on npu_8x8: the least cost is 1 (1 is the preset int8); what forbids most: it "
        "multiplies 8x8"
    )
    tables = Rules.from_mapping({"widths": {"default": [4, 8], "gate.z_pre": [12]}}, "chip")
    with pytest.raises(ValueError, match="on chip: the least cost is 0.[67].*: gate.z_pre takes 12 bits"):
        assign(known, known.predicted, price, tables, 0.3)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"widths": {"default": [8]}, "products": [[16, 8]]}, "no product for input.x by weight.W"),
        ({"widths": {"default": [8]}, "max_table_bits": 100}, "the table from gate.z_pre to gate.z_out has 2048 bits"),
        ({"widths": {"default": [8], "weight.bw": [4]}}, "no product for input.x by weight.W"),
    ],
)
def test_rules_that_leave_nothing(mapping: dict, message: str) -> None:
    known = made_up(random.Random(5), load_rules("fpga"))
    with pytest.raises(ValueError, match=f"chip takes no configuration at all: .*{message}"):
        assign(known, known.predicted, price, Rules.from_mapping(mapping, "chip"), 2.0)
