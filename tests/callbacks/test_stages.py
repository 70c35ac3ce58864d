"""Each stage alone, as a function and as a callback."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import qgru
from qgru.callbacks import QAT, Calibrate, Export, Finalize, QuantizationLifecycle
from qgru.callbacks.calibrate import calibrate
from qgru.callbacks.export import example_args, export
from qgru.callbacks.finalize import finalize
from qgru.callbacks.qat import start_qat_epoch

from .models import Model, assert_same, fit, loader, state


def calibrated(**kwargs: Any) -> Model:
    model = qgru.convert(Model(**kwargs))
    calibrate(model, loader())
    finalize(model)
    return model


def test_functions_need_no_trainer() -> None:
    model = qgru.convert(Model())
    before = torch.get_rng_state()
    assert calibrate(model, loader(shuffle=True)) == 4
    assert torch.equal(torch.get_rng_state(), before)
    assert model.gru.has_observations() and not model.gru.is_calibrated() and not model.gru.calibrating
    sqnr = finalize(model)
    assert model.gru.is_calibrated() and not model.gru.use_quantization
    assert {"gru/gate.z_out", "gru/weight.W"} <= sqnr.keys() and all(value > 20 for value in sqnr.values())
    assert finalize(model) == {} and calibrate(model, []) == 0
    assert start_qat_epoch(model) and model.gru.use_quantization


def test_calibration_that_fails_observes_no_more() -> None:
    model = qgru.convert(Model())
    batches = [next(iter(loader())), [torch.randn(2, 3, 99)]]
    with pytest.raises(RuntimeError, match="forward_fn"):
        calibrate(model, batches)
    assert not model.gru.calibrating and model.training
    calibrate(model, loader())
    finalize(model)
    assert_same(state(model.gru), state(_same_weights(model).gru))


def _same_weights(model: Model) -> Model:
    other = Model()
    other.load_state_dict(qgru.float_state_dict(model))
    calibrate(qgru.convert(other), loader())
    finalize(other)
    return other


def test_callbacks_make_up_the_lifecycle(tmp_path: Path) -> None:
    whole = fit(tmp_path, QuantizationLifecycle("int8", calibrate_at_epoch=1, calibration_batches=2))
    stages = Calibrate(epoch=1, batches=2), Finalize(), QAT(), Export(tmp_path / "files")
    model = fit(tmp_path, *stages, model=_converted)
    assert_same(state(model), state(whole))
    assert model.losses == whole.losses
    assert (tmp_path / "files" / "model_qdq.onnx").is_file()


def _converted() -> Model:
    model = qgru.convert(Model())
    model.gru.load_bitwidth_config("int8")
    return model


def test_qat_alone(tmp_path: Path) -> None:
    model = calibrated()
    activations = model.gru.grids()["gate.g_pre"]
    fit(tmp_path, QAT(), model=model, max_epochs=1)
    assert model.gru.use_quantization and model.gru.grids()["gate.g_pre"] == activations


def test_export_waits_for_quantization(tmp_path: Path) -> None:
    fit(tmp_path, Export(tmp_path / "files"), max_epochs=1)
    assert not (tmp_path / "files").exists()


def test_exported_files(tmp_path: Path) -> None:
    model = calibrated()
    example = torch.randn(2, 4, 3)
    model.kept = example.requires_grad_() * 2, threading.Lock()  # neither can be copied
    model.train()
    reports = export(model, tmp_path, ("qdq", "float"), (example.detach(),))
    assert reports["model_qdq.onnx"].differing_integers == 0 and reports.keys() == {
        "model_qdq.onnx",
        "model_float.onnx",
    }
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"bitwidth_config.json", "quant_params.json", "model_qdq.onnx", "model_float.onnx"}
    assert all(module.training for module in model.modules()) and not model.gru.use_quantization
    other = qgru.convert(Model()).gru
    other.load_quant_params(tmp_path / "quant_params.json")
    assert other.grids() == model.gru.grids()
    assert qgru.load_config(tmp_path / "bitwidth_config.json") == model.gru.bitwidth_config


def test_exported_files_of_several_layers(tmp_path: Path) -> None:
    model = Model()
    model.head = torch.nn.ModuleDict({"decoder": torch.nn.GRU(5, 2, batch_first=True)})
    model.forward = lambda x: model.head["decoder"](model.gru(x)[0])[0]
    calibrate(qgru.convert(model), loader())
    finalize(model)
    export(model, tmp_path, ())
    names = {
        f"{layer}.{kind}.json" for layer in ("gru", "head.decoder") for kind in ("quant_params", "bitwidth_config")
    }
    assert {path.name for path in tmp_path.iterdir()} == names


class Branching(Model):
    """Its forward can't be traced: it takes a dict and returns strings."""

    def forward(self, inputs: Any) -> Any:
        return {"text": str(inputs), "y": super().forward(inputs["x"])}


def test_model_that_is_exported_by_layers(tmp_path: Path) -> None:
    model = qgru.convert(Branching())
    calibrate(model, loader(), lambda module, batch: module({"x": batch[0]}))
    finalize(model)
    with pytest.warns(UserWarning, match="Branching can't be exported to ONNX .qdq. as a whole"):
        export(model, tmp_path, ("qdq",), ({"x": torch.randn(2, 3, 3)},))
    assert (tmp_path / "quant_params.json").is_file() and (tmp_path / "model_qdq" / "gru.onnx").is_file()
    assert not (tmp_path / "model_qdq.onnx").exists()


def test_example_args() -> None:
    class Options(torch.nn.Module):
        def forward(self, x: Any, y: int = 2, *, z: int = 3) -> Any:
            return x

    module = Options()
    assert example_args(module, lambda: module(1)) == (1,)
    assert example_args(module, lambda: module(x=1, y=5)) == (1, 5)
    assert example_args(module, lambda: module(1, z=4)) is None
    assert example_args(module, lambda: module.forward(1)) is None
    assert not module._forward_pre_hooks


def test_failed_export_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="export to .*files failed"):
        model = fit(tmp_path, QAT(), Export(tmp_path / "files"), model=calibrated(), max_epochs=1)
    assert len(model.losses) == 4


def test_fast_dev_run_exports(tmp_path: Path) -> None:
    fit(tmp_path, QuantizationLifecycle(export_dir=str(tmp_path / "files")), fast_dev_run=True)
    names = {"float.ckpt", "ptq.ckpt", "qat.ckpt", "bitwidth_config.json", "quant_params.json", "model_qdq.onnx"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == names


def test_compiled_model_is_exported(tmp_path: Path) -> None:
    model = calibrated()
    model.gru = torch.compile(model.gru, backend="eager")
    compiled, forward = model.gru, model.forward
    export(model, tmp_path, ("qdq",), (torch.randn(2, 4, 3),))
    assert (tmp_path / "model_qdq.onnx").is_file() and (tmp_path / "quant_params.json").is_file()
    assert model.gru is compiled and model.forward == forward


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
