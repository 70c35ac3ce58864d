"""Weight averaging averages weights, never the integer state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from qgru.callbacks import QuantizationLifecycle

from .models import Model, fit


class Scores(Callback):
    """Records, for every validation, whether the weights in the module are scored quantized."""

    def __init__(self) -> None:
        self.quantized: list[bool] = []

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not trainer.sanity_checking and args[1] == 0:
            flags = pl_module.gru.quant_flags.tolist()
            self.quantized.append(bool(flags[0] and flags[2]))


def test_averaging_buffers_is_refused(tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(MisconfigurationException, match=r"expected EMAWeightAveraging\(use_buffers=False\)"):
        fit(tmp_path, QuantizationLifecycle(), EMAWeightAveraging(), model=model)
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


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_swa(tmp_path: Path, first: bool) -> None:
    """Lightning's older callback averages parameters alone, and works in either order."""
    callbacks = [StochasticWeightAveraging(1e-3, swa_epoch_start=3), QuantizationLifecycle(calibrate_at_epoch=2)]
    model = fit(tmp_path, *(callbacks if first else callbacks[::-1]), max_epochs=5)
    assert model.gru.is_calibrated() and model.gru.use_quantization
