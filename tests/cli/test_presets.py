"""The presets of conf/quant: complete, composable with every recipe, typed."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

import qgru.hydra
from qgru.configs import load_config
from qgru.schema import OPERATORS, OPTIONAL, BitwidthConfig
from qgru.targets.target import load_rules, target_names

CONF = Path(__file__).parents[2] / "conf"
PRESETS = sorted({path.stem for path in (CONF / "quant").glob("*.yaml")} - {"auto"})
RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def quant(cfg: DictConfig) -> BitwidthConfig:
    return load_config(OmegaConf.to_container(cfg.quant))


def test_the_issues_presets_and_recipes_are_there():
    assert PRESETS == ["int16", "int8", "int8_mixed", "npu_4x8", "npu_8x16", "npu_8x8", "w4a8", "w8a16"]
    assert RECIPES == ["cascaded_tanks", "mackey_glass", "sea_surface_temperature", "speaker_identification"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_with_every_recipe(preset, recipe):
    cfg = composed(f"+quant={preset}", f"recipe={recipe}")
    assert quant(cfg) == load_config(preset)
    lifecycle = cfg.callbacks.quantization
    assert lifecycle._target_ == "qgru.callbacks.QuantizationLifecycle"
    assert lifecycle.config == cfg.quant
    assert {"checkpoint", "quantization"} <= set(cfg.callbacks)


def test_no_flag_is_the_float_run():
    cfg = composed()
    assert "quant" not in cfg and "quantization" not in cfg.callbacks


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_spells_out_every_operator(preset):
    cfg = composed(f"+quant={preset}")
    for name in OPERATORS.keys() - {OPTIONAL}:
        entry = OmegaConf.select(cfg.quant.operator_config, name)
        assert set(entry) == {"bitwidth", "is_symmetric", "is_unsigned"}, name
        assert entry.bitwidth <= 16, "ONNX's QuantizeLinear has at most 16 bits"
    assert (CONF / "quant" / f"{preset}.yaml").read_text().splitlines()[1].endswith(f"+quant={preset}")


def test_what_the_presets_names_promise():
    bits = {preset: {n: c.bitwidth for n, c in load_config(preset).operators.items()} for preset in PRESETS}
    assert set(bits["int8"].values()) == {8} and set(bits["int16"].values()) == {16}
    for name, operator in OPERATORS.items():
        if name != OPTIONAL:
            assert bits["w8a16"][name] == (8 if operator.is_weight else 16)
    assert bits["w4a8"]["weight.W"] == bits["w4a8"]["weight.R"] == 4
    assert {bits["int8_mixed"][name] for name in ("weight.W", "weight.R", "input.x", "output.h")} == {8}
    assert {bits["npu_4x8"][name] for name in ("weight.W", "weight.R")} == {4}
    assert {bits["npu_4x8"][name] for name in ("input.x", "output.h")} == {8}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name in target_names()])
def test_a_preset_named_like_a_target_keeps_its_rules(preset):
    assert load_rules(preset).violations(load_config(preset)) == []


@pytest.mark.parametrize(
    ("override", "operator", "expected"),
    [
        ("quant.operator_config.gate.z_out.bitwidth=4", "gate.z_out", (4, True, True)),
        ("quant.operator_config.input.x.is_symmetric=false", "input.x", (8, False, False)),
        ("+quant.operator_config.op.Rh_add_br.bitwidth=12", OPTIONAL, (12, True, False)),
    ],
)
def test_an_override_changes_one_operator(override, operator, expected):
    plain, changed = quant(composed("+quant=int8")), quant(composed("+quant=int8", override))
    entry = changed.operators[operator]
    assert (entry.bitwidth, entry.is_symmetric, entry.is_unsigned) == expected
    others = {name: config for name, config in changed.operators.items() if name != operator}
    assert others == {name: config for name, config in plain.operators.items() if name != operator}


@pytest.mark.parametrize(
    "override",
    [
        "quant.operator_config.gate.z_out.bitwidth=banana",
        "quant.operator_config.gate.z_out.bitwidth=4.5",
        "quant.operator_config.op.rRh.is_symmetric=perhaps",
        "quant.operator_config.gate.z_owt.bitwidth=4",
        "quant.operator_config.gates.z_out.bitwidth=4",
        "quant.default_config.disable_quantization=banana",
    ],
)
def test_a_wrong_type_or_name_fails_at_composition_naming_it(override):
    with pytest.raises(ConfigCompositionException, match=re.escape(override.split("=")[0])):
        composed("+quant=int8", override)


def test_a_width_out_of_range_fails_in_load_config_naming_the_operator():
    cfg = composed("+quant=int8", "quant.operator_config.gate.z_out.bitwidth=40")
    with pytest.raises(ValueError, match="gate.z_out.*40.*1 to 32"):
        quant(cfg)


def test_the_types_know_every_operator_and_field():
    node = OmegaConf.structured(qgru.hydra.QuantNode)
    assert set(node.operator_config) == {name.split(".")[0] for name in OPERATORS}
    assert {f"op.{leaf}" for leaf in node.operator_config.op} == {name for name in OPERATORS if name.startswith("op.")}
    assert OmegaConf.to_container(OmegaConf.structured(qgru.hydra.OperatorNode)) == {
        "bitwidth": 8,
        "is_symmetric": True,
        "is_unsigned": False,
    }
