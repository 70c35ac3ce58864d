"""What the lifecycle is given, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torch import nn

from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, Model, fit, trainer


def test_no_last_epoch(tmp_path: Path, package: Any) -> None:
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match="max_epochs=-1"):
        fit(tmp_path, QuantizationLifecycle(), model=MODELS[package], max_epochs=-1, limit_train_batches=1)


@pytest.mark.parametrize("limit", [0, 0.0])
def test_no_batches(tmp_path: Path, limit: float) -> None:
    with pytest.raises(RuntimeError, match="'gru' saw no data.*limit_train_batches"):
        fit(tmp_path, QuantizationLifecycle(), limit_train_batches=limit)


def test_layer_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="'gru' saw no data.*forward_fn"):
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0, forward_fn=lambda module, batch: None))


def test_forward_fn_is_asked_for(tmp_path: Path) -> None:
    class Other(Model):
        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch[0], None).square().mean()

        validation_step = None

    with pytest.raises(RuntimeError, match=r"Other .* as module\(batch\[0\]\) failed.*forward_fn\(module, batch\)"):
        fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), model=Other())
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=0, forward_fn=lambda module, batch: module(batch[0], None))
    assert fit(tmp_path, lifecycle, model=Other()).gru.is_calibrated()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"operator_config": {"gate": {"z_out": {"bitwidth": 40}}}}}, "gate.z_out.*40"),
        ({"config": {"operator_config": {"gate.z_owt": {"bitwidth": 4}}}}, "gate.z_owt.*gate.z_out"),
        ({"config": "int8_mixt"}, "int8_mixt.*int8_mixed"),
        ({"calibrate_at_epoch": -1}, "-1"),
        ({"calibration_batches": 0}, "batches is 0"),
        ({"export_dir": "x", "export_formats": ("qdq", "tflite")}, "tflite"),
    ],
)
def test_bad_arguments_fail_in_the_constructor(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        QuantizationLifecycle(**arguments)


def test_config_may_be_an_omegaconf_node() -> None:
    node = OmegaConf.create({"b": 4, "q": {"operator_config": {"gate": {"z_out": {"bitwidth": "${b}"}}}}})
    assert QuantizationLifecycle(node.q).config.operators["gate.z_out"].bitwidth == 4


def test_built_by_hydra() -> None:
    node = OmegaConf.create(
        {
            "quant": {"operator_config": {"gate": {"z_out": {"bitwidth": 4}}}},
            "callback": {
                "_target_": "qgru.callbacks.QuantizationLifecycle",
                "config": "${quant}",
                "export_dir": "files",
                "export_formats": ["qdq", "float"],
                "forward_fn": {"_target_": "tests.callbacks.models.call", "_partial_": True},
            },
        }
    )
    lifecycle = instantiate(node.callback)
    assert lifecycle.config.operators["gate.z_out"].bitwidth == 4 and lifecycle.export_dir == Path("files")


def test_no_gru(tmp_path: Path) -> None:
    model = Model()
    model.gru = nn.LSTM(3, 5, batch_first=True)
    with pytest.raises(MisconfigurationException, match="Model holds no nn.GRU"):
        fit(tmp_path, QuantizationLifecycle(), model=model)


def test_sharding_strategies_are_refused(tmp_path: Path, package: Any) -> None:
    runner, model = trainer(tmp_path, package=package), MODELS[package]()
    runner._accelerator_connector.strategy = package.strategies.FSDPStrategy()
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match="FSDPStrategy shards"):
        QuantizationLifecycle().setup(runner, model, "fit")
    assert type(model.gru) is nn.GRU
