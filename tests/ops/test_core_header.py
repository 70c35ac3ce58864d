"""The header that firmware reads, compiled alone: the example program prints the integers of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from qgru import QuantGRU
from tests.calibrated import quantize

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "c++", "g++", "clang++"))), None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    path = tmp_path_factory.mktemp("example") / "run_integers"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    include = ["-I", str(ROOT / "qgru/ops/cpu")]
    subprocess.run([COMPILER, *flags, *include, str(ROOT / "examples/run_integers.cpp"), "-o", str(path)], check=True)
    return path


def calibrated(config: str, **options: object) -> QuantGRU:
    gru = QuantGRU(5, 7, **options).eval()
    gru.load_bitwidth_config(config)
    return quantize(gru, torch.randn(20, 4, 5))


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w8a16"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=["plain", "deep", "bare"]
)
def test_the_program_prints_the_integers_of_python(program: Path, config: str, options: dict, tmp_path: Path) -> None:
    gru = calibrated(config, **options)
    gru.export_quant_params(tmp_path / "q.json", include_weights=True)
    x = torch.randn(30, 1, 5)
    with torch.no_grad():
        output = gru(x)[0][:, 0]
    inputs = gru.grids()["input.x"].quantize(x)[:, 0].tolist()
    text = "\n".join(" ".join(map(str, row)) for row in inputs)
    run = subprocess.run([program, tmp_path / "q.json"], input=text, capture_output=True, text=True, check=True)
    got = torch.tensor([[int(word) for word in line.split()] for line in run.stdout.splitlines()])
    halves = output.split(gru.hidden_size, -1)
    layer = gru.num_layers - 1
    want = [gru.grids(layer, bool(d))["output.h"].quantize(half) for d, half in enumerate(halves)]
    assert len(got.unique()) > 10
    assert torch.equal(got, torch.cat(want, -1))


def test_a_file_without_weights_is_an_error(program: Path, tmp_path: Path) -> None:
    calibrated("int8").export_quant_params(tmp_path / "q.json")
    run = subprocess.run([program, tmp_path / "q.json"], input="", capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "include_weights=True" in run.stderr
