"""`+quant=auto`: composed, refused, run, with several points, and as a sweep over budgets."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qgru import load_config
from qgru.hydra.files import check_overrides
from qgru.report import read_rows
from qgru.search import load_rules
from tests.report.toy import ToyModel

from .test_presets import CONF, composed
from .test_train import TOY, run

AUTO = ["+quant=auto", "+target=toy", "quant.budget=0.8"]
TARGETS = sorted(path.stem for path in (CONF / "target").glob("*.yaml"))


def test_the_flag_reaches_the_lifecycle():
    cfg = composed("+quant=auto", "quant.budget=0.8", "quant.points=5", "recipe=mackey_glass")
    lifecycle = OmegaConf.to_container(cfg.callbacks.quantization, resolve=False)
    assert {lifecycle["config"], lifecycle["budget"]} == {"auto", "${quant.budget}"}
    asked = {key: cfg.callbacks.quantization[key] for key in ("budget", "max_error", "points", "logits")}
    assert asked == {"budget": 0.8, "max_error": None, "points": 5, "logits": False}
    assert (CONF / "quant" / "auto.yaml").read_text().splitlines()[1].endswith("+quant=auto")


def test_a_recipe_says_whether_its_outputs_are_logits():
    recipes = {"speaker_identification": True, "sea_surface_temperature": False}
    assert {name: composed("+quant=auto", f"recipe={name}").quant.logits for name in recipes} == recipes
    assert composed("+quant=int8", "recipe=speaker_identification").callbacks.quantization.logits
    assert not composed("+quant=auto", "quant.logits=false").callbacks.quantization.logits


@pytest.mark.parametrize("override", ["budget=banana", "max_error=small", "points=2.5", "logits=perhaps"])
def test_a_wrong_type_fails_at_composition_naming_it(override):
    with pytest.raises(ConfigCompositionException, match=f"quant.{override.split('=')[0]}"):
        composed("+quant=auto", f"quant.{override}")


def test_a_budget_out_of_range_fails_in_the_constructor_naming_it():
    cfg = composed("+quant=auto", "quant.budget=-1", "callbacks.quantization.export_dir=null")
    with pytest.raises(Exception, match=r"budget is -1\.0; expected a finite number above 0"):
        instantiate(cfg.callbacks.quantization)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("preset", ["auto", "int8"])
def test_a_target_reaches_the_lifecycle_wherever_it_stands(preset, target):
    for order in ([f"+quant={preset}", f"+target={target}"], [f"+target={target}", f"+quant={preset}"]):
        cfg = composed(*order, "callbacks.quantization.export_dir=null")
        lifecycle = instantiate(cfg.callbacks.quantization)
        rules, expected = lifecycle.bit_widths.target.rules, load_rules(target)
        assert (rules.widths, rules.products, rules.max_table_bits) == (
            *(expected.widths, expected.products, expected.max_table_bits),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+quant=auto", "quant.bugdet=1"], "no 'bugdet' in quant; expected quant.budget or quant.max_error or "),
        (["+quant=auto", "quant.operator_config.gate.z_out.bitwidth=4"], "no 'operator_config' in quant; expected qua"),
        (["+quant=int8", "quant.budget=1"], "no 'budget' in quant; expected quant.operator_config.<operator>.<field>"),
        (["+quant=a/found.yaml", "quant.operator_config.gate.z_owt.bitwidth=4"], "the nearest is 'gate.z_out'"),
    ],
)
def test_a_wrong_key_lists_those_that_there_are(arguments, message):
    with pytest.raises(ConfigCompositionException, match=re.escape(message)):
        check_overrides(arguments, CONF)


def test_a_search_and_a_preset_may_stand_in_one_sweep():
    check_overrides(["-m", "+quant=auto,int8", "quant.budget=1", "quant.operator_config.gate.z_out.bitwidth=4"], CONF)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+quant=auto", "+target=toy", "quant.budget=0.2"], "a budget of 0.2 can't be met"),
        (["+quant=int8_mixed", "+target=toy"], "matmul.Wx has 16 bits; the target takes 4, 8"),
        (["+target=toy"], "+target is what a chip takes, and nothing is quantized"),
    ],
)
def test_what_cant_be_met_is_refused_before_training(monkeypatch, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, *TOY, *arguments, f"hydra.run.dir={tmp_path}")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """The folder of a run with two points: two epochs of six steps in float, and one of each point."""
    folder, steps, step = tmp_path_factory.mktemp("points"), [], ToyModel.training_step
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ToyModel, "training_step", lambda *given: steps.append(0) or step(*given))
        run(monkeypatch, *TOY, *AUTO, "quant.points=2", "trainer.max_epochs=3", f"hydra.run.dir={folder}")
    assert len(steps) == (2 + 1 + 1) * 6
    return folder


def test_every_point_is_a_run_of_its_own(points):
    assert {path.name for path in (points / "points").iterdir()} == {"1", "2"}
    with (points / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    stages = ("majority", "float", "ptq", "qat", "onnx")
    assert [(row["point"], row["stage"]) for row in rows] == [
        *(("1", stage) for stage in stages),
        *(("2", stage) for stage in stages[2:]),
    ]
    own = [read_rows(folder / "results.csv") for folder in (points, points / "points" / "2")]
    assert own[0][:2] == own[1][:2]
    assert [float(row["value"]) for row in rows] == [row.value for row in (*own[0], *own[1][2:])]
    costs = [rows_of_point[-1].cost for rows_of_point in own]
    assert 0.8 >= costs[0] > costs[1]
    for path, cost in zip((points, points / "points" / "2"), costs, strict=True):
        assert f"cost {cost:.3g} " in (path / "found.yaml").read_text()
        assert load_config(path / "found.yaml") == load_config(path / "bitwidth_config.json")
        assert (path / "model_qdq.onnx").is_file() and (path / "checkpoints" / "last.ckpt").is_file()
    assert (points / "points.png").is_file() and (points / "search-front.png").is_file()


def test_a_found_file_is_a_preset_and_its_run_ends_with_the_points_integers(points, monkeypatch, tmp_path):
    """What shares a float stage is what trained its own; a YAML file is a choice of the group."""
    preset = points / "points" / "2" / "found.yaml"
    run(monkeypatch, *TOY, f"+quant={preset}", "trainer.max_epochs=3", f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "quant_params.json").read_text() == (preset.parent / "quant_params.json").read_text()
    assert read_rows(tmp_path / "results.csv") == read_rows(preset.parent / "results.csv")


def test_a_run_in_the_same_folder_leaves_no_float_stage_of_another(monkeypatch, tmp_path):
    (tmp_path / "float_stage.ckpt").write_text("of another run")
    short = ["callbacks.quantization.calibrate_at_epoch=0", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}"]
    run(monkeypatch, *TOY, *AUTO, "quant.points=2", *short)
    assert not (tmp_path / "float_stage.ckpt").exists()
    assert (tmp_path / "points" / "2" / "results.csv").is_file()


def test_points_of_a_run_that_begins_with_a_checkpoint_begin_with_it(monkeypatch, tmp_path):
    run(monkeypatch, *TOY, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/float")
    checkpoint = tmp_path / "float" / "checkpoints" / "last.ckpt"
    settings = ["callbacks.quantization.calibrate_at_epoch=1", "trainer.max_epochs=2", f"ckpt_path={checkpoint}"]
    run(monkeypatch, *TOY, *AUTO, "quant.points=2", *settings, f"hydra.run.dir={tmp_path}/points")
    assert (tmp_path / "points" / "float_stage.ckpt").read_bytes() == checkpoint.read_bytes()
    own, other = (read_rows(tmp_path / name / "results.csv") for name in ("points", "points/points/2"))
    assert own[:2] == other[:2] and own[1].value == read_rows(tmp_path / "float" / "results.csv")[1].value


def test_a_run_that_is_resumed_elsewhere_says_that_it_has_no_points(monkeypatch, tmp_path):
    short = ["callbacks.quantization.calibrate_at_epoch=0", "trainer.max_epochs=1"]
    run(monkeypatch, *TOY, *AUTO, *short, f"hydra.run.dir={tmp_path}/one")
    resume = [f"ckpt_path={tmp_path}/one/checkpoints/last.ckpt", f"hydra.run.dir={tmp_path}/other"]
    with pytest.warns(UserWarning, match="holds no search.csv, so no other points are trained"):
        run(monkeypatch, *TOY, *AUTO, "quant.points=2", *short, *resume)


def test_a_sweep_over_budgets_gathers_costs_and_draws_the_front(monkeypatch, tmp_path, capsys):
    run(monkeypatch, *TOY, *AUTO[:2], "quant.budget=0.7,1.0", f"hydra.sweep.dir={tmp_path}", "--multirun")
    with (tmp_path / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "onnx"]
    assert [row["quant.budget"] for row in rows] == ["0.7", "1.0"]
    assert all(float(row["cost"]) <= float(row["quant.budget"]) for row in rows)
    assert float(rows[0]["cost"]) < float(rows[1]["cost"])
    table = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        (line,) = [cells for cells in table if cells[:2] == [row["quant.budget"], "onnx"]]
        assert f"{float(row['cost']):.3g}" in line
    assert (tmp_path / "front.png").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("quant: {operator_config: {gate: {z_owt: {bitwidth: 4}}}}", "nearest is 'gate.z_out'"),
        ("other: 1", "holds no quant"),
        ("quant: {", "while parsing"),
        ("- 1", "holds no quant"),
    ],
)
def test_a_yaml_file_that_is_no_preset_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_config(tmp_path / "mine.yaml")
    assert str(tmp_path / "mine.yaml") in str(error.value)


def test_a_preset_is_read_by_name_or_by_path():
    assert load_config(CONF / "quant" / "w4a8.yaml") == load_config("w4a8")
    with pytest.raises(ValueError, match="'auto' is no bit widths.*QuantizationLifecycle"):
        load_config("auto")
