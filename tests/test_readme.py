"""The first page's ways into somebody's project, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import yaml

from tests.callbacks.models import MODELS, loader
from tests.callbacks.test_lightning_cli import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
APP = """
import hydra
import qgru
from hydra.utils import instantiate
from lightning import Trainer
from tests.callbacks.models import Model, loader

@hydra.main(version_base="1.3", config_path="settings", config_name="main")
def main(cfg):
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_epochs=3, callbacks=callbacks, **quiet).fit(Model(), loader())

main()
"""


def snippet(way: str, language: str) -> str:
    """Return the first block of code behind a way's name in bold."""
    found = re.search(rf"\*\*{re.escape(way)}\*\*.*?```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None, way
    return found.group(1)


def exported(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} & {"model_qdq.onnx", "quant_params.json", "qat.ckpt"}


WHOLE = {"model_qdq.onnx", "quant_params.json", "qat.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "package"),
    [("Lightning.", lightning.pytorch), ("pytorch_lightning", pytorch_lightning)],
    ids=["lightning", "pytorch_lightning"],
)
def test_a_trainers_callback(way: str, package: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(snippet(way, "python"), {"model": MODELS[package](), "datamodule": loader()})
    assert exported(tmp_path / "export") == WHOLE


@pytest.mark.slow
def test_the_command_line_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = yaml.safe_load(snippet("LightningCLI.", "yaml"))["trainer"]
    run(lightning.pytorch, "fit", tmp_path, trainer)
    assert exported(tmp_path / "export") == WHOLE


@pytest.mark.slow
def test_a_hydra_project(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "main.yaml").write_text("callbacks: null\n")
    (tmp_path / "train.py").write_text(APP)
    program, *arguments = shlex.split(snippet("Hydra.", "sh"))
    assert program == "python"
    result = subprocess.run(
        [sys.executable, *arguments, "hydra.run.dir=out"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert exported(tmp_path / "out") == WHOLE
