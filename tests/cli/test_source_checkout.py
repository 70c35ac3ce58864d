"""A source checkout without an install has its presets, for Python and for Hydra."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_presets import PRESETS

ROOT = Path(__file__).parents[2]
UNINSTALL = "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree that nothing installed."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("qgru", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(checkout: Path, code: str) -> str:
    command = [sys.executable, "-c", UNINSTALL + code]
    environment = {"PYTHONPATH": str(checkout), "PATH": ""}
    result = subprocess.run(command, cwd=checkout.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_presets_are_found_by_name(checkout: Path) -> None:
    code = (
        "import qgru; from qgru import presets\n"
        "print(*presets.preset_names(), presets.conf_folder())\n"
        "for name in presets.preset_names(): qgru.BitwidthConfig.from_mapping(presets.preset(name))\n"
    )
    assert run(checkout, code).split() == [*PRESETS, str(checkout / "conf")]


def test_hydra_finds_them(checkout: Path) -> None:
    (checkout / "app.yaml").write_text("callbacks: null\n")
    code = (
        "import qgru.hydra; from hydra import compose, initialize_config_dir\n"
        f"with initialize_config_dir({str(checkout)!r}, version_base='1.3'):\n"
        "    print(compose('app', ['+quant=w4a8']).quant.operator_config.weight.W.bitwidth)\n"
    )
    assert run(checkout, code) == "4\n"


def test_the_preset_is_the_one_asked_for(checkout: Path) -> None:
    assert run(checkout, "import qgru; print(qgru.load_config('w4a8').operators['weight.W'].bitwidth)") == "4\n"
