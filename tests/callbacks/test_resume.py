"""Killed in any stage and resumed from its last checkpoint, a run ends as if nothing had happened, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import qgru
from qgru.callbacks import QuantizationLifecycle

from .killing import Kill, Killed
from .models import MODELS, EpochSampler, Model, assert_same, fit, loader, state, trainer


def run(folder: Path, *extra: Any, ckpt_path: str | None = None, lifecycle: dict | None = None, **kwargs: Any) -> Model:
    package = kwargs.pop("package", lightning.pytorch)
    checkpoint = package.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)
    arguments = {"config": "int8", "calibrate_at_epoch": 2, "calibration_batches": 3, **(lifecycle or {})}
    callbacks = [QuantizationLifecycle(**arguments), checkpoint, *extra]
    return fit(folder, *callbacks, model=MODELS[package], ckpt_path=ckpt_path, **{"max_epochs": 5, **kwargs})


def run_twice(folder: Path, *extra: Any, **kwargs: Any) -> Model:
    with pytest.raises(Killed):
        run(folder, *extra, **kwargs)
    torch.rand(5)  # a new process has another random state
    return run(folder, ckpt_path="last", **kwargs)


@pytest.mark.parametrize("killed_at", [(1, 2), (2, 0), (3, 1), (4, 3)], ids=["float", "first QAT", "QAT", "last batch"])
def test_killed_in_training(tmp_path: Path, package: Any, killed_at: tuple[int, int]) -> None:
    whole = run(tmp_path / "whole", package=package)
    resumed = run_twice(tmp_path / "killed", Kill(*killed_at), package=package)
    assert whole.gru.use_quantization
    assert_same(state(resumed), state(whole))
    assert resumed.losses == whole.losses[-len(resumed.losses) :]


@pytest.mark.parametrize("killed_at", [(1, 2), (3, 1)], ids=["float", "QAT"])
def test_exported_files_are_those_of_the_whole_run(tmp_path: Path, killed_at: tuple[int, int]) -> None:
    """Byte for byte, whatever the folders are called."""
    folders = tmp_path / "whole", tmp_path / "killed"
    settings = [{"lifecycle": {"export_dir": str(folder / "files")}} for folder in folders]
    run(folders[0], **settings[0])
    run_twice(folders[1], Kill(*killed_at), **settings[1])
    names = {"quant_params.json", "bitwidth_config.json", "model_qdq.onnx"}
    whole, killed = ({name: (folder / "files" / name).read_bytes() for name in names} for folder in folders)
    assert [name for name in names if whole[name] != killed[name]] == []


def test_killed_at_calibration(tmp_path: Path) -> None:
    calls = []

    def forward(module: Model, batch: Any) -> None:
        calls.append(batch)
        if len(calls) == 1 + 2:  # the first call is a trial, before training
            raise Killed
        module(batch[0])

    whole = run(tmp_path / "whole")
    resumed = run_twice(tmp_path / "killed", lifecycle={"forward_fn": forward})
    assert len(calls) == 1 + 2 + 3
    assert_same(state(resumed), state(whole))


@pytest.mark.parametrize(
    "settings",
    [
        {"check_val_every_n_epoch": 2, "max_epochs": 6},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_other_schedules(tmp_path: Path, settings: dict) -> None:
    whole = run(tmp_path / "whole", **settings)
    resumed = run_twice(tmp_path / "killed", Kill(4, 1), **settings)
    assert_same(state(resumed), state(whole))


def test_mid_epoch_checkpoint_with_fixed_batches(tmp_path: Path) -> None:
    """Lightning starts the data of an interrupted epoch anew; with one batch in the data that is where it was."""

    def run_steps(folder: Path, *extra: Any, ckpt_path: Any = None) -> Model:
        seed_everything(3, verbose=False)
        model, lifecycle = Model(), QuantizationLifecycle(calibrate_at_epoch=0)
        checkpoint = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
        data = loader(6, sampler=[0, 1, 2, 3, 4, 5] * 4)
        trainer(folder, lifecycle, checkpoint, *extra, max_epochs=2).fit(model, data, ckpt_path=ckpt_path)
        return model

    whole = run_steps(tmp_path / "whole")
    with pytest.raises(Killed):
        run_steps(tmp_path / "killed", Kill(1, 2))
    resumed = run_steps(tmp_path / "killed", ckpt_path="last")
    assert resumed.losses[:2] == whole.losses[6:8]


@pytest.mark.parametrize(
    ("workers", "settings"), [(0, {}), (2, {}), (0, {"max_epochs": -1, "max_steps": 16})], ids=["", "workers", "steps"]
)
def test_global_random_state_orders_the_data(tmp_path: Path, workers: int, settings: dict) -> None:
    """`shuffle=True` draws the order from torch's random state: a resumed run makes the draws of an unbroken one.

    (Where `max_steps` limits a fit, Lightning resumes with `set_epoch` one too high, so this is the order to test.)
    """

    def run_shuffled(folder: Path, *extra: Any, ckpt_path: Any = None) -> Model:
        seed_everything(3, verbose=False)
        model, lifecycle = Model(), QuantizationLifecycle(calibrate_at_epoch=2, calibration_batches=2)
        checkpoint = ModelCheckpoint(folder, save_last=True)
        data = loader(24, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        trainer(folder, lifecycle, checkpoint, *extra, **settings).fit(model, data, loader(6), ckpt_path=ckpt_path)
        return model

    whole = run_shuffled(tmp_path / "whole")
    with pytest.raises(Killed):
        run_shuffled(tmp_path / "killed", Kill(2, 1))
    resumed = run_shuffled(tmp_path / "killed", ckpt_path="last")
    assert resumed.losses == whole.losses[8:]
    assert_same(state(resumed), state(whole))


def test_early_stop_of_the_float_stage_is_resumed(tmp_path: Path) -> None:
    """Killed between the early stop and calibration, which is one epoch later than the checkpoint."""
    settings = {"lifecycle": {"calibrate_at_epoch": 4}, "max_epochs": 6}
    stop = {"monitor": "val_loss", "patience": 1, "min_delta": 10.0}
    whole = run(tmp_path / "whole", EarlyStopping(**stop), **settings)
    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        run(killed, EarlyStopping(**stop), Kill(2, 0), **settings)
    resumed = run(killed, EarlyStopping(**stop), ckpt_path="last", **settings)
    assert len(whole.losses) == 4 * 4  # stopped after epochs 0 and 1, then quantized, then stopped after 2 and 3
    assert_same(state(resumed), state(whole))


def test_prolonged(tmp_path: Path) -> None:
    """A fit that ends before calibration is quantized as it is; its checkpoint goes on in float."""
    whole = run(tmp_path / "whole")
    with pytest.warns(UserWarning, match="ended before quantization-aware training"):
        short = run(tmp_path / "short", max_epochs=1)
    assert short.gru.use_quantization
    assert_same(state(run(tmp_path / "short", ckpt_path="last")), state(whole))


def test_resumed_after_its_last_epoch(tmp_path: Path) -> None:
    """There is no step left to train; what was missing is done: here, calibration and export."""
    calls = []

    def forward(module: Model, batch: Any) -> None:
        calls.append(batch)
        if len(calls) == 1 + 1:  # the first call is a trial, before training
            raise Killed
        module(batch[0])

    settings = {"qat": False, "calibrate_at_epoch": None, "export_dir": str(tmp_path / "files")}
    whole = run(tmp_path / "whole", lifecycle={**settings, "export_dir": None})
    resumed = run_twice(tmp_path / "killed", lifecycle={**settings, "forward_fn": forward})
    assert_same(state(resumed), state(whole))
    assert (tmp_path / "files" / "quant_params.json").is_file()


def test_weights_only_checkpoint(tmp_path: Path) -> None:
    model = run(tmp_path, lifecycle={"export_dir": str(tmp_path / "files")})
    loaded = qgru.load_from_checkpoint(Model, tmp_path / "files" / "qat.ckpt")
    assert_same(state(loaded), state(model))
    x = torch.randn(2, 4, 3)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    with pytest.raises(RuntimeError, match="gru.quant_grids"):
        Model.load_from_checkpoint(tmp_path / "files" / "qat.ckpt")


def test_checkpoints_are_loadable_as_weights_only(tmp_path: Path) -> None:
    run(tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["qgru_lifecycle"]["random_states"]) == 1


def test_float_checkpoint_of_a_run_without_the_callback(tmp_path: Path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, filename="float"), max_epochs=2)
    resumed = fit(tmp_path, QuantizationLifecycle(calibrate_at_epoch=0), ckpt_path=tmp_path / "float.ckpt")
    assert resumed.gru.is_calibrated() and len(resumed.losses) == 2 * 4


def test_layers_built_in_setup(tmp_path: Path) -> None:
    """They don't exist yet in the callback's `setup`; a quantized checkpoint loads all the same."""

    class Late(Model):
        def __init__(self) -> None:
            super().__init__()
            del self.gru

        def setup(self, stage: str) -> None:
            self.gru = torch.nn.GRU(3, 5, batch_first=True)

    def run_late(*extra: Any, ckpt_path: Any = None) -> Model:
        seed_everything(3, verbose=False)
        model = Late()
        callbacks = QuantizationLifecycle(calibrate_at_epoch=1), ModelCheckpoint(tmp_path, save_last=True), *extra
        trainer(tmp_path, *callbacks).fit(model, loader(sampler=EpochSampler(24)), loader(12), ckpt_path=ckpt_path)
        return model

    with pytest.raises(Killed):
        run_late(Kill(2, 0))
    resumed = run_late(ckpt_path="last")
    assert resumed.gru.is_calibrated() and len(resumed.losses) == 2 * 4
