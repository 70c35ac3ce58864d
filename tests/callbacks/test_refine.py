"""Grids that no quantization-aware training follows are refined by the outputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from qgru.callbacks import QuantizationLifecycle, lifecycle
from qgru.search import refine_exponents

from .models import assert_same, fit, loader, state


def without_qat(**arguments: Any) -> QuantizationLifecycle:
    return QuantizationLifecycle("w4a8", calibrate_at_epoch=1, qat=False, **arguments)


def test_a_fit_without_qat_ends_with_refined_grids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = fit(tmp_path, without_qat(export_dir=str(tmp_path / "files")), max_epochs=3)
    (message,) = [record.getMessage() for record in caplog.records if "refined" in record.getMessage()]
    assert message.startswith("qgru: refined on 4 training batches: output error ")
    refined = {name: value.clone() for name, value in state(model).items()}
    saved = torch.load(tmp_path / "files" / "ptq.ckpt", weights_only=True)["state_dict"]
    assert_same({name: saved[name] for name in refined}, refined)
    model.gru.finalize_calibration()
    with pytest.raises(AssertionError):
        assert_same(state(model), refined)
    moves = refine_exponents(model, list(loader())[:4])
    assert_same(state(model), refined)
    assert message.endswith(", ".join(map(str, moves)))


def test_before_qat_nothing_is_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "refine", None)
    model = fit(tmp_path, QuantizationLifecycle("w4a8", calibrate_at_epoch=1), max_epochs=2)
    assert model.gru.is_calibrated()


def test_outputs_that_can_not_be_compared_leave_the_grids_and_cost_nothing(tmp_path: Path) -> None:
    callback = without_qat(forward_fn=lambda module, batch: module.gru(batch[0]) and None, export_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="were not refined: the call returns no floating tensor"):
        model = fit(tmp_path, callback, max_epochs=2)
    grids = model.gru.grids()
    model.gru.finalize_calibration()
    assert model.gru.grids() == grids and (tmp_path / "ptq.ckpt").is_file()
