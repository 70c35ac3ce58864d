"""`+quant=int8_mixed` in a Hydra project that knows nothing of this repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
import sys
{imports}
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path="settings", config_name="main")
def main(cfg):
    node = OmegaConf.to_container(cfg, resolve=True)
    print(__import__("json").dumps({{"cfg": node, "torch": "torch" in sys.modules}}))

main()
"""
BITS = "quant.operator_config.gate.z_out.bitwidth"


def project(folder: Path, imports: str = "", config: str = "") -> Path:
    (folder / "settings").mkdir()
    (folder / "settings" / "main.yaml").write_text(f"model: {{hidden: 3}}\ncallbacks: null\n{config}")
    (folder / "app.py").write_text(APP.format(imports=imports))
    return folder / "app.py"


def run(app: Path, *overrides: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    command = [sys.executable, str(app), "hydra.run.dir=out", *overrides]
    return subprocess.run(command, cwd=app.parent, env=environment, capture_output=True, text=True, check=False)


def composed(result: subprocess.CompletedProcess) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("imports", "config"),
    [("import qgru.hydra", ""), ("", "hydra: {searchpath: [pkg://qgru.conf]}\n")],
    ids=["import", "searchpath"],
)
def test_an_editable_install_is_found_by_import_or_searchpath(tmp_path, imports, config):
    cfg = composed(run(project(tmp_path, imports, config), "+quant=int8_mixed", f"{BITS}=4"))["cfg"]
    assert cfg["model"] == {"hidden": 3}
    z_out = cfg["quant"]["operator_config"]["gate"]["z_out"]
    assert z_out == {"bitwidth": 4, "is_symmetric": True, "is_unsigned": True}
    lifecycle = cfg["callbacks"]["quantization"]
    assert lifecycle["config"] == cfg["quant"]
    assert Path(lifecycle["export_dir"]) == tmp_path / "out"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The contents of a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "outputs", "multirun", "results", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), "./source"], cwd=folder, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("qgru-*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_needs_no_line_at_all_and_imports_no_torch(site, tmp_path):
    result = composed(run(project(tmp_path), "+quant=int8_mixed", f"{BITS}=4", path=site))
    assert result["cfg"]["quant"]["operator_config"]["gate"]["z_out"]["bitwidth"] == 4
    assert not result["torch"], "every Hydra program of the environment would pay for it"


def test_a_wheels_presets_are_typed(site, tmp_path):
    failed = run(project(tmp_path), "+quant=int8_mixed", f"{BITS}=banana", path=site)
    assert failed.returncode == 1
    assert "'banana' of type 'str' could not be converted to Integer" in failed.stderr
    assert f"full_key: {BITS}" in failed.stderr


def test_the_projects_own_preset_wins(site, tmp_path):
    app = project(tmp_path)
    (tmp_path / "settings" / "quant").mkdir()
    (tmp_path / "settings" / "quant" / "int8.yaml").write_text("mine: true\n")
    assert composed(run(app, "+quant=int8", path=site))["cfg"]["quant"] == {"mine": True}
