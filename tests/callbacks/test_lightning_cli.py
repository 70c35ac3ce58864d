"""LightningCLI builds the lifecycle from ``class_path`` and ``init_args``, for every subcommand."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import qgru
from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, assert_same, dataset, state

pytest.importorskip("jsonargparse")


def model_class(package: Any) -> type:
    """Its arguments have types, as a command line needs them."""

    class Typed(MODELS[package]):
        def __init__(self, hidden_size: int = 5) -> None:
            super().__init__(hidden_size)

    return Typed


def data_module(package: Any) -> type:
    class Data(package.LightningDataModule):
        def train_dataloader(self) -> torch.utils.data.DataLoader:
            return torch.utils.data.DataLoader(dataset(), 6)

        val_dataloader = test_dataloader = train_dataloader

    return Data


def run(package: Any, subcommand: str, folder: Path, trainer: dict[str, Any], *arguments: str) -> Any:
    """Run a command line on a configuration file; returns the CLI."""
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    config = folder / f"{subcommand}.yaml"
    config.write_text(yaml.safe_dump({"trainer": {**quiet, **trainer}}))
    command = [subcommand, "--config", str(config), *arguments]
    options = {"save_config_kwargs": {"overwrite": True}, "seed_everything_default": 3}
    cli = import_module(f"{package.__name__}.cli").LightningCLI
    return cli(model_class(package), data_module(package), args=command, **options)


def lifecycle(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "qgru.callbacks.QuantizationLifecycle", "init_args": arguments}


def test_fit_validate_test(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "filename": "last"}}
    quantization = lifecycle(
        config={"operator_config": {"gate": {"z_out": {"bitwidth": 4, "is_unsigned": True}}}},
        calibrate_at_epoch=1,
        calibration_batches=3,
        export_dir=str(tmp_path / "files"),
        export_formats=["qdq", "float"],
        forward_fn="tests.callbacks.models.call",
    )
    settings = {"max_epochs": 2, "callbacks": [quantization, checkpoint]}
    fitted = run(package, "fit", tmp_path, settings).model
    assert fitted.gru.use_quantization and fitted.gru.get_quant_config("z_out")["bitwidth"] == 4
    assert {path.name for path in (tmp_path / "files").iterdir()} >= {"model_qdq.onnx", "model_float.onnx", "qat.ckpt"}
    for subcommand in ("validate", "test"):
        settings = {"callbacks": [lifecycle()]}
        cli = run(package, subcommand, tmp_path, settings, "--ckpt_path", str(tmp_path / "last.ckpt"))
        assert_same(state(cli.model), state(fitted))
        assert set(cli.trainer.callback_metrics) == {"val_loss"}


def test_the_saved_configuration_builds_it_again(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"config": "w4a8", "calibrate_at_epoch": 0, "forward_fn": "tests.callbacks.models.call"}
    settings = {"max_epochs": 1, "callbacks": [lifecycle(**arguments)], "default_root_dir": str(tmp_path)}
    first = run(package, "fit", tmp_path, settings).model
    again = run(package, "fit", tmp_path, {}, "--config", str(tmp_path / "config.yaml")).model
    assert again.gru.bitwidth_config == qgru.load_config("w4a8")
    assert_same(state(again), state(first))


def test_the_command_line_overrides_arguments(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--trainer.callbacks=qgru.callbacks.QuantizationLifecycle",
        "--trainer.callbacks.config=int16",
        "--trainer.callbacks.calibrate_at_epoch=0",
    )
    cli = run(package, "fit", tmp_path, {"max_epochs": 1, "enable_checkpointing": False}, *arguments)
    assert cli.model.gru.bitwidth_config == qgru.load_config("int16")
    (built,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, QuantizationLifecycle)]
    assert built.calibrate_at_epoch == 0


@pytest.mark.parametrize(
    ("arguments", "message"), [({"calibrate_at_epoch": "soon"}, "calibrate_at_epoch"), ({"bits": 8}, "bits")]
)
def test_wrong_arguments_are_named(tmp_path: Path, capsys: Any, arguments: dict[str, Any], message: str) -> None:
    package = next(iter(MODELS))
    with pytest.raises(SystemExit):
        run(package, "fit", tmp_path, {"callbacks": [lifecycle(**arguments)]})
    assert message in capsys.readouterr().err


def test_its_checkpoints_load_without_it(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say how the command line made the module."""
    monkeypatch.chdir(tmp_path)
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "filename": "last"}}
    callbacks = [lifecycle(calibrate_at_epoch=0), checkpoint]
    fitted = run(package, "fit", tmp_path, {"max_epochs": 1, "callbacks": callbacks}, "--model.hidden_size=6").model
    assert fitted.gru.hidden_size == 6
    cls = qgru.loads_quantized(model_class(package))
    for load in (cls.load_from_checkpoint, lambda path: qgru.load_from_checkpoint(cls, path)):
        assert_same(state(load(tmp_path / "last.ckpt")), state(fitted))
