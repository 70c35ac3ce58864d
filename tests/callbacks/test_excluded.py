"""The lifecycle leaves excluded layers alone, through every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from qgru import QuantGRU
from qgru.callbacks import QuantizationLifecycle

from .models import Model, fit, loader, trainer


class Distilled(Model):
    """It learns from a frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.GRU(3, 5, batch_first=True)).requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        target = self.teacher(batch[0])[0][:, -1].mean(-1, keepdim=True)
        return super().training_step((batch[0], target), batch_idx)


def test_every_stage_leaves_it_in_float(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    lifecycle = QuantizationLifecycle(exclude=["teacher.*"], export_dir=str(tmp_path / "files"))
    model = fit(tmp_path, lifecycle, checkpoint, model=Distilled, max_epochs=2)
    assert type(model.teacher[0]) is nn.GRU and model.gru.use_quantization
    assert (tmp_path / "files" / "model_qdq.onnx").is_file() and (tmp_path / "files" / "quant_params.json").is_file()
    resumed = fit(tmp_path, lifecycle, model=Distilled, ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=3)
    assert type(resumed.teacher[0]) is nn.GRU and resumed.gru.use_quantization
    fresh = Distilled()
    trainer(tmp_path, lifecycle).validate(fresh, loader(12), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert type(fresh.teacher[0]) is nn.GRU and fresh.gru.use_quantization


def test_a_name_that_matches_nothing_is_refused_before_the_conversion(tmp_path: Path) -> None:
    model = Distilled()
    with pytest.raises(ValueError, match="exclude has 'teachers.*', which matches no nn.GRU.*'gru', 'teacher.0'"):
        fit(tmp_path, QuantizationLifecycle(exclude=["teachers.*"]), model=model)
    assert type(model.gru) is nn.GRU
    with pytest.raises(ValueError, match="exclude is 'teacher.*'; expected a list"):
        QuantizationLifecycle(exclude="teacher.*")


class BuiltInSetup(Model):
    def setup(self, stage: str) -> None:
        self.spare = nn.GRU(3, 4)


def test_layers_of_the_modules_own_setup(tmp_path: Path) -> None:
    model = fit(tmp_path, QuantizationLifecycle(exclude=["spare"]), model=BuiltInSetup, max_epochs=2)
    assert type(model.spare) is nn.GRU and model.gru.is_calibrated()
    with pytest.raises(ValueError, match="'sparse', which matches no nn.GRU; expected one of 'gru', 'spare'"):
        fit(tmp_path, QuantizationLifecycle(exclude=["sparse"]), model=BuiltInSetup)


def test_nothing_left_to_quantize(tmp_path: Path) -> None:
    message = r"holds no nn.GRU to convert; there is nothing to quantize; gru \(excluded\) stays in float"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, QuantizationLifecycle(exclude=["*"]))


def test_an_averaged_copy_may_hold_them(tmp_path: Path) -> None:
    average = WeightAveraging(use_buffers=False)
    lifecycle = QuantizationLifecycle(exclude=["teacher.*"])
    model = fit(tmp_path, lifecycle, average, model=Distilled, max_epochs=2)
    assert isinstance(model.gru, QuantGRU) and type(model.teacher[0]) is nn.GRU
    model = Distilled()
    with pytest.raises(MisconfigurationException, match="copied the model before"):
        fit(tmp_path, WeightAveraging(use_buffers=False), lifecycle, model=model)
    model = Distilled()
    model.gru = QuantGRU(3, 5, batch_first=True)
    copied = fit(tmp_path, WeightAveraging(use_buffers=False), lifecycle, model=model, max_epochs=2)
    assert copied.gru.is_calibrated() and not torch.equal(copied.gru.weight_hh_l0, Distilled().gru.weight_hh_l0)
