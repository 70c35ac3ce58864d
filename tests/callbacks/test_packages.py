"""One callback for the trainers of `lightning` and of `pytorch_lightning`, whichever of them there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning

from qgru.callbacks import QAT, Calibrate, Export, Finalize, QuantizationLifecycle
from qgru.callbacks.packages import MisconfigurationException, classes


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run Python on this repository, and on the packages in a folder before any other."""
    root = Path(__file__).parents[2]
    folders = [str(folder) for folder in (path, root) if folder is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_every_callback_is_one_of_each_package(tmp_path: Path) -> None:
    for callback in (Calibrate(), Finalize(), QAT(), Export(tmp_path), QuantizationLifecycle()):
        assert isinstance(callback, lightning.pytorch.Callback) and isinstance(callback, pytorch_lightning.Callback)
    assert issubclass(MisconfigurationException, lightning.pytorch.utilities.exceptions.MisconfigurationException)
    assert issubclass(MisconfigurationException, pytorch_lightning.utilities.exceptions.MisconfigurationException)


def test_classes_are_those_of_both() -> None:
    both = (lightning.pytorch.callbacks.ModelCheckpoint, pytorch_lightning.callbacks.ModelCheckpoint)
    assert classes("callbacks.ModelCheckpoint") == both
    assert classes("Trainer") == (lightning.pytorch.Trainer, pytorch_lightning.Trainer)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["lightning", "pytorch_lightning"])
def test_either_alone_will_do(tmp_path: Path, hidden: str) -> None:
    result = python(str(Path(__file__).with_name("alone_run.py")), hidden, str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]


def test_neither() -> None:
    code = "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None; import qgru.callbacks"
    error = python("-c", code).stderr
    assert "ImportError: qgru.callbacks needs lightning or pytorch_lightning, 2.6 or later; neither" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_too_old(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("__version__ = '2.5.5'\n")
    error = python("-c", "import qgru.callbacks", path=tmp_path).stderr
    assert f"ImportError: {name} is version 2.5.5; qgru.callbacks expects 2.6 or later" in error


@pytest.mark.slow
def test_a_package_that_is_broken_says_so_itself(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lightning.py").write_text("import what_it_needs\n")
    assert "No module named 'what_it_needs'" in python("-c", "import qgru.callbacks", path=tmp_path).stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_silenced_package_stays_silent(package: str) -> None:
    """Both packages send messages through one module, and the one that is imported last would get them all."""
    code = (
        f"import logging, {package} as package\n"
        "logging.getLogger(package.__name__).setLevel(logging.ERROR)\n"
        "import qgru.callbacks\n"
        "package.utilities.rank_zero_info('a message')\n"
    )
    result = python("-c", code)
    assert result.returncode == 0 and "a message" not in result.stderr + result.stdout
