"""Each stage alone, as a callback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import qgru
from qgru.callbacks import QAT, Calibrate, Export, Finalize, QuantizationLifecycle

from .models import MODELS, assert_same, calibrated, fit, state


def test_callbacks_make_up_the_lifecycle(tmp_path: Path, package: Any) -> None:
    whole = fit(
        tmp_path, QuantizationLifecycle("int8", calibrate_at_epoch=1, calibration_batches=2), model=MODELS[package]
    )
    stages = Calibrate(epoch=1, batches=2), Finalize(), QAT(), Export(tmp_path / "files")
    model = fit(tmp_path, *stages, model=_converted(package))
    assert_same(state(model), state(whole))
    assert model.losses == whole.losses
    assert (tmp_path / "files" / "model_qdq.onnx").is_file()


def _converted(package: Any) -> Callable[[], Any]:
    def build() -> Any:
        model = qgru.convert(MODELS[package]())
        model.gru.load_bitwidth_config("int8")
        return model

    return build


def test_qat_alone(tmp_path: Path) -> None:
    model = calibrated()
    activations = model.gru.grids()["gate.g_pre"]
    fit(tmp_path, QAT(), model=model, max_epochs=1)
    assert model.gru.use_quantization and model.gru.grids()["gate.g_pre"] == activations


def test_export_waits_for_quantization(tmp_path: Path) -> None:
    fit(tmp_path, Export(tmp_path / "files"), max_epochs=1)
    assert not (tmp_path / "files").exists()


def test_fast_dev_run_exports(tmp_path: Path) -> None:
    fit(tmp_path, QuantizationLifecycle(export_dir=str(tmp_path / "files")), fast_dev_run=True)
    names = {"float.ckpt", "ptq.ckpt", "qat.ckpt", "bitwidth_config.json", "quant_params.json", "model_qdq.onnx"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == names


@pytest.mark.slow
def test_module_compiled_as_a_whole_is_exported(tmp_path: Path, package: Any) -> None:
    model = calibrated(MODELS[package])
    fit(tmp_path, QAT(), Export(tmp_path / "files"), model=torch.compile(model, backend="eager"), max_epochs=1)
    assert (tmp_path / "files" / "model_qdq.onnx").is_file() and (tmp_path / "files" / "quant_params.json").is_file()
    assert model._compiler_ctx is not None and model.forward is not model._compiler_ctx["original_forward"]


def test_lifecycle_exports_the_best_quantized_weights(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", mode="max")  # the worst, so not the last
    lifecycle = QuantizationLifecycle("int8_mixed", calibrate_at_epoch=1, export_dir=str(tmp_path / "files"))
    model = fit(tmp_path, lifecycle, checkpoint, max_epochs=4)
    best = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    exported = torch.load(tmp_path / "files" / "qat.ckpt", weights_only=True)["state_dict"]
    assert_same(exported, best)
    assert not torch.equal(best["gru.weight_hh_l0"], model.gru.weight_hh_l0)
    assert model.gru.has_observations()
    params = json.loads((tmp_path / "files" / "quant_params.json").read_text())
    model.load_state_dict(best)
    assert params["operators"]["W"]["n"] == list(model.gru.grids()["weight.W"].exponents)
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert names >= {"float.ckpt", "ptq.ckpt", "qat.ckpt", "bitwidth_config.json", "model_qdq.onnx"}
    before, after = (
        torch.load(tmp_path / "files" / f"{n}.ckpt", weights_only=True)["state_dict"] for n in ("float", "ptq")
    )
    assert before["gru.quant_flags"].tolist() == [0, 0, 0] and after["gru.quant_flags"].tolist() == [1, 0, 1]
    assert torch.equal(before["gru.weight_hh_l0"], after["gru.weight_hh_l0"])
