"""The operator table, and one configuration in its three forms."""

import itertools
import json
from pathlib import Path

import pytest

from qgru.configs import load_config
from qgru.schema import OPERATORS, BitwidthConfig, OperatorConfig, canonical_name

NAMES = (
    *("input.x", "output.h", "weight.W", "weight.R", "weight.bw", "weight.br", "matmul.Wx", "matmul.Rh"),
    *("gate.z_pre", "gate.z_out", "gate.r_pre", "gate.r_out", "gate.g_pre", "gate.g_out"),
    *("op.rRh", "op.old_contrib", "op.new_contrib"),
)
SEED_FILE = {
    "description": "as the seed project's users have it",
    "GRU_config": {
        "comment": "anywhere",
        "default_config": {"disable_quantization": False, "comment": "here too"},
        "operator_config": {
            "description": "the operators",
            **{name: {"bitwidth": 8, "is_symmetric": True, "is_unsigned": False, "comment": name} for name in NAMES},
            "gate.z_out": {"bitwidth": 8, "is_symmetric": False, "is_unsigned": True, "comment": "in [0, 1]"},
            "gate.r_out": {"bitwidth": 5, "is_symmetric": False, "is_unsigned": True, "description": "in [0, 1]"},
            "matmul.Rh": {"bitwidth": 16, "comment": "two fields left out"},
        },
    },
}


def operator_config(**operators: dict) -> dict:
    return {"GRU_config": {"operator_config": operators}}


def test_the_table_lists_the_operators_in_the_definition_s_order() -> None:
    assert list(OPERATORS) == [*NAMES, "op.Rh_add_br"]
    assert [name for name, operator in OPERATORS.items() if operator.is_weight] == list(NAMES[2:6])
    assert all(operator.name == name for name, operator in OPERATORS.items())


@pytest.mark.parametrize("name", [*NAMES, "op.Rh_add_br"])
def test_names_are_known_in_full_and_short(name: str) -> None:
    assert canonical_name(name) == canonical_name(name.split(".")[1]) == name


def test_input_h_is_output_h() -> None:
    assert canonical_name("input.h") == "output.h"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("gate.z_ouT", "gate.z_out"), ("z_outt", "z_out"), ("wieght.W", "weight.W"), ("op.rRH", "op.rRh"), ("", "")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=r"unknown operator") as error:
        canonical_name(name)
    assert repr(name) in str(error.value) and nearest in str(error.value)


def test_a_seed_file_loads_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    path.write_text(json.dumps(SEED_FILE))
    for config in (BitwidthConfig.from_json(path), load_config(path), load_config(str(path)), load_config(SEED_FILE)):
        assert config.operators["gate.z_out"] == OperatorConfig(8, False, True)
        assert config.operators["gate.r_out"] == OperatorConfig(5, False, True)
        assert config.operators["matmul.Rh"] == OperatorConfig(16, True, False)
        assert set(config.operators) == set(NAMES)
        assert config.disable_quantization is False


def test_the_forms_of_one_configuration_are_equal(tmp_path: Path) -> None:
    config = BitwidthConfig.from_mapping(SEED_FILE)
    inner = SEED_FILE["GRU_config"]
    nested: dict = {}
    for name, entry in inner["operator_config"].items():
        if name != "description":
            group, short = name.split(".")
            nested.setdefault(group, {"comment": "a group may have one"})[short] = entry
    assert BitwidthConfig.from_mapping(inner) == config
    assert BitwidthConfig.from_mapping({"operator_config": nested}) == config
    assert BitwidthConfig.from_mapping({"GRU_config": {"operator_config": nested}}) == config
    assert BitwidthConfig.from_mapping(config.to_mapping()) == config
    assert load_config(config) == config
    config.to_json(tmp_path / "out.json")
    assert BitwidthConfig.from_json(tmp_path / "out.json") == config
    written = json.loads((tmp_path / "out.json").read_text())["GRU_config"]["operator_config"]
    assert written["gate.z_out"] == {"bitwidth": 8, "is_symmetric": False, "is_unsigned": True}


def test_every_setting_survives_the_round_trip(tmp_path: Path) -> None:
    for bitwidth, is_symmetric, is_unsigned, disabled in itertools.product((1, 13, 32), *[(False, True)] * 3):
        operators = {
            name: OperatorConfig(bitwidth, is_symmetric or operator.is_weight, is_unsigned)
            for name, operator in OPERATORS.items()
        }
        config = BitwidthConfig(operators, disabled)
        config.to_json(tmp_path / "c.json")
        assert (
            BitwidthConfig.from_json(tmp_path / "c.json") == config == BitwidthConfig.from_mapping(config.to_mapping())
        )
        assert config.operators["op.Rh_add_br"].bitwidth == bitwidth


def test_what_a_file_leaves_out_is_eight_bits_symmetric_signed() -> None:
    for mapping in ({}, {"GRU_config": {}}, operator_config(), operator_config(**{"gate.z_out": {}})):
        config = BitwidthConfig.from_mapping(mapping)
        assert set(config.operators) == set(NAMES)
        assert set(config.operators.values()) == {OperatorConfig(8, True, False)}
        assert config.disable_quantization is False


def test_the_optional_operator_is_there_only_when_it_is_configured() -> None:
    assert "op.Rh_add_br" not in BitwidthConfig.from_mapping({}).operators
    config = BitwidthConfig.from_mapping(operator_config(**{"op.Rh_add_br": {"bitwidth": 12}}))
    assert config.operators["op.Rh_add_br"] == OperatorConfig(12)
    assert BitwidthConfig.from_mapping(config.to_mapping()) == config


def test_the_alias_is_read_and_may_repeat_but_not_contradict() -> None:
    alias = BitwidthConfig.from_mapping(operator_config(**{"input.h": {"bitwidth": 11}}))
    assert alias.operators["output.h"] == OperatorConfig(11) and "input.h" not in alias.operators
    same = {"input.h": {"bitwidth": 11, "comment": "a"}, "output.h": {"bitwidth": 11, "is_symmetric": True}}
    assert BitwidthConfig.from_mapping(operator_config(**same)) == alias
    with pytest.raises(ValueError, match=r"output\.h.*input\.h|input\.h.*output\.h"):
        BitwidthConfig.from_mapping(operator_config(**{"input.h": {"bitwidth": 11}, "output.h": {"bitwidth": 12}}))


@pytest.mark.parametrize("alias", [{"input": {"h": {"bitwidth": 11}}}, {"input.h": {"bitwidth": 11}}])
def test_the_alias_is_read_nested_too(alias: dict) -> None:
    assert BitwidthConfig.from_mapping({"operator_config": alias}).operators["output.h"] == OperatorConfig(11)


@pytest.mark.parametrize(
    ("operators", "named"),
    [
        ({"gate.z_otu": {"bitwidth": 8}}, ["gate.z_otu", "gate.z_out"]),
        ({"gate": {"z_otu": {"bitwidth": 8}}}, ["z_otu", "gate.z_out"]),
        ({"update_gate_output": {"bitwidth": 8}}, ["update_gate_output", "gate.z_out"]),
        ({"gate.z_out": {"bitwidth": 0}}, ["gate.z_out", "bitwidth", "0", "1", "32"]),
        ({"gate.z_out": {"bitwidth": 33}}, ["gate.z_out", "bitwidth", "33", "32"]),
        ({"gate": {"z_out": {"bitwidth": 40}}}, ["gate.z_out", "bitwidth", "40"]),
        ({"gate.z_out": {"bitwidth": "banana"}}, ["gate.z_out", "bitwidth", "banana"]),
        ({"gate.z_out": {"bitwidth": 7.5}}, ["gate.z_out", "bitwidth", "7.5"]),
        ({"gate.z_out": {"bitwidth": True}}, ["gate.z_out", "bitwidth", "True"]),
        ({"gate.z_out": {"bitwidth": None}}, ["gate.z_out", "bitwidth", "None"]),
        ({"gate.z_out": {"is_symmetric": "maybe"}}, ["gate.z_out", "is_symmetric", "maybe"]),
        ({"gate.z_out": {"is_unsigned": 1}}, ["gate.z_out", "is_unsigned", "1"]),
        ({"gate.z_out": {"bitwith": 8}}, ["gate.z_out", "bitwith"]),
        ({"gate.z_out": 8}, ["gate.z_out", "8"]),
        ({"gate.z_out": [8]}, ["gate.z_out"]),
        ({"weight.W": {"is_symmetric": False}}, ["weight.W", "is_symmetric"]),
        ({"weight.R": {"is_symmetric": False}}, ["weight.R", "is_symmetric"]),
        ({"weight": {"bw": {"is_symmetric": False}}}, ["weight.bw", "is_symmetric"]),
        ({"weight.br": {"is_symmetric": False}}, ["weight.br", "is_symmetric"]),
    ],
)
def test_a_bad_operator_is_named(operators: dict, named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"GRU_config": {"operator_config": operators}}))
    for source in ({"operator_config": operators}, {"GRU_config": {"operator_config": operators}}, path):
        with pytest.raises(ValueError) as error:
            load_config(source)
        assert all(part in str(error.value) for part in named), error.value
    assert path.name in str(error.value)


def test_all_flat_names_are_mapped_in_the_error() -> None:
    with pytest.raises(ValueError) as error:
        canonical_name("update_gate_output")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"GRU_config": 3}, "GRU_config is 3"),
        ({"GRU_config": {"operator_config": [1]}}, "operator_config is .1."),
        ({"GRU_config": {"default_config": {"disable_quantization": "no"}}}, "disable_quantization is 'no'"),
        ({"GRU_config": {"defaultconfig": {}}}, "GRU_config holds 'defaultconfig'"),
        ({"operator_configs": {}}, "holds 'operator_configs'"),
        ({"GRU_config": {"default_config": {"bitwidth": 8}}}, "default_config holds 'bitwidth'"),
    ],
)
def test_a_section_of_another_form_is_refused(mapping: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config(mapping)


@pytest.mark.parametrize(
    "content", ["", "{", '{"GRU_config": {"operator_config": {"gate.z_out": {"bitw', "[]", "3", "null", "nope"]
)
def test_a_truncated_or_foreign_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        load_config(path)


def test_a_file_beats_a_preset_of_its_name_and_a_preset_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = load_config("int16")
    Path("int16").mkdir()
    assert load_config("int16") == preset != BitwidthConfig()
    Path("int16").rmdir()
    BitwidthConfig().to_json("int16")
    assert load_config("int16") == BitwidthConfig()


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    for path in (tmp_path, str(tmp_path)):
        with pytest.raises(ValueError, match=f"{tmp_path}: is a folder"):
            load_config(path)


@pytest.mark.parametrize("value", ["x" * 10**6, 10**5000, [[0] * 10**5]], ids=("str", "int", "list"))
def test_what_is_echoed_is_cut(value: object) -> None:
    for mapping in (
        {"operator_config": {"gate.z_out": {"bitwidth": value}}},
        {"operator_config": {"gate.z_out": {"is_symmetric": value}}},
        {"operator_config": {"gate.z_out": value}},
        {"operator_config": {str("x" * 10**6): {}}},
        {"default_config": {"disable_quantization": value}},
        {"default_config": value},
        {"GRU_config": value},
    ):
        with pytest.raises(ValueError) as error:
            load_config(mapping)
        assert len(str(error.value)) < 600
    if isinstance(value, str):
        with pytest.raises(FileNotFoundError) as missing:
            load_config(value)
        assert len(str(missing.value)) < 300


def test_a_missing_file_and_a_preset_that_is_none_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_config("nowhere.json")
    with pytest.raises(FileNotFoundError, match="int8_mixd.*int8_mixed"):
        load_config("int8_mixd")
    with pytest.raises(TypeError, match="3"):
        load_config(3)  # type: ignore[arg-type]


def test_configurations_are_frozen_values() -> None:
    config = BitwidthConfig.from_mapping(SEED_FILE)
    with pytest.raises(AttributeError):
        config.disable_quantization = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.operators["input.x"] = OperatorConfig(4)  # type: ignore[index]
    assert hash(config) == hash(BitwidthConfig.from_mapping(SEED_FILE))
