"""Early stopping and checkpoint selection across the stages: float scores are better, and must not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, fit


def scored(*scores: float, package: Any = lightning.pytorch) -> Any:
    """A model that logs a score from a list, one a validation."""

    class Scored(MODELS[package]):
        def __init__(self) -> None:
            super().__init__()
            self.scores = list(scores)
            self.epochs: list[bool] = []

        def on_train_epoch_end(self) -> None:
            self.epochs.append(self.gru.use_quantization)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.log("val_loss", torch.tensor(self.scores.pop(0)))

    return Scored()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_is_the_best_quantized(tmp_path: Path, package: Any, mode: str) -> None:
    scores = [0.1, 0.2, 0.9, 0.5, 0.7]
    scores = scores if mode == "min" else [1 - score for score in scores]
    checkpoint = package.callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", mode=mode, save_top_k=2)
    fit(
        tmp_path,
        QuantizationLifecycle(calibrate_at_epoch=2),
        checkpoint,
        model=scored(*scores, package=package),
        max_epochs=5,
    )
    assert checkpoint.best_model_path == str(tmp_path / "epoch=3.ckpt")
    assert checkpoint.best_model_score.item() == pytest.approx(scores[3])
    assert sorted(Path(path).name for path in checkpoint.best_k_models) == ["epoch=3.ckpt", "epoch=4.ckpt"]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"epoch={i}.ckpt" for i in (0, 1, 3, 4)]


def test_early_stop_of_the_float_stage_moves_on(tmp_path: Path, package: Any) -> None:
    stopping = package.callbacks.EarlyStopping("val_loss", patience=2)
    model = scored(0.1, 0.2, 0.3, *[0.9, 0.8, 0.85, 0.86], 0.0, package=package)
    fit(tmp_path, stopping, QuantizationLifecycle(calibrate_at_epoch=8), model=model, max_epochs=20)
    assert model.epochs == [False] * 3 + [True] * 4
    assert stopping.best_score.item() == pytest.approx(0.8) and stopping.stopped_epoch == 6


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_early_stop_within_an_epoch(tmp_path: Path, first: bool) -> None:
    stopping, lifecycle = EarlyStopping("val_loss", patience=1), QuantizationLifecycle(calibrate_at_epoch=8)
    callbacks = (stopping, lifecycle) if first else (lifecycle, stopping)
    model = scored(0.1, 0.2, *[0.9 - i / 100 for i in range(20)])
    fit(tmp_path, *callbacks, model=model, max_epochs=3, val_check_interval=2)
    assert model.epochs == [False, True, True]


def test_early_stop_waits_for_min_epochs(tmp_path: Path) -> None:
    model = scored(*[0.1] * 20)
    callbacks = EarlyStopping("val_loss", patience=1), QuantizationLifecycle(calibrate_at_epoch=8)
    fit(tmp_path, *callbacks, model=model, max_epochs=5, min_epochs=3)
    assert model.epochs == [False] * 3 + [True] * 2


def test_early_stop_in_the_last_epoch(tmp_path: Path) -> None:
    """No epoch is left to train: the fit ends with its last float weights, calibrated."""
    model, stopping = scored(0.1, 0.2), EarlyStopping("val_loss", patience=1)
    with pytest.warns(UserWarning, match="ended before quantization-aware training"):
        fit(tmp_path, stopping, QuantizationLifecycle(calibrate_at_epoch=9), model=model, max_epochs=2)
    assert model.epochs == [False, False] and model.gru.is_calibrated() and model.gru.use_quantization


def test_divergence_ends_the_fit(tmp_path: Path, package: Any) -> None:
    model, files = scored(0.1, float("nan"), package=package), tmp_path / "files"
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=4, export_dir=str(files))
    with pytest.warns(UserWarning, match="diverged; nothing was quantized"):
        fit(tmp_path, package.callbacks.EarlyStopping("val_loss"), lifecycle, model=model, max_epochs=8)
    assert model.epochs == [False, False] and not model.gru.is_calibrated() and not files.exists()


def test_other_stops_are_obeyed(tmp_path: Path) -> None:
    """`Timer` and users set `should_stop`, too; such a fit ends there, calibrated."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    model = scored(*[0.1] * 9)
    with pytest.warns(UserWarning, match="ended before quantization-aware training"):
        fit(tmp_path, EarlyStopping("val_loss"), Stop(), QuantizationLifecycle(calibrate_at_epoch=3), model=model)
    assert model.epochs == [False, False] and len(model.losses) == 5 and model.gru.is_calibrated()


def test_stale_float_score_does_not_count(tmp_path: Path, package: Any) -> None:
    """A step-wise checkpoint in the first quantized epoch still sees the float stage's last score."""
    checkpoint = package.callbacks.ModelCheckpoint(
        tmp_path, "{step}", monitor="val_loss", every_n_train_steps=1, save_top_k=1
    )
    fit(
        tmp_path,
        QuantizationLifecycle(calibrate_at_epoch=1),
        checkpoint,
        model=scored(0.1, 0.9, 0.8, package=package),
        max_epochs=3,
    )
    assert checkpoint.best_model_score.item() == pytest.approx(0.9)


def test_checkpoint_without_a_monitor_is_left_alone(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}")
    fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), checkpoint, max_epochs=3)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=2.ckpt"]
