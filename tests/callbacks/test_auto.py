"""`QuantizationLifecycle("auto")`: bit widths that a search finds at calibration, and the rules of a target."""

from __future__ import annotations

import copy
import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import qgru
from qgru import load_config
from qgru.callbacks import QuantizationLifecycle, auto
from qgru.search import load_rules, relative_cost
from qgru.search.sensitivity import SEARCHED

from . import ddp_run
from .models import Model, assert_same, fit, loader, state, trainer
from .test_resume import Kill, Killed, run

ROOT = Path(__file__).parents[2]
TARGET = {"widths": {"default": [4, 8]}}


def lifecycle(**arguments: Any) -> QuantizationLifecycle:
    settings = {"budget": 0.8, "target": TARGET, "calibrate_at_epoch": 1, "calibration_batches": 3, **arguments}
    return QuantizationLifecycle("auto", **settings)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, QuantizationLifecycle, Path]:
    """A fit of two points, and its files."""
    folder = tmp_path_factory.mktemp("auto")
    callback = lifecycle(export_dir=str(folder / "files"), points=2)
    return fit(folder, callback, max_epochs=2), callback, folder / "files"


def test_what_is_found_is_trained_and_meets_the_budget(searched: Any) -> None:
    model, callback, files = searched
    chosen = callback.bit_widths.found.chosen[0]
    assert model.gru.bitwidth_config == chosen.config != load_config("int8")
    assert relative_cost(model) == chosen.cost <= 0.8
    assert load_rules(TARGET).violations(chosen.config) == []
    assert load_config(files / "bitwidth_config.json") == chosen.config


def test_the_search_leaves_no_trace(searched: Any, tmp_path: Path) -> None:
    """The fit ends with the integers and the losses of one that was given what was found; it has dropout."""
    model, _, files = searched
    given = QuantizationLifecycle(str(files / "found.yaml"), calibrate_at_epoch=1, calibration_batches=3)
    other = fit(tmp_path, given, max_epochs=2)
    assert other.losses == model.losses
    assert_same(state(other), state(model))


def test_the_files_of_a_search(searched: Any) -> None:
    _, callback, files = searched
    found = callback.bit_widths.found
    for number, point in enumerate(found.chosen, start=1):
        assert load_config(files / "points" / str(number) / "found.yaml") == point.config
    lines = (files / "found.yaml").read_text().splitlines()
    assert sum("bitwidth: " in line and " # " in line for line in lines) == len(SEARCHED)
    rows, errors = (list(csv.DictReader((files / name).open())) for name in ("search.csv", "sensitivity.csv"))
    assert [float(row["cost"]) for row in rows] == sorted(point.cost for point in found.measured)
    assert [row["chosen"] for row in rows if row["chosen"]] == ["2", "1"], "the dearest is the first"
    assert {row["preset"] for row in rows if row["preset"]} >= {"int8", "w4a8"}
    by_widths = {tuple(row[name] for name in SEARCHED): row for row in rows}
    int8 = by_widths[("8",) * len(SEARCHED)]
    assert (int8["preset"], float(int8["cost"])) == ("int8", 1.0)
    assert float(int8["measured"]) == found.presets["int8"].measured
    assert sum(row["on_front"] == "True" for row in rows) == len(found.front)
    assert len(errors) == 2 * len(SEARCHED) and {row["width"] for row in errors} == {"4", "8"}


def test_one_point_needs_no_folder_of_points(tmp_path: Path) -> None:
    fit(tmp_path, lifecycle(export_dir=str(tmp_path / "files"), calibrate_at_epoch=0), max_epochs=1)
    assert (tmp_path / "files" / "found.yaml").is_file() and not (tmp_path / "files" / "points").exists()


def test_files_that_cant_be_written_cost_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(auto, "write_found", full)
    with pytest.warns(UserWarning, match="was not written.*no space left"):
        model = fit(tmp_path, lifecycle(export_dir=str(tmp_path / "files"), calibrate_at_epoch=0), max_epochs=1)
    assert model.gru.is_calibrated()


@pytest.mark.parametrize(("killed_at", "searches"), [((1, 2), 1), ((3, 1), 0)], ids=["before", "after"])
def test_a_resumed_fit_searches_only_where_it_has_not(
    tmp_path: Path, killed_at: tuple[int, int], searches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    original = auto.search
    monkeypatch.setattr(auto, "search", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    arguments = {"config": "auto", "budget": 0.8, "target": TARGET}
    whole = run(tmp_path / "whole", lifecycle=arguments)
    with pytest.raises(Killed):
        run(tmp_path / "killed", Kill(*killed_at), lifecycle=arguments)
    calls.clear()
    resumed = run(tmp_path / "killed", ckpt_path="last", lifecycle=arguments)
    assert len(calls) == searches
    assert_same(state(resumed), state(whole))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": -1}, "budget is -1; expected a finite number above 0"),
        ({"budget": "cheap"}, "budget is 'cheap'; expected a finite"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": True}, "budget is True"),
        ({"max_error": 0.0}, r"max_error is 0\.0; expected a finite number above 0"),
        ({"points": 0}, "points is 0; expected an integer of 1 or more"),
        ({"points": 2.0}, r"points is 2\.0"),
        ({"points": 2, "max_error": 0.1}, r"max_error is 0\.1 and points is 2; expected one"),
        ({"logits": 1}, "logits is 1; expected true or false"),
        ({"target": "npu_9x9"}, "npu_9x9.*npu_8x8"),
        ({"target": {"width": 8}}, "'width'"),
        ({"config": "int8", "budget": 0.8}, "budget is for a search, and config is 'int8'; expected 'auto'"),
        ({"config": {}, "points": 2, "budget": 1}, "budget and points is for a search, and config is {}"),
    ],
)
def test_bad_arguments_fail_in_the_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        QuantizationLifecycle(**{"config": "auto", **arguments})


def test_a_budget_that_no_width_meets_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(MisconfigurationException, match=r"a budget of 0\.3 can't be met.*the least cost is 0\.\d+"):
        fit(tmp_path, lifecycle(budget=0.3), model=model)
    assert not model.losses


def test_a_preset_that_breaks_the_targets_rules_is_refused_naming_operators(tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(MisconfigurationException, match=r"(?s)target does not take.*gate.g_pre has 10 bits") as error:
        fit(tmp_path, QuantizationLifecycle("int8_mixed", target=TARGET), model=model)
    assert "matmul.Wx" in str(error.value) and "weight.W" not in str(error.value)
    assert not model.losses


def test_a_preset_that_keeps_the_rules_goes_on(tmp_path: Path) -> None:
    plain = fit(tmp_path, QuantizationLifecycle("int8"), max_epochs=2)
    ruled = fit(tmp_path, QuantizationLifecycle("int8", target=TARGET), max_epochs=2)
    assert_same(state(ruled), state(plain))


def test_an_error_that_cant_be_met_is_a_warning_after_the_float_stage(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"an error of 1e-09 can't be .*least error within the budget"):
        model = fit(tmp_path, lifecycle(max_error=1e-9, calibrate_at_epoch=0), max_epochs=1)
    assert model.gru.is_calibrated() and relative_cost(model) <= 0.8


def test_an_error_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    callback = lifecycle(max_error=10.0, calibrate_at_epoch=0, budget=1.0)
    fit(tmp_path, callback, max_epochs=1)
    (chosen,) = callback.bit_widths.found.chosen
    assert chosen.measured <= 10.0 and chosen.cost < 0.8


def test_a_training_step_is_compared_by_what_forward_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Any] = []
    original = auto.search

    def search(module: Model, batches: list[Any], **kwargs: Any) -> Any:
        with torch.no_grad():
            module.eval()
            outputs.extend((kwargs["forward_fn"](module, batches[0]), module(batches[0][0])))
            module.train()
        return original(module, batches, **kwargs)

    monkeypatch.setattr(auto, "search", search)
    callback = lifecycle(forward_fn=lambda module, batch: module.training_step(batch, 0), calibrate_at_epoch=0)
    model = fit(tmp_path, callback, max_epochs=1)
    (seen,), expected = outputs
    assert seen.shape == (6, 1) and torch.equal(seen, expected)
    assert not model._forward_hooks


def test_a_call_past_forward_is_compared_by_what_it_returns(tmp_path: Path) -> None:
    callback = lifecycle(forward_fn=lambda module, batch: module.gru(batch[0]), calibrate_at_epoch=0)
    assert fit(tmp_path, callback, max_epochs=1).gru.is_calibrated()


def test_a_call_that_returns_nothing_to_compare_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def forward(module: Model, batch: Any) -> None:
        module.gru(batch[0])

    model = Model()
    with pytest.raises(RuntimeError, match="neither calls Model itself nor returns a floating tensor"):
        fit(tmp_path, lifecycle(forward_fn=forward), model=model)
    assert not model.losses


@pytest.mark.parametrize(
    "settings",
    [{"enable_progress_bar": True}, {"fast_dev_run": True}, {"precision": "bf16-mixed"}, {"precision": "64-true"}],
)
def test_other_trainers(tmp_path: Path, settings: dict[str, Any]) -> None:
    callback = lifecycle(calibrate_at_epoch=0)
    model = fit(tmp_path, callback, **{"max_epochs": 1, **settings})
    assert model.gru.bitwidth_config == callback.bit_widths.found.chosen[0].config


def test_without_training_the_weights_errors_are_not_discounted(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[bool] = []
    original = auto.search
    monkeypatch.setattr(auto, "search", lambda *a, **given: asked.append(given["qat"]) or original(*a, **given))
    model = fit(tmp_path, lifecycle(qat=False), max_epochs=1)
    assert asked == [False] and relative_cost(model) <= 0.8


def test_it_is_pickled_as_its_arguments(searched: Any) -> None:
    _, callback, _ = searched
    buffer = io.BytesIO()
    torch.save(callback, buffer)
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=True), copy.deepcopy(callback)):
        assert other.bit_widths.is_searched and other.bit_widths.found is None
        assert other.bit_widths._budget == 0.8 and other.bit_widths.target.rules == load_rules(TARGET)


def test_the_second_fit_keeps_what_the_first_found(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    callback = lifecycle(calibrate_at_epoch=0)
    model = fit(tmp_path, callback, max_epochs=1)
    found = model.gru.bitwidth_config
    fit(tmp_path, callback, model=model, max_epochs=1)
    assert model.gru.bitwidth_config == found
    assert not any("keeps its grids" in str(warning.message) for warning in recwarn)


def test_layers_of_which_one_is_calibrated_are_refused(tmp_path: Path) -> None:
    class Two(Model):
        def __init__(self) -> None:
            super().__init__()
            self.second = torch.nn.GRU(3, 2, batch_first=True)

    model = qgru.convert(Two())
    model.second.calibrating = True
    model.second(torch.randn(2, 3, 3))
    model.second.calibrating = False
    model.second.finalize_calibration()
    with pytest.raises(MisconfigurationException, match="second is calibrated and other layers are not"):
        trainer(tmp_path, lifecycle()).fit(model, loader())


@pytest.mark.slow
def test_ranks_end_with_the_configuration_of_rank_zero(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CONFIG": "auto"}
    command = [sys.executable, "-W", "ignore", ddp_run.__file__, "2", str(tmp_path)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt")["buffers"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    widths = {config.bitwidth for config in load_config(tmp_path / "files" / "found.yaml").operators.values()}
    assert widths == {4, 8} == set(first["quant_grids"][0, :-1, 0].tolist())
