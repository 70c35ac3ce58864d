"""The stages in order, and what a float run must not notice of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from qgru import QuantGRU
from qgru.calibration import histogram
from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, Model, assert_same, fit, loader, state, trainer


class Stages(Callback):
    """Records in which epochs the GRU trained quantized."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            gru = pl_module.gru
            self.seen.append(isinstance(gru, QuantGRU) and gru.use_quantization and gru.is_calibrated())


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ({}, {"max_epochs": 10}, [False] * 7 + [True] * 3),
        ({}, {"max_epochs": 2}, [False, True]),
        ({}, {"max_epochs": 1}, [True]),
        ({}, {"max_epochs": -1, "max_steps": 5}, [False, False, False, False, True]),
        ({"calibrate_at_epoch": 0}, {"max_epochs": 2}, [True, True]),
        ({"calibrate_at_epoch": 1}, {"max_epochs": 3}, [False, True, True]),
        ({"qat": False}, {"max_epochs": 2}, [False, False]),
        ({"qat": False, "calibrate_at_epoch": 1}, {"max_epochs": 3}, [False]),
        ({"qat": False, "calibrate_at_epoch": 0}, {"max_epochs": 3}, []),
        ({"calibrate_at_epoch": 9}, {"max_epochs": 2}, [False, False]),
        ({"calibrate_at_epoch": 9}, {"fast_dev_run": True}, [True]),
        ({"qat": False}, {"fast_dev_run": True}, [False]),
    ],
)
def test_when_stages_begin(tmp_path: Path, arguments: dict, settings: dict, expected: list[bool]) -> None:
    stages = Stages()
    model = fit(tmp_path, QuantizationLifecycle(**arguments), stages, **{"limit_train_batches": 1, **settings})
    assert stages.seen == expected
    assert model.gru.is_calibrated() and model.gru.use_quantization


def test_float_stage_is_untouched(tmp_path: Path) -> None:
    plain = fit(tmp_path)
    quantized = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=2))
    assert quantized.losses[:8] == plain.losses[:8]
    assert quantized.losses[8] != plain.losses[8]


def test_calibration_leaves_the_random_stream_alone(tmp_path: Path) -> None:
    """At 32 bits there is no difference to float but rounding; dropout still falls on the same units."""
    plain = fit(tmp_path, max_epochs=2)
    quantized = fit(tmp_path, QuantizationLifecycle(_wide(), calibrate_at_epoch=1, anneal=False), max_epochs=2)
    assert quantized.losses == pytest.approx(plain.losses, rel=1e-3)


def _wide() -> dict[str, Any]:
    from qgru.schema import OPERATORS

    return {"operator_config": {name: {"bitwidth": 20} for name in OPERATORS}}


def test_disabled_quantization_is_the_float_run(tmp_path: Path) -> None:
    plain = fit(tmp_path)
    config = {"default_config": {"disable_quantization": True}}
    model = fit(tmp_path, QuantizationLifecycle(config, calibrate_at_epoch=1, export_dir=str(tmp_path / "files")))
    assert model.losses == plain.losses
    assert not (tmp_path / "files").exists()


def test_same_parameters_are_trained(tmp_path: Path) -> None:
    model = Model()
    before = dict(model.named_parameters())
    fit(tmp_path, QuantizationLifecycle(), model=model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("batches", "limit", "seen"), [(3, 1.0, 3), (32, 1.0, 4), (32, 2, 2)])
def test_only_calibration_batches_are_observed(tmp_path: Path, batches: int, limit: Any, seen: int) -> None:
    """Neither the sanity check, nor training, nor validation adds to the observations."""
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1, calibration_batches=batches)
    model = fit(tmp_path, lifecycle, limit_train_batches=limit)
    assert int(histogram(model.gru, "x")[1].sum()) == seen * 6 * 6 * 3


def test_second_fit_does_not_calibrate_again(tmp_path: Path) -> None:
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), max_epochs=2)
    grids = model.gru.grids()
    stages = Stages()
    with pytest.warns(UserWarning, match="gru is calibrated and keeps its grids"):
        fit(tmp_path, QuantizationLifecycle("int16", calibrate_at_epoch=1), stages, model=model, max_epochs=2)
    assert stages.seen == [True, True]
    activations = [name for name in grids if not name.startswith("weight")]
    assert {name: model.gru.grids()[name] for name in activations} == {name: grids[name] for name in activations}


def test_weight_grids_follow_the_weights(tmp_path: Path) -> None:
    """Weights that grow sixteenfold in QAT are not clipped at the next epoch."""

    class Grow(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.gru.weight_ih_l0.mul_(16)

    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), Grow(), max_epochs=2, limit_train_batches=1)
    exponents = model.gru.grids()["weight.W"].exponents
    once = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), max_epochs=1, limit_train_batches=1)
    assert all(
        old - new in (3, 4, 5) for old, new in zip(once.gru.grids()["weight.W"].exponents, exponents, strict=True)
    )


def test_nothing_is_left_behind(tmp_path: Path, package: Any) -> None:
    for fails in (False, True):
        model, stopping = MODELS[package](), package.callbacks.EarlyStopping("val_loss")
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=2, export_dir=str(tmp_path / "files"))
        if fails:
            model.on_train_epoch_end = _fail
            with pytest.raises(KeyError, match="fails"):
                fit(tmp_path, lifecycle, stopping, model=model)
        else:
            fit(tmp_path, lifecycle, stopping, model=model)
        assert not model._forward_pre_hooks and not model._load_state_dict_pre_hooks
        assert not {"on_train_epoch_end", "on_validation_end"} & set(vars(stopping))
        assert not model.gru.calibrating and "forward" not in vars(model)


def _fail() -> None:
    raise KeyError("fails")


def test_best_checkpoint_is_tested_quantized(tmp_path: Path, package: Any) -> None:
    checkpoint = package.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss")
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=2), checkpoint, model=MODELS[package])
    fresh, runner = MODELS[package](), trainer(tmp_path, QuantizationLifecycle(), package=package)
    runner.test(fresh, loader(12, seed=8), ckpt_path=checkpoint.best_model_path, verbose=False)
    assert fresh.gru.use_quantization and fresh.gru.is_calibrated()
    assert runner.callback_metrics["val_loss"].item() == pytest.approx(checkpoint.best_model_score.item(), abs=1e-7)
    last = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    assert model.gru.is_calibrated()
    assert_same(state(fresh), last)
