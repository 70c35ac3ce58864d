"""A fit that is resumed goes on with the learning rates that it would have had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler

from qgru.callbacks import QAT, QuantizationLifecycle

from .killing import Kill, Killed
from .models import assert_same, calibrated, fit, loader, state, trainer
from .recording import Manual, Recording, Scheduled, expected


def decaying() -> Scheduled:
    return Scheduled(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.95))


def run(folder: Path, callback: Any, *extra: Any, ckpt_path: Any = None, model: Any = decaying, **kwargs: Any) -> Any:
    seed_everything(3, verbose=False)
    model, checkpoint = model(), ModelCheckpoint(folder, save_last=True)
    runner = trainer(folder, callback, checkpoint, *extra, **{"max_epochs": 5, **kwargs})
    runner.fit(model, loader(), loader(12, seed=8), ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16-mixed"},
        {"max_epochs": -1, "max_steps": 18},
        {"max_epochs": 9, "max_steps": 18},
        {"accumulate_grad_batches": 3},
        {"model": Manual},
        {"model": Manual, "max_epochs": 9, "max_steps": 28},
    ],
    ids=str,
)
def test_resumed(tmp_path: Path, settings: dict) -> None:
    """In the last epoch, so that a cosine that began anew where the run did would be another one.

    (Where `max_steps` and `max_epochs` limit a fit, Lightning resumes it with an epoch less to go: hence the 9.)
    """

    def lifecycle() -> QuantizationLifecycle:
        return QuantizationLifecycle(calibrate_at_epoch=1, qat_learning_rate_scale=2.0)

    whole = run(tmp_path / "whole", lifecycle(), **settings)
    with pytest.raises(Killed):
        run(tmp_path / "killed", lifecycle(), Kill(4, 1), **settings)
    resumed = run(tmp_path / "killed", lifecycle(), ckpt_path="last", **settings)
    assert_same(state(resumed), state(whole))
    for one, other in zip(_optimizers(resumed), _optimizers(whole), strict=True):
        assert 0 < len(one.used) <= 4 and one.used == other.used[-len(one.used) :]


def _optimizers(model: Any) -> tuple[Recording, ...]:
    return model.both if isinstance(model, Manual) else (model.optimizer,)


def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Lightning says nothing of an epoch that starts then. It starts the data anew, so the data is one batch."""

    def run_steps(*extra: Any, ckpt_path: Any = None) -> Scheduled:
        seed_everything(3, verbose=False)
        model, data = Scheduled(), loader(6, sampler=[0, 1, 2, 3, 4, 5] * 4)
        checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2)
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=0)
        trainer(tmp_path, lifecycle, checkpoint, *extra, max_epochs=2).fit(model, data, ckpt_path=ckpt_path)
        return model

    with pytest.raises(Killed):
        run_steps(Kill(1, 2))
    assert run_steps(ckpt_path="last").optimizer.used == expected(8, before=0)[6:]


def test_stages_alone_are_resumed(tmp_path: Path) -> None:
    def calibrated_model() -> Any:
        return calibrated(lambda: Scheduled(dropout=0.0))  # nothing restores random states here

    whole = run(tmp_path / "whole", QAT(), model=calibrated_model, max_epochs=3)
    with pytest.raises(Killed):
        run(tmp_path / "killed", QAT(), Kill(2, 1), model=calibrated_model, max_epochs=3)
    resumed = run(tmp_path / "killed", QAT(), ckpt_path="last", model=calibrated_model, max_epochs=3)
    assert resumed.optimizer.used == expected(12, before=0)[8:]
    assert_same(state(resumed), state(whole))


def test_checkpoints_from_before_there_was_annealing(tmp_path: Path) -> None:
    """They anneal over what is left."""
    with pytest.raises(Killed):
        run(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), Kill(3, 0), model=Scheduled)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["qgru_lifecycle"].pop("qat") == {"epoch": 1, "step": 4}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1)
    resumed = run(tmp_path, lifecycle, ckpt_path=tmp_path / "old.ckpt", model=Scheduled)
    assert resumed.optimizer.used == expected(8, before=0)


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=1)
    model = fit(tmp_path, lifecycle, model=Scheduled, max_epochs=2)
    assert fit(tmp_path, lifecycle, model=model, max_epochs=1).optimizer.used == expected(4, before=0)
