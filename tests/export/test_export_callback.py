"""Whole models by the callback, and what it is told of their inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader

from qgru.callbacks import QuantizationLifecycle
from qgru.callbacks.export import Export
from qgru.export import OnnxVerifier
from tests.export.onnx.models import ConvFrontEnd, SqueezeFrontEnd, grid_noise, quantized


class Lightning(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(model: LightningModule, *callbacks: Callback, **options: Any) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    loader = DataLoader([grid_noise(3, 6) for _ in range(8)], batch_size=4)
    Trainer(max_epochs=1, callbacks=list(callbacks), enable_model_summary=False, **quiet, **options).fit(model, loader)


def shape(path: Path) -> list[int | str]:
    (entry,) = onnx.load(path).graph.input
    return [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]


def test_a_fit_exports_the_whole_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Lightning(ConvFrontEnd())
    with caplog.at_level(logging.INFO):
        fit(model, QuantizationLifecycle("int8", calibrate_at_epoch=0, export_dir=str(tmp_path / "files")))
    assert "model_qdq.onnx: 0 of 140 integers differ" in caplog.text  # (4, 6, 5) and (1, 4, 5)
    assert not (tmp_path / "files" / "model_qdq").exists()
    verifier = OnnxVerifier(model, tmp_path / "files" / "model_qdq.onnx")
    report = verifier(torch.randn(3, 3, 6)) + verifier(torch.randn(1, 3, 6))
    assert (report.differing_integers, report.total_integers) == (0, 4 * 6 * 5 + 4 * 5)


def export(model: nn.Module, folder: Path, **options: Any) -> set[str]:
    """Export as a fit's end does; returns the ONNX files."""
    Export(folder, **options).run(SimpleNamespace(is_global_zero=True), Lightning(model))
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")}


def test_sizes_and_axes(tmp_path: Path) -> None:
    model = quantized(SqueezeFrontEnd(), 1).train()
    options = {"example_inputs": [[3, 1, 5, 4]], "dynamic_axes": {"x": [0, 2]}}
    assert export(model, tmp_path, **options) == {"model_qdq.onnx"}
    assert shape(tmp_path / "model_qdq.onnx") == ["x_dim_0", 1, "x_dim_2", 4]
    report = OnnxVerifier(Lightning(model), tmp_path / "model_qdq.onnx")(*model.inputs(2, 9))
    assert report.differing_integers == 0 < report.total_integers


def test_sizes_become_noise_of_the_models_type(tmp_path: Path) -> None:
    model = quantized(SqueezeFrontEnd(), 1).double()
    assert export(model, tmp_path, example_inputs=((3, 1, 5, 4),)) == {"model_qdq.onnx"}


class Packs(SqueezeFrontEnd):
    def forward(self, batch: Any) -> Tensor:
        x = batch.x if isinstance(batch, SimpleNamespace) else batch
        return self.gru(pack_padded_sequence(x, batch.lengths, batch_first=True) if x is not batch else x)[1]


@pytest.mark.parametrize("given", [torch.randn(2, 3, 4), (torch.randn(2, 3, 4),)])
def test_a_model_whose_batch_is_an_object(given: Any, tmp_path: Path) -> None:
    model = quantized(SqueezeFrontEnd(), 1)
    model.__class__ = Packs
    batch = SimpleNamespace(x=torch.randn(2, 3, 4), lengths=torch.tensor([3, 2]))
    with pytest.warns(UserWarning, match=r"model.gru: its input is a PackedSequence.* give example_inputs: tensors"):
        assert export(model, tmp_path / "layers", example_inputs=(batch,)) == {"model_qdq/model.gru.onnx"}
    assert export(model, tmp_path / "whole", example_inputs=given) == {"model_qdq.onnx"}


@pytest.mark.parametrize("axes", ["[0, 2]", [0, "time"], [-1], 2])
def test_axes_that_are_no_dimensions(axes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dynamic_axes\['x'\] is .*; expected a list of dimensions"):
        Export(tmp_path, dynamic_axes={"x": axes})


@pytest.mark.parametrize("given", [[3, 1, 5, 4], "x", 7, ()])
def test_example_inputs_that_are_no_arguments(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"example_inputs is .*; expected a tensor, or an entry for each argument"):
        Export(tmp_path, example_inputs=given)


def test_axes_of_an_input_that_there_is_not_are_refused_before_training(tmp_path: Path) -> None:
    model = Lightning(ConvFrontEnd())
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"dynamic_axes names 'audio'; Lightning.forward takes x$"):
        fit(model, Export(tmp_path, dynamic_axes={"audio": [0, 2]}))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    fit(model, Export(tmp_path, dynamic_axes={"x_1": [0]}), fast_dev_run=True)  # the second tensor of a tuple


SETTINGS = {"directory": "files", "example_inputs": [[3, 1, 5, 4]], "dynamic_axes": {"x": [0, 2]}}


def by_hydra() -> Export:
    return instantiate(OmegaConf.create({"_target_": "qgru.callbacks.export.Export", **SETTINGS}))


def by_lightning_cli() -> Export:
    parser = pytest.importorskip("jsonargparse").ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    node = {"class_path": "qgru.callbacks.export.Export", "init_args": SETTINGS}
    return parser.instantiate(parser.parse_object({"callback": node})).callback


@pytest.mark.parametrize("build", [by_hydra, by_lightning_cli])
def test_built_from_a_configuration(build: Any, tmp_path: Path) -> None:
    callback = build()
    callback.directory = tmp_path
    model = quantized(SqueezeFrontEnd(), 1)
    callback.run(SimpleNamespace(is_global_zero=True), Lightning(model))
    assert shape(tmp_path / "model_qdq.onnx") == ["x_dim_0", 1, "x_dim_2", 4]
