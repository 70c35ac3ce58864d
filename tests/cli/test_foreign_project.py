"""`+quant=int8_mixed` in a Hydra project that knows nothing of this repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from qgru.hydra.files import check_overrides
from qgru.schema import OPERATORS, BitwidthConfig

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


def run(app: Path, *overrides: str, path: Path | str | None = None) -> subprocess.CompletedProcess:
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


EDITABLE = ROOT  # on the path, and nothing that Hydra could list as its plugin


@pytest.mark.parametrize("imports", ["import hydra\nimport qgru", "import qgru\nimport hydra\nimport qgru.callbacks"])
def test_importing_qgru_behind_hydra_is_enough(tmp_path, imports):
    cfg = composed(run(project(tmp_path, imports), "+quant=int8", f"{BITS}=4", path=EDITABLE))["cfg"]
    assert cfg["quant"]["operator_config"]["gate"]["z_out"]["bitwidth"] == 4
    assert cfg["callbacks"]["quantization"]["_target_"] == "qgru.callbacks.QuantizationLifecycle"


def test_importing_it_without_hydra_imports_no_hydra():
    code = "import sys, qgru; sys.exit('hydra' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


LATE = "import hydra\n\n@hydra.main(version_base='1.3', config_path=None)\n"
WARNING = "+quant=int8 had no effect but the plain string 'int8'"


@pytest.mark.parametrize("used", ["import qgru", "from qgru.callbacks import QuantizationLifecycle", "Trainer"])
def test_a_preset_that_hydra_did_not_know_is_spoken_of_where_qgru_is_used(tmp_path, used):
    if used == "Trainer":  # as an install has it, also where nobody says qgru
        (tmp_path / "site" / "qgru_site-0.dist-info").mkdir(parents=True)
        entry = "[lightning.pytorch.callbacks_factory]\nqgru = qgru.entry_points:callbacks\n"
        (tmp_path / "site" / "qgru_site-0.dist-info" / "entry_points.txt").write_text(entry)
        (tmp_path / "site" / "qgru_site-0.dist-info" / "METADATA").write_text("Name: qgru-site\nVersion: 0\n")
        used = "from lightning import Trainer; Trainer(logger=False, accelerator='cpu')"
    app = tmp_path / "app.py"
    app.write_text(LATE + f"def main(cfg):\n    assert cfg.quant == 'int8'\n    {used}\nmain()\n")
    path = f"{ROOT}{os.pathsep}{tmp_path / 'site'}"
    late = run(app, "+quant=int8", path=path)
    assert late.returncode == 0 and late.stderr.count(WARNING) == 1, late.stderr
    assert "import qgru behind import hydra" in late.stderr


def test_another_quant_is_not_spoken_of(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(LATE + "def main(cfg):\n    assert cfg.quant == 'mine'\n    import qgru\nmain()\n")
    result = run(app, "+quant=mine", "+quantity=int8", path=EDITABLE)
    assert result.returncode == 0 and not result.stderr


def test_a_wrong_key_ends_with_one_message_that_offers_no_plus(tmp_path):
    override = "quant.operator_config.gate.z_owt.bitwidth=4"
    failed = run(project(tmp_path, "import hydra\nimport qgru"), "+quant=int8", override, path=EDITABLE)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"{override}: there is no operator 'gate.z_owt'; the nearest is 'gate.z_out' (")
    assert "append" not in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize("chosen", ["+quant=int8", "quant=w4a8,int16", "+quant=some/where.json"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quant.operator_config.gate.z_owt.bitwidth=4", "no operator 'gate.z_owt'; the nearest is 'gate.z_out' ("),
        ("+quant.operator_config.gate.z_owt.bitwidth=4", "no operator 'gate.z_owt'; the nearest is 'gate.z_out' ("),
        ("quant.operator_config.gats.z_out.bitwidth=4", "no operator 'gats.z_out'; the nearest is 'gate.z_out' ("),
        ("quant.operator_config.gats={}", "no operator 'gats'; the nearest is "),
        ("quant.gate.z_out.bitwidth=4", "no 'gate' in quant; expected quant.operator_config.<operator>.<field>"),
        ("quant.operator_config.gate.z_out.bits=4", "operator 'gate.z_out' has no 'bits'; expected bitwidth, is_"),
        ("quant.operator_config.gate.z_out.bitwidth.x=4", "operator 'gate.z_out' has no 'bitwidth.x'; expected bitwid"),
    ],
)
def test_a_wrong_key_lists_the_operators(chosen, override, message):
    with pytest.raises(ConfigCompositionException, match=re.escape(message)) as error:
        check_overrides(["--multirun", chosen, override], ROOT / "conf")
    assert str(error.value).startswith(override.lstrip("+"))
    assert "expected bitwid" in message or all(name in str(error.value) for name in OPERATORS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["+quant=mine", "quant.bits=3", "quant.operator_config.gates=4"],
        ["quant.bits=3"],
        ["+quant=int8", "~quant.operator_config.gates", "model.gate=3", "-m", "quantity.gate=2"],
        ["+quant=int8", *(f"quant.operator_config.{name}.bitwidth=4" for name in OPERATORS)],
        ["+quant=int8", "quant.operator_config.gate={}", "quant.operator_config.gate.z_out={bitwidth: 3}"],
        ["+quant=int8", "quant.operator_config={}", "quant.default_config.disable_quantization=true"],
    ],
)
def test_other_keys_are_left_alone(arguments):
    check_overrides(arguments, ROOT / "conf")


@pytest.mark.parametrize("installed", ["editable", "wheel"])
def test_a_bit_width_file_is_a_choice_of_the_group(request, tmp_path, installed):
    path = EDITABLE if installed == "editable" else request.getfixturevalue("site")
    app = project(tmp_path, "import hydra\nimport qgru" if installed == "editable" else "")
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "mine.json").write_text('{"GRU_config": {"operator_config": {"gate.z_out": {"bitwidth": 5}}}}')
    cfg = composed(run(app, "+quant=bits/mine.json", "quant.operator_config.op.rRh.bitwidth=6", path=path))["cfg"]
    given = {"operator_config": {"gate.z_out": {"bitwidth": 5}, "op.rRh": {"bitwidth": 6}}}
    assert BitwidthConfig.from_mapping(cfg["quant"]) == BitwidthConfig.from_mapping(given)
    assert cfg["callbacks"]["quantization"]["config"] == cfg["quant"]
    typed = run(app, f"+quant={tmp_path}/bits/mine.json", f"{BITS}=banana", path=path)
    assert "'banana' of type 'str' could not be converted to Integer" in typed.stderr
    absent = run(app, "+quant=bits/other.json", path=path)
    assert absent.returncode == 1 and "+quant=bits/other.json is no bit width file: " in absent.stderr
    (tmp_path / "bits" / "mine.json").write_text('{"operator_config": {"gate.z_owt": {"bitwidth": 5}}}')
    wrong = run(app, "+quant=bits/mine.json", path=path)
    assert "+quant=bits/mine.json is no bit width file: " in wrong.stderr and "nearest is 'gate.z_out'" in wrong.stderr
    assert "Traceback" not in absent.stderr + wrong.stderr


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


def test_a_wheel_has_the_search_and_the_targets(site, tmp_path):
    cfg = composed(run(project(tmp_path), "+target=npu_8x8", "+quant=auto", "quant.budget=0.8", path=site))["cfg"]
    assert cfg["quant"] == {"budget": 0.8, "max_error": None, "points": 1, "logits": False}
    lifecycle = cfg["callbacks"]["quantization"]
    assert lifecycle["config"] == "auto" and lifecycle["budget"] == 0.8
    assert lifecycle["target"]["products"] == [[8, 8]]


def test_the_projects_own_preset_wins(site, tmp_path):
    app = project(tmp_path)
    (tmp_path / "settings" / "quant").mkdir()
    (tmp_path / "settings" / "quant" / "int8.yaml").write_text("mine: true\n")
    assert composed(run(app, "+quant=int8", path=site))["cfg"]["quant"] == {"mine": True}
