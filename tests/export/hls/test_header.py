"""The header through g++ and AMD's own `ap_fixed` headers, which hls4ml's wheel brings."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import qgru
from qgru import QuantGRU
from qgru.export import export_layers, formats
from qgru.schema import ACTIVATIONS
from tests.calibrated import calibrated
from tests.random_gru import random_gru

HLS = formats.find("hls")
SEEDS = (0, 3, 11, 22)


def ap_types() -> Path:
    spec = find_spec("hls4ml")
    assert spec is not None, (
        "hls4ml is not installed; its ap_fixed headers are what this tests with: pip install qgru[test]"
    )
    return Path(spec.submodule_search_locations[0], "templates", "vivado", "ap_types")


def differing(folder: Path) -> dict[str, tuple[int, int]]:
    """Compile the tests of all folders in one as one program; the differing and all integers by name."""
    tests = sorted(folder.glob("*/test.cpp"))
    program = folder / "all.cpp"
    parts = [f'#define main test_{i}\n#include "{test}"\n#undef main\n' for i, test in enumerate(tests)]
    calls = "".join(f"  test_{i}();\n" for i in range(len(tests)))
    program.write_text(f"{''.join(parts)}int main() {{\n{calls}}}\n")
    compiler = shutil.which("g++") or "g++"
    options = ["-std=c++14", "-O0", "-isystem", str(ap_types()), "-Werror"]
    subprocess.run([compiler, *options, program, "-o", folder / "all"], check=True)
    text = subprocess.run([folder / "all"], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^(\w+): (\d+) of (\d+) integers differ$", text, re.MULTILINE)
    assert len(found) == len(tests)
    return {name: (int(wrong), int(total)) for name, wrong, total in found}


@pytest.mark.slow
def test_the_integers_are_the_modules(tmp_path):
    for seed in SEEDS:
        gru, _ = random_gru(seed, tmp_path / "quant_params.json", range(1, 17), bidirectional=False)
        HLS.export_layer(gru, tmp_path / f"random_{seed}")
    for preset in ("int8_mixed", "w4a8"):
        HLS.export_layer(calibrated(5, 3, preset, num_layers=2), tmp_path / preset)
    for mode in ("AP_RND_CONV", "AP_RND"):  # the latter rounds ties up
        HLS.export_layer(calibrated(5, 3, "int8"), tmp_path / mode)
        header = tmp_path / mode / f"{mode.lower()}.h"
        header.write_text(header.read_text().replace("AP_RND_CONV", mode))
    found = differing(tmp_path)
    assert found.pop("ap_rnd")[0] > 0
    assert len(found) == 7
    assert {name: wrong for name, (wrong, _) in found.items() if wrong} == {}
    assert sum(total for _, total in found.values()) > 900


def test_zero_points_are_among_them(tmp_path):
    """What the test above stands on: an odd one at every operator."""
    odd = set()
    for seed in SEEDS:
        gru, _ = random_gru(seed, tmp_path / "quant_params.json", range(1, 17), bidirectional=False)
        for layer in range(gru.num_layers):
            odd |= {name for name, grid in gru.grids(layer).items() if grid.zero_point % 2}
    assert odd == set(ACTIVATIONS)


def test_a_pre_activation_without_a_rom_is_named(tmp_path):
    gru = calibrated(3, 2, {"operator_config": {"gate.g_pre": {"bitwidth": 17}}})
    with pytest.raises(ValueError, match="^operator 'gate.g_pre' has 17 bits; expected at most 16 for a ROM$"):
        HLS.export_layer(gru, tmp_path / "gru")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_single_direction_of_a_calibrated_layer(tmp_path):
    with pytest.raises(ValueError, match="bidirectional is True; expected one direction"):
        HLS.export_layer(calibrated(3, 2, "int8", bidirectional=True), tmp_path / "gru")
    with pytest.raises(RuntimeError, match="not calibrated"):
        HLS.export_layer(QuantGRU(2, 3), tmp_path / "gru")
    with pytest.raises(ValueError, match="Sequential; expected a QuantGRU: hls writes single layers"):
        HLS.export_model(nn.Sequential(calibrated(3, 2, "int8")), torch.randn(4, 2, 2), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_each_layer_of_a_model_is_a_folder_called_after_it(tmp_path):
    model = nn.ModuleDict({"encoder": calibrated(3, 2, "int8"), "7": calibrated(2, 3, "int8")})
    reports = export_layers(model, tmp_path / "layers", "hls")
    assert {name: report.path for name, report in reports.items()} == {
        "encoder": tmp_path / "layers" / "encoder",
        "7": tmp_path / "layers" / "7",
    }
    assert sorted(path.name for path in (tmp_path / "layers" / "7").iterdir()) == [
        "gru_7.h",
        "gru_7_vectors.h",
        "test.cpp",
    ]
    with pytest.warns(UserWarning, match="exporting each quantized layer by itself"):
        found = qgru.stages.export(model, tmp_path / "export", ("hls",), (torch.randn(4, 2, 2),))
    assert sorted(found) == ["model_hls/7", "model_hls/encoder"]
