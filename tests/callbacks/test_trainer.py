"""Whatever a trainer is told to do besides: loggers, progress bars, precisions, compiled models, any data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch import nn

from qgru.calibration import histogram
from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, Model, fit, loader, trainer


def test_modes_are_restored(tmp_path: Path) -> None:
    """Calibration runs in eval mode, and a submodule that the user froze in eval mode stays there."""
    model, modes = Model(), []
    model.head.eval()
    model.dropout.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), model=model, max_epochs=1, num_sanity_val_steps=0)
    assert modes == [(False, False)] * 4 + [(True, True)] * 4 + [(False, False)] * 2
    assert model.dropout.training and not model.head.training


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.utils.data.Subset(loader().dataset, range(24)))


@pytest.mark.parametrize("kind", ["map", "workers", "stream", "dict"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_training_data_stays_in_place(tmp_path: Path, package: Any, kind: str, epoch: int) -> None:
    """Lightning's own iterator, also one that lives in persistent workers, is where it was."""

    class Recorder(MODELS[package]):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            batch = batch["a"] if isinstance(batch, dict) else batch
            self.seen = [*getattr(self, "seen", []), batch[0].sum().item()]
            return super().training_step(batch, batch_idx)

    def run(*callbacks: Any) -> list[float]:
        torch.manual_seed(0)
        model = Recorder()
        workers = {"num_workers": 1, "persistent_workers": True} if kind == "workers" else {}
        data = torch.utils.data.DataLoader(Stream(), 6) if kind == "stream" else loader(shuffle=True, **workers)
        data = {"a": data, "b": loader(6)} if kind == "dict" else data
        trainer(tmp_path, *callbacks, package=package, max_epochs=2).fit(model, data)
        return model.seen

    def forward(module: Model, batch: Any) -> None:
        module(batch["a"][0] if isinstance(batch, dict) else batch[0])

    assert run(QuantizationLifecycle(calibrate_at_epoch=epoch, forward_fn=forward)) == run()


def test_sqnr_goes_to_the_loggers(tmp_path: Path, package: Any) -> None:
    fit(
        tmp_path,
        QuantizationLifecycle(calibrate_at_epoch=1),
        logger=package.loggers.CSVLogger(tmp_path),
        model=MODELS[package](bidirectional=True),
    )
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    for name in ("gate.z_out", "gate.z_out_reverse", "weight.W", "weight.W_reverse", "output.h_reverse"):
        assert f"sqnr/gru/{name}" in header


@pytest.mark.parametrize("bar", [None, RichProgressBar(), TQDMProgressBar()], ids=["off", "rich", "tqdm"])
def test_progress(tmp_path: Path, bar: Any, capfd: pytest.CaptureFixture) -> None:
    settings = {"enable_progress_bar": bar is not None, "max_epochs": 2}
    model = fit(tmp_path, QuantizationLifecycle(), *([bar] if bar else []), **settings)
    assert model.gru.is_calibrated()
    if bar is None:
        assert "calibrating" not in "".join(capfd.readouterr())


class Projected(Model):
    """Its GRU is fed by a layer that autocast runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.project(x))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_precision(tmp_path: Path, precision: str) -> None:
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), model=Projected, precision=precision)
    assert model.gru.use_quantization and not any(map(math.isnan, model.losses))


def test_autocast_does_not_blur_what_is_observed(tmp_path: Path) -> None:
    lifecycles = QuantizationLifecycle(calibrate_at_epoch=0), QuantizationLifecycle(calibrate_at_epoch=0)
    mixed = fit(tmp_path, lifecycles[0], model=Projected, precision="bf16-mixed")
    full = fit(tmp_path, lifecycles[1], model=Projected)
    for seen, expected in zip(histogram(mixed.gru, "x"), histogram(full.gru, "x"), strict=True):
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled(tmp_path: Path, whole: bool) -> None:
    model = Model()
    if whole:
        compiled: Any = torch.compile(model, backend="eager")
    else:
        model.gru = torch.compile(model.gru, backend="eager")
        compiled = model
    fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), model=compiled, max_epochs=2, limit_train_batches=1)
    gru = model.gru if whole else model.gru._orig_mod
    assert gru.is_calibrated() and gru.use_quantization


def test_configure_model(tmp_path: Path, package: Any) -> None:
    class Configured(MODELS[package]):
        def __init__(self) -> None:
            super().__init__()
            self.gru = None

        def configure_model(self) -> None:
            if self.gru is None:
                self.gru = nn.GRU(3, 5, batch_first=True)

    assert fit(tmp_path, QuantizationLifecycle(), model=Configured()).gru.is_calibrated()
