"""A fit's quantized checkpoints, and callbacks in them, for whoever loads them."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import qgru
from qgru.callbacks import QuantizationLifecycle

from .models import MODELS, assert_same, call, fit, loader, state, trainer


@pytest.fixture
def trained(tmp_path: Path, package: Any) -> tuple[Any, Path]:
    """A quantized model, and a checkpoint of it."""
    checkpoint = package.callbacks.ModelCheckpoint(tmp_path, "last")
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=1), checkpoint, model=MODELS[package], max_epochs=2)
    return model, tmp_path / "last.ckpt"


def test_load_from_checkpoint_and_a_trainer_without_the_callback(trained: Any, package: Any, tmp_path: Path) -> None:
    model, path = trained
    cls = type("Model", (MODELS[package],), {})
    runner = trainer(tmp_path, package=package)
    for load in (cls.load_from_checkpoint, lambda file: runner.test(cls(), loader(), ckpt_path=file, verbose=False)):
        with pytest.raises(RuntimeError, match="gru.quant_flags"):
            load(path)
    qgru.loads_quantized(cls)
    loaded = cls.load_from_checkpoint(path)
    assert_same(state(loaded), state(model))
    (own,) = runner.test(model, loader(), verbose=False)
    tested = cls()
    assert runner.test(tested, loader(), ckpt_path=path, verbose=False) == [own]
    assert tested.gru.use_quantization and tested.gru.is_calibrated()


def test_a_fit_that_goes_on_without_the_callback(trained: Any, package: Any, tmp_path: Path) -> None:
    _, path = trained
    cls = qgru.loads_quantized(type("Model", (MODELS[package],), {}))
    resumed = fit(tmp_path, model=cls, ckpt_path=path, max_epochs=3)
    assert len(resumed.losses) == 4 and resumed.gru.use_quantization


ARGUMENTS: list[tuple[Any, dict[str, Any]]] = [
    ((), {}),
    (("int8_mixed", 0), {"calibration_batches": 3, "export_dir": "files", "export_formats": ("float", "qdq")}),
    ((), {"config": OmegaConf.create({"operator_config": {"gate": {"z_out": {"bitwidth": 4}}}}), "qat": False}),
    ((), {"forward_fn": call}),
]


def settings(lifecycle: QuantizationLifecycle) -> tuple[Any, ...]:
    stages = lifecycle._calibrate, lifecycle._export
    return (
        lifecycle.config,
        lifecycle.calibrate_at_epoch,
        lifecycle.qat,
        lifecycle.export_dir,
        *((stage.forward_fn, getattr(stage, "batches", None), getattr(stage, "formats", None)) for stage in stages),
    )


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_a_pickled_lifecycle_is_the_same(args: Any, kwargs: dict[str, Any], tmp_path: Path) -> None:
    lifecycle = QuantizationLifecycle(*args, **kwargs)
    torch.save({"callbacks": [lifecycle]}, tmp_path / "x.pt")
    with torch.serialization.safe_globals([call]):
        (loaded,) = torch.load(tmp_path / "x.pt", weights_only=True)["callbacks"]
    for other in (loaded, copy.deepcopy(lifecycle), copy.deepcopy(loaded)):
        assert type(other) is QuantizationLifecycle and settings(other) == settings(lifecycle)


def test_a_fitted_lifecycle_takes_no_model_along(tmp_path: Path) -> None:
    """Lightning hangs the module's `log` on it."""
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=0)
    model = fit(tmp_path, lifecycle, max_epochs=1)
    assert lifecycle.log.__self__ is model
    torch.save(lifecycle, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 4096
    assert settings(torch.load(tmp_path / "x.pt", weights_only=True)) == settings(lifecycle)


def test_its_file_may_be_gone(tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    QuantizationLifecycle("int8_mixed").config.to_json(path)
    torch.save(QuantizationLifecycle(str(path)), tmp_path / "x.pt")
    path.unlink()
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert loaded.config == QuantizationLifecycle("int8_mixed").config


class Shouting(QuantizationLifecycle):
    def __init__(self, volume: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.volume = volume


def test_a_subclass_stays_one(tmp_path: Path) -> None:
    torch.save(Shouting(11, config="int16", qat=False), tmp_path / "x.pt")
    with torch.serialization.safe_globals([Shouting]):
        loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert type(loaded) is Shouting and (loaded.volume, loaded.qat) == (11, False)
    assert list(inspect.signature(Shouting).parameters) == ["volume", "kwargs"]


def test_import_qgru_is_enough_to_read_it(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": {"callbacks": [QuantizationLifecycle()]}}, tmp_path / "x.pt")
    code = (
        "import sys, torch, qgru\n"
        "assert not {'lightning', 'pytorch_lightning'} & set(sys.modules)\n"
        f"(loaded,) = torch.load({str(tmp_path / 'x.pt')!r}, weights_only=True)['hyper_parameters']['callbacks']\n"
        "assert type(loaded) is qgru.callbacks.QuantizationLifecycle\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_weights_for_people_without_qgru(tmp_path: Path) -> None:
    """The README's way: torch alone reads the file, and the parameters fit the float class."""
    model = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0, export_dir=str(tmp_path)), max_epochs=1)
    state_dict = torch.load(tmp_path / "qat.ckpt", weights_only=True)["state_dict"]
    plain = MODELS[next(iter(MODELS))]()
    plain.load_state_dict({name: value for name, value in state_dict.items() if ".quant_" not in name})
    assert type(plain.gru) is nn.GRU
    assert_same(state(plain), qgru.float_state_dict(model))
