"""The whole search on a small model, and its preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

import qgru
from qgru.presets import conf_folder, preset_names
from qgru.schema import BitwidthConfig
from qgru.search import Found, load_rules, relative_cost, search, write_preset
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import SEARCHED
from tests.search.models import Classifier, batches, observed, uniform

CHIP = {
    "widths": {"default": [4, 8, 12], "input": {"x": [8]}, "output": {"h": [8]}, "weight": {"W": [4, 8], "R": [4, 8]}}
}


def small() -> nn.Module:
    torch.manual_seed(2)
    return observed(nn.Sequential(nn.GRU(3, 6, batch_first=True)), forward_fn=states)


def states(module: nn.Module, batch: Any) -> torch.Tensor:
    return module(batch[0])[0]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def found(module: nn.Module) -> Found:
    return search(module, batches(1), 1.0, target=CHIP, points=3, forward_fn=states)


def test_every_point_is_measured_and_keeps_the_rules(module: nn.Module, found: Found) -> None:
    evaluator, rules = Evaluator(module, batches(1), states), load_rules(CHIP)
    assert len(found.chosen) == 3 and len(found.measured) > len(found.front) > 2
    for point in found.measured:
        assert point.measured == evaluator.error(point.config)
        assert point.cost == relative_cost(module, point.config)
    for point in (*found.chosen, *found.front):
        assert not rules.violations(point.config)
    budgets = (1.0, 0.75, 0.5)
    least = min(point.cost for point in found.chosen)
    assert all(point.cost <= max(budget, least) for point, budget in zip(found.chosen, budgets, strict=True))


def test_the_front_falls_and_nothing_is_below_it(found: Found) -> None:
    costs, errors = [p.cost for p in found.front], [p.measured for p in found.front]
    assert costs == sorted(costs) and errors == sorted(errors, reverse=True)
    kept = [p for p in found.measured if not load_rules(CHIP).violations(p.config)]
    assert all(any(f.cost <= p.cost and f.measured <= p.measured for f in found.front) for p in kept)


def test_presets_are_measured_beside_it(found: Found) -> None:
    assert set(found.presets) == set(preset_names())
    assert found.presets["int8"].cost == 1.0 and found.presets["int8"] in found.measured
    assert found.presets["w8a16"].predicted != found.presets["w8a16"].predicted  # of widths that were not measured


def test_reasons_are_the_errors_at_this_width_and_the_next(found: Found) -> None:
    point, known = found.chosen[0], found.sensitivities
    assert set(point.reasons) == set(SEARCHED)
    for name, reason in point.reasons.items():
        width = point.config.operators[name].bitwidth
        assert reason.startswith(f"error {known.summed(name, width):.1e} at {width}, ")
        narrower = [other for other in load_rules(CHIP).widths[name] if other < width]
        if narrower:
            assert reason.endswith(f"{known.summed(name, narrower[-1]):.1e} at {narrower[-1]}")
        else:
            assert reason.endswith("the target's least")


def test_it_beats_the_preset_of_its_cost_where_nothing_is_discounted(module: nn.Module) -> None:
    best = search(module, batches(1), 1.0, qat=False, forward_fn=states)
    assert best.chosen[0].measured < 0.7 * best.presets["int8"].measured
    assert best.chosen[0].cost <= 1.0


def test_an_error_is_kept_at_the_least_cost(module: nn.Module) -> None:
    seen: list[str] = []
    limit = search(module, batches(1), 1.0, target=CHIP, forward_fn=states, qat=False).chosen[0].measured
    found = search(
        module, batches(1), 1.0, 4 * limit, CHIP, forward_fn=states, progress=lambda *args: seen.append(args[2])
    )
    assert found.chosen[0].measured <= 4 * limit and found.chosen[0].cost < 0.98 and seen
    cheaper = [p for p in found.measured if p.cost < found.chosen[0].cost and p.measured <= 4 * limit]
    assert not [p for p in cheaper if not load_rules(CHIP).violations(p.config)]
    with pytest.raises(ValueError, match="an error of 1e-12 can't be kept at a cost of 1 on the target: the least"):
        search(module, batches(1), 1.0, 1e-12, CHIP, forward_fn=states)


def test_several_layers_and_directions_have_one_configuration() -> None:
    """And the logits of a classifier."""
    module = observed(Classifier())
    chip = {"widths": {"default": [8], "gate": {"z_pre": [6, 8]}, "op": {"rRh": [4, 8]}}}
    found = search(module, batches(1), 0.999, target=chip, logits=True)
    assert found.chosen[0].measured == Evaluator(module, batches(1), logits=True).error(found.chosen[0].config)
    assert found.chosen[0].cost <= 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget is 0.0; expected a number above 0"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"max_error": -1.0}, "max_error is -1.0; expected a number above 0"),
        ({"points": 0}, "points is 0; expected an integer of 1 or more"),
        ({"budget": 0.5, "target": "npu_8x16"}, "a budget of 0.5 can't be met on npu_8x16: the least cost is 1 "),
    ],
)
def test_what_can_not_be_asked_for(module: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(module, batches(1), forward_fn=states, **options)


def test_a_preset_is_written_as_json_and_for_hydra(found: Found, tmp_path: Path) -> None:
    point = found.chosen[0]
    write_preset(point, tmp_path / "new" / "folder", "mine")
    folder = tmp_path / "new" / "folder"
    assert BitwidthConfig.from_json(folder / "bitwidth_config.json") == point.config
    text = (folder / "mine.yaml").read_text()
    assert text.startswith("# @package _global_\n# python train.py +quant=mine\n") and f"cost {point.cost:.3g}" in text
    assert BitwidthConfig.from_mapping(OmegaConf.to_container(OmegaConf.create(text).quant)) == point.config
    for name, reason in point.reasons.items():
        assert f"      {name.partition('.')[2]}: {{bitwidth: {point.config.operators[name].bitwidth}," in text
        assert f"# {reason}\n" in text


def test_a_written_preset_is_used_like_one_that_ships(found: Found, tmp_path: Path) -> None:
    write_preset(found.chosen[0], tmp_path / "quant", "mine")
    (tmp_path / "config.yaml").write_text(f"hydra: {{searchpath: ['file://{conf_folder()}']}}\ndefaults: [_self_]\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", ["+quant=mine"])
    assert cfg.callbacks.quantization._target_ == "qgru.callbacks.QuantizationLifecycle"
    assert qgru.load_config(OmegaConf.to_container(cfg.quant)) == found.chosen[0].config


def test_targets_compose_as_a_group_of_hydra() -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose(overrides=["+target=npu_8x16", "callbacks.quantization.target.max_table_bits=8192"])
    rules = load_rules(OmegaConf.to_container(cfg.callbacks.quantization.target))
    assert rules.max_table_bits == 8192 and not rules.violations(uniform(8, input__x=16))
