"""The files of conf/target: they load, whoever reads them, and every claim in them says where it comes from."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import qgru.hydra  # noqa: F401  gives the presets their types
from qgru import QuantGRU
from qgru.targets import Target, load_target
from qgru.targets.target import target_names
from tests.test_docs import leads_somewhere

ROOT = Path(__file__).parents[2]
CLASSES = {"fpga", "npu_4x8", "npu_8x8", "npu_8x16"}  # of chips, defined by their files
PRODUCTS = {"qnn_htp", "tensorrt", "esp_dl", "hls", "c_cortex_m4", "c_cortex_m55", "onnxruntime"}


def test_the_targets_are_there() -> None:
    assert set(target_names()) == CLASSES | PRODUCTS


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_a_file_names_itself_and_where_hydra_puts_it(name: str) -> None:
    assert load_target(name).name == name
    lines = (ROOT / "conf" / "target" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package callbacks.quantization.target"
    assert lines[1].endswith(f"+target={name}")


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_hydra_composes_what_the_file_holds(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["+quant=int8", f"+target={name}"])
    assert load_target(OmegaConf.to_container(cfg.callbacks.quantization.target)) == load_target(name)


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_every_claim_has_a_source_that_can_be_found(name: str) -> None:
    target = load_target(name)
    for source in (target, *target.claims):
        is_url = source.source.startswith("https://")
        assert is_url or leads_somewhere(ROOT / "README.md", source.source), source.source
        assert "#" in source.source or is_url, "a document's section"
        assert date(2025, 1, 1) < date.fromisoformat(source.date) <= date.today()
        assert source.verified == "by documentation" or not is_url, "what was run is told in docs"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_of_chips_is_its_own_source(name: str) -> None:
    target = load_target(name)
    assert (target.name, target.claims, target.containers, target.date) == (name, (), None, "")
    assert leads_somewhere(ROOT / "README.md", target.source)


def test_the_page_knows_every_target_and_its_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in CLASSES | PRODUCTS)
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, {"model": QuantGRU(3, 4)})
    assert capsys.readouterr().out.startswith("rounded elsewhere: input.x of QuantGRU")


def test_a_path_and_a_mapping_are_targets_as_well(tmp_path: Path) -> None:
    (tmp_path / "chip.yaml").write_text("widths: {default: [8]}\n")
    chip = load_target(tmp_path / "chip.yaml")
    assert chip.name == "chip" and set(chip.rules.widths.values()) == {(8,)}
    assert load_target({"widths": {"default": [8]}}).rules.widths == chip.rules.widths
    assert load_target(chip) is chip
    assert load_target().name == "fpga"
    assert isinstance(chip, Target)


CLAIM = {
    "effect": "float",
    "does": "so",
    "instead": "other",
    "source": "https://example.org",
    "date": "2026-01-31",
    "verified": "run",
}


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        ({"claims": "none"}, ["claims is 'none'", "list"]),
        ({"claims": ["none"]}, ["claims: 'none'", "mapping"]),
        ({"claims": [{**CLAIM, "effects": 1}]}, ["holds 'effects'", "effect, does"]),
        ({"claims": [{**CLAIM, "effect": "lossy"}]}, ["effect is 'lossy'", "rounded elsewhere"]),
        ({"claims": [{**CLAIM, "verified": True}]}, ["verified is True", "by documentation"]),
        ({"claims": [{**CLAIM, "source": ""}]}, ["source is ''", "a text"]),
        ({"claims": [{k: v for k, v in CLAIM.items() if k != "source"}]}, ["source is None", "a text"]),
        ({"claims": [{**CLAIM, "date": "yesterday"}]}, ["date is 'yesterday'", "2026-01-31"]),
        ({"claims": [{**CLAIM, "operators": "gate.z_out"}]}, ["operators is 'gate.z_out'", "list"]),
        ({"claims": [{**CLAIM, "operators": ["gate.q*"]}]}, ["'gate.q*'", "gate.z_out"]),
        ({"claims": [{**CLAIM, "takes": {"bitwidth": 8}}]}, ["{'bitwidth': 8}", "bidirectional"]),
        ({"claims": [{**CLAIM, "operators": ["*"], "takes": {"bias": True}}]}, ["{'bias': True}", "bitwidth"]),
        ({"claims": [{**CLAIM, "takes": {"bias": []}}]}, ["{'bias': []}"]),
        ({"claims": [{**CLAIM, "takes": ["bias"]}]}, ["takes is ['bias']", "mapping"]),
        ({"containers": [8]}, ["containers: widths is [8]", "mapping"]),
        ({"source": "https://example.org"}, ["date is None"]),
        ({"width": 8}, ["chip holds 'width'"]),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(broken: dict, names: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_target({"name": "chip", "widths": {"default": [8]}, **broken})
    assert all(part in str(error.value) for part in ["chip", *names]), error.value


def test_what_is_no_target_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"'qnn' is neither a file nor a target \(targets: .*qnn_htp"):
        load_target("qnn")
    with pytest.raises(TypeError, match="the target is 8"):
        load_target(8)
