"""A folder that can't be written to is found when a fit starts; a disk that fills up later costs no training."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from torch import nn

from qgru.callbacks import Export, QuantizationLifecycle
from qgru.callbacks.folder import check_folder

from .models import MODELS, Model, fit

ROOT = Path(__file__).parents[2]
LARGE = {"hidden_size": 64}  # its parameters alone take 53,000 bytes
LIMIT = 40_000


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Have longer files fail as they do on a full disk: after some of it was written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FillsUp(Callback):
    """The disk is full from the first step on."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.limit = files_up_to(LIMIT)
        self.limit.__enter__()

    def on_fit_end(self, trainer: Any, pl_module: Any, exception: Any = None) -> None:
        self.limit.__exit__(None, None, None)

    on_exception = on_fit_end


def exporting(kind: str, folder: Path) -> Callback:
    if kind == "lifecycle":
        return QuantizationLifecycle(calibrate_at_epoch=1, export_dir=str(folder))
    return Export(folder)


@pytest.mark.parametrize("kind", ["lifecycle", "export"])
def test_a_file_in_the_folders_place(tmp_path: Path, kind: str) -> None:
    (tmp_path / "files").write_text("in the way")
    model = Model()
    with pytest.raises(OSError, match="export directory .*files/deeper can't be written to: .*[Nn]ot a directory"):
        fit(tmp_path, exporting(kind, tmp_path / "files" / "deeper"), model=model)
    assert type(model.gru) is nn.GRU and not model.losses
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


@pytest.mark.parametrize("kind", ["lifecycle", "export"])
def test_a_disk_without_room_for_the_parameters(tmp_path: Path, kind: str) -> None:
    model = Model(**LARGE)
    with files_up_to(LIMIT), pytest.raises(OSError, match="export directory .*files can't be written to"):
        fit(tmp_path, exporting(kind, tmp_path / "files"), model=model)
    assert type(model.gru) is nn.GRU and not model.losses
    assert not list(tmp_path.iterdir())


def test_every_rank_hears_of_rank_zeros_folder(tmp_path: Path) -> None:
    strategy = SimpleNamespace(broadcast=lambda problem: problem or "the disk of rank zero is full")
    with pytest.raises(OSError, match="the disk of rank zero is full"):
        check_folder(SimpleNamespace(is_global_zero=False, strategy=strategy), tmp_path, Model())


def test_a_look_at_the_folder_leaves_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("kept")
    fit(tmp_path, Export(tmp_path / "mine"), max_epochs=1)
    fit(tmp_path, Export(tmp_path / "a" / "b"), max_epochs=1)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["mine", "mine/kept"]


def test_a_disk_that_fills_up_costs_no_training_and_leaves_no_half_file(tmp_path: Path) -> None:
    lifecycle = exporting("lifecycle", tmp_path / "files")
    with pytest.warns(UserWarning) as caught:
        model = fit(tmp_path, FillsUp(), lifecycle, model=Model(**LARGE), max_epochs=3)
    assert len(model.losses) == 3 * 4 and model.gru.is_calibrated() and model.gru.use_quantization
    messages = [str(warning.message) for warning in caught]
    for name in ("float.ckpt", "ptq.ckpt", "qat.ckpt"):
        assert any(f"{name} was not written, and the fit goes on" in message for message in messages), name
    assert any("the export to" in message and "failed" in message for message in messages)
    assert not list((tmp_path / "files").iterdir())


def test_an_earlier_runs_files_survive_a_failed_write(tmp_path: Path) -> None:
    files = tmp_path / "files"
    fit(tmp_path, exporting("lifecycle", files), model=Model(**LARGE), max_epochs=2)
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    with pytest.warns(UserWarning, match="was not written"):
        fit(tmp_path, FillsUp(), exporting("lifecycle", files), model=Model(**LARGE), max_epochs=3)
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def run_with_the_configured_plugin(folder: Path, package: Any = lightning.pytorch) -> None:
    plugin = instantiate(OmegaConf.load(ROOT / "conf" / "trainer" / "default.yaml").plugins[0])
    checkpoint = package.callbacks.ModelCheckpoint(folder, "last", enable_version_counter=False)
    fit(folder.parent, checkpoint, model=MODELS[package](**LARGE), max_epochs=1, plugins=[plugin])


def test_lightnings_checkpoints_survive_a_failed_write(tmp_path: Path, package: Any) -> None:
    run_with_the_configured_plugin(tmp_path / "run", package)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    with pytest.raises(OSError, match="too large"), files_up_to(LIMIT):
        run_with_the_configured_plugin(tmp_path / "run", package)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]


def test_lightnings_checkpoints_never_cross_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a move is a copy, and half a checkpoint would stand where the disk fills up."""

    def across_file_systems(source: str, target: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", across_file_systems)
    with files_up_to(resource.getrlimit(resource.RLIMIT_FSIZE)[0]):
        run_with_the_configured_plugin(tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_failing_export_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the folder is gone")

    monkeypatch.setattr("qgru.callbacks.export.export", fail)
    lifecycle = QuantizationLifecycle(calibrate_at_epoch=0, export_dir=str(tmp_path / "files"))
    with pytest.warns(UserWarning, match="the export to .*files failed .OSError: the folder is gone"):
        model = fit(tmp_path, lifecycle, max_epochs=1)
    assert len(model.losses) == 4 and (tmp_path / "files" / "qat.ckpt").is_file()
