"""Weight averaging averages weights, never the integer state, and what is exported is what the fit ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from qgru.callbacks import Export, QuantizationLifecycle

from .models import MODELS, Model, calibrated, fit


class Scores(Callback):
    """Records, for every validation, whether the weights in the module are scored quantized."""

    def __init__(self) -> None:
        self.quantized: list[bool] = []

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not trainer.sanity_checking and args[1] == 0:
            flags = pl_module.gru.quant_flags.tolist()
            self.quantized.append(bool(flags[0] and flags[2]))


def test_averaging_buffers_is_refused(tmp_path: Path, package: Any) -> None:
    model = MODELS[package]()
    with pytest.raises(
        package.utilities.exceptions.MisconfigurationException,
        match=r"expected EMAWeightAveraging\(use_buffers=False\)",
    ):
        fit(tmp_path, QuantizationLifecycle(), package.callbacks.EMAWeightAveraging(), model=model)
    assert type(model.gru) is nn.GRU


def test_copy_made_before_conversion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="list the quantization callback before WeightAveraging"):
        fit(tmp_path, WeightAveraging(use_buffers=False), QuantizationLifecycle())


def test_average_is_scored_and_exported_quantized(tmp_path: Path) -> None:
    """Also where the average is updated so seldom that it would still be the float model's."""
    averaging, scores = EMAWeightAveraging(use_buffers=False, update_every_n_steps=3, decay=0.5), Scores()
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=2, export_dir=str(tmp_path))
    model = fit(tmp_path, lifecycle, averaging, scores, limit_train_batches=2)
    assert scores.quantized == [False, False, True, True]
    exported = torch.load(tmp_path / "qat.ckpt", weights_only=True)["state_dict"]
    last = torch.load(tmp_path / "ptq.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(exported["gru.weight_hh_l0"], model.gru.weight_hh_l0)  # Lightning leaves the average there
    assert not torch.equal(exported["gru.weight_hh_l0"], last["gru.weight_hh_l0"])
    assert model.gru.is_calibrated() and exported["gru.quant_flags"].tolist() == [1, 0, 1]


def assert_exported(folder: Path, model: Any) -> None:
    """The exported integers are the module's weights, rounded by hand."""
    assert model.gru.is_calibrated() and model.gru.use_quantization
    operators = json.loads((folder / "quant_params.json").read_text())["operators"]
    for name, parameter in (("W", "weight_ih_l0"), ("R", "weight_hh_l0"), ("bw", "bias_ih_l0"), ("br", "bias_hh_l0")):
        scale = torch.tensor([2.0**n for n in operators[name]["n"]], dtype=torch.float64)
        weight = getattr(model.gru, parameter).detach().double()
        integers = (weight * scale.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-128, 127)
        assert integers.flatten().tolist() == torch.tensor(operators[name]["quantized_weights"]).flatten().tolist(), (
            name
        )


class Normalized(Model):
    """Lightning trains one epoch more, of its running statistics alone, on averaged weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(5), self.head)


STAGES = {"QAT": {"calibrate_at_epoch": 2}, "no QAT": {"qat": False}, "too late": {"calibrate_at_epoch": 9}}


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize("stages", STAGES)
def test_swa(tmp_path: Path, package: Any, first: bool, stages: str) -> None:
    """Lightning's older callback averages parameters alone, and works in either order."""
    averaging = package.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=2)
    callbacks = [averaging, QuantizationLifecycle(export_dir=str(tmp_path / "files"), **STAGES[stages])]
    model = fit(tmp_path, *(callbacks if first else callbacks[::-1]), model=MODELS[package])
    assert_exported(tmp_path / "files", model)


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_swa_with_batch_normalization(tmp_path: Path, first: bool) -> None:
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=2)
    callbacks = [averaging, QuantizationLifecycle(calibrate_at_epoch=2, export_dir=str(tmp_path / "files"))]
    model = fit(tmp_path, *(callbacks if first else callbacks[::-1]), model=Normalized)
    assert_exported(tmp_path / "files", model)


@pytest.mark.parametrize("stages", STAGES)
def test_averaged_weights(tmp_path: Path, package: Any, stages: str) -> None:
    averaging = package.callbacks.EMAWeightAveraging(use_buffers=False, decay=0.5)
    lifecycle = QuantizationLifecycle(export_dir=str(tmp_path / "files"), **STAGES[stages])
    model = fit(tmp_path, lifecycle, averaging, model=MODELS[package])
    assert_exported(tmp_path / "files", model)


@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "WeightAveraging"])
def test_export_by_itself_comes_after_averaging(tmp_path: Path, package: Any, name: str) -> None:
    settings = {"swa_lrs": 1e-2, "swa_epoch_start": 1} if name.startswith("S") else {"use_buffers": False}
    files, averaging = tmp_path / "files", getattr(package.callbacks, name)(**settings)
    model = calibrated(MODELS[package])
    model.gru.use_quantization = True
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match=f"list Export after {name}"):
        fit(tmp_path, Export(files), averaging, model=model, max_epochs=2)
    assert not files.exists()
    assert_exported(files, fit(tmp_path, averaging, Export(files), model=model, max_epochs=2))
