"""`export_c`: what stands in a folder, what of a model goes there, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qgru
from qgru import QuantGRU, stages
from qgru.export import export_c, export_layers
from qgru.export.c99 import host
from tests.calibrated import calibrated
from tests.oracle import OracleGrid, power
from tests.random_gru import build, uniform_grids

X = torch.randn(6, 9, 5, generator=torch.Generator().manual_seed(1))
FILES = {"CMakeLists.txt", "Makefile", "test.c", "qgru.h", "qgru_dot.h", "qgru_dsp.h", "qgru_helium.h"}


class Classifier(nn.Module):
    """Two GRUs and a linear layer; a flag adds something in front, behind or between."""

    def __init__(self, flaw: str = "", bias: bool = True) -> None:
        super().__init__()
        self.low, self.high = nn.GRU(5, 8, 2, batch_first=True), nn.GRU(8, 6, batch_first=True)
        self.head, self.flaw = nn.Linear(6, 4, bias=bias), flaw

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.low(x + 1 if self.flaw == "input" else x)
        if self.flaw == "twice":
            x, _ = self.low(x[..., :5])
        y, h = self.high(
            -x if self.flaw == "between" else x, torch.ones(1, len(x), 6) if self.flaw == "state" else None
        )
        return self.head(y.mean(1) if self.flaw == "pooled" else h[-1])


def model(flaw: str = "", preset: str = "int8", **options: bool) -> Classifier:
    torch.manual_seed(0)
    converted = qgru.convert(Classifier(flaw, **options))
    for gru in qgru.quantized_layers(converted).values():
        gru.load_bitwidth_config(preset)
    stages.calibrate(converted, [X])
    stages.finalize(converted)
    return converted


def compiled(folder: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a C program beside `gru.c` in a folder."""
    (folder / "program.c").write_text(source)
    command = [host.compiler(), "-std=c99", *flags, "program.c", "-o", "program"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return subprocess.run([folder / "program"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c") / "gru"
    report = export_c(calibrated(12, 7, "int8", num_layers=2), folder, "gru")
    assert (report.path, report.name, report.format, report.differing_integers) == (folder, "gru", "c", 0)
    assert report.total_integers == 32 * 12 and report.left_out == ""
    assert report.state_bytes == 24 and report.multiply_accumulates == 3 * 12 * (7 + 12 + 12 + 12)
    return folder


def test_what_stands_in_a_folder(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {*FILES, "gru.c", "gru.h", "gru_vectors.h"}
    code = "".join(re.sub(r"/\*.*?\*/", "", (folder / name).read_text(), flags=re.S) for name in ("gru.c", "qgru.h"))
    assert not re.search(r"\b(float|double|malloc|long|math)\b", code)


def test_an_object_needs_nothing_but_to_copy_and_to_fill(folder: Path) -> None:
    subprocess.run([host.compiler(), "-std=c99", "-O2", "-c", "gru.c"], cwd=folder, check=True)
    listed = subprocess.run(["nm", "gru.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
    symbols = dict(reversed(line.split()[-2:]) for line in listed.splitlines())
    assert {name for name, kind in symbols.items() if kind == "U"} <= {"memcpy", "memset"}
    assert {name for name, kind in symbols.items() if kind == "T"} == {"gru_reset", "gru_step", "gru_run"}
    assert not [name for name, kind in symbols.items() if kind in "BbDdC"]  # no memory but the caller's


def test_its_own_test_tells_right_from_wrong(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gru"
    shutil.copytree(folder, copy)
    right = subprocess.run(["make", "test"], cwd=copy, capture_output=True, text=True)
    assert right.returncode == 0 and "gru: 0 of 384 integers differ" in right.stdout and right.stderr == ""
    vectors = copy / "gru_vectors.h"
    text = vectors.read_text()
    first = re.search(r"outputs\[\d+\] = \{\s+(-?\d+),", text)
    vectors.write_text(text[: first.start(1)] + str(int(first[1]) ^ 1) + text[first.end(1) :])
    wrong = subprocess.run(["make", "test"], cwd=copy, capture_output=True, text=True)
    assert wrong.returncode and "gru: 1 of 384 integers differ" in wrong.stdout


def test_steps_and_runs_and_no_output_are_one_sequence(folder: Path) -> None:
    source = """#include "gru.c"
#include "gru_vectors.h"
int main(void)
{
    static gru_state a, b;
    static gru_y y[GRU_STEPS * GRU_OUTPUT];
    gru_reset(&a);
    gru_run(&a, gru_inputs, GRU_STEPS, y);
    gru_reset(&b);
    gru_run(&b, gru_inputs, 5, 0);
    for (int32_t t = 5; t < GRU_STEPS; ++t)
        gru_step(&b, gru_inputs + t * GRU_INPUT, 0);
    return memcmp(&a, &b, sizeof a) || memcmp(y, gru_outputs, sizeof y);
}
"""
    assert compiled(folder, source).returncode == 0


def test_another_kernel_takes_the_place_of_ours(folder: Path) -> None:
    (folder / "own.h").write_text("""#define QGRU_DOT_8X8
static int calls;
static void qgru_dot_8x8(const int8_t *weights, const int8_t *vector, int32_t columns, int32_t sum[3])
{
    ++calls;
    for (int32_t i = 0; i < 3 * columns; ++i)
        sum[i / columns] += weights[i] * vector[i % columns];
}
""")
    source = """#define main test_main
#include "gru.c"
#include "test.c"
#undef main
int main(void)
{
    return test_main() || calls != GRU_STEPS * 2 * 24;
}
"""
    assert compiled(folder, source, '-DQGRU_DOT="own.h"').returncode == 0


def test_the_header_is_one_of_cpp_too(folder: Path) -> None:
    if shutil.which("g++"):
        command = [
            "g++",
            "-std=c++11",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fsyntax-only",
            "-x",
            "c++",
            "gru.h",
        ]
        assert subprocess.run(command, cwd=folder).returncode == 0


def test_four_bit_weights_take_half_the_flash(tmp_path: Path) -> None:
    sizes = [export_c(calibrated(64, 64, preset), tmp_path / preset).constant_bytes for preset in ("int8", "w4a8")]
    weights = 3 * 64 * 128
    assert sizes[0] > weights and sizes[1] < sizes[0] - weights // 2 + 128


@pytest.mark.parametrize("bias", (True, False))
def test_a_chain_and_its_linear_layer(tmp_path: Path, bias: bool) -> None:
    """The logits against fractions, made of the module's parameters and the states in the vectors alone."""
    whole = model(preset="int8_mixed", bias=bias)
    report = export_c(whole, tmp_path, args=X)
    assert (report.differing_integers, report.left_out) == (0, "") and report.logits_error < 0.1
    assert report.total_integers == (9 + 32) * (6 + 4)
    text = (tmp_path / "model_vectors.h").read_text()
    states, logits = (
        torch.tensor([int(q) for q in re.search(rf"{name}\[\d+\] = {{(.*?)}}", text, re.S)[1].split(",")[:-1]])
        for name in ("model_outputs", "model_expected_logits")
    )
    exponent = int(re.search(r"LOGITS_EXP \((-?\d+)\)", (tmp_path / "model.h").read_text())[1])
    n_h = whole.high.output_grid.exp2_inv
    biases = whole.head.bias.tolist() if bias else [0.0] * 4
    for row, constant, found in zip(whole.head.weight.tolist(), biases, logits.view(-1, 4).T.tolist(), strict=True):
        n = max(n for n in range(-64, 64) if round(Fraction(max(map(abs, row))) * power(n)) <= 127)
        weights = [round(Fraction(weight) * power(n)) for weight in row]
        start = round(Fraction(constant) * power(n + n_h))
        for state, logit in zip(states.view(-1, 6).tolist(), found, strict=True):
            exact = (sum(w * h for w, h in zip(weights, state, strict=True)) + start) * power(-n - n_h)
            assert logit == round(exact * power(exponent))


@pytest.mark.parametrize(
    ("flaw", "left_out"),
    [("input", "what is done to the input before low"), ("pooled", "what follows high")],
)
def test_what_is_no_part_of_a_chain_is_left_out_and_said(tmp_path: Path, flaw: str, left_out: str) -> None:
    report = export_c(model(flaw), tmp_path, args=X)
    assert (report.differing_integers, report.left_out) == (0, left_out)
    assert left_out in str(report)
    assert ("model_logits" in (tmp_path / "model.h").read_text()) == (flaw == "input")


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("between", r"layer 'high' is not fed by 'low'"),
        ("state", r"layer 'high' is given a state or a packed sequence"),
        ("twice", r"layer 'low' is called 2 times; expected once"),
    ],
)
def test_what_is_no_chain_is_refused_by_the_layers_name(tmp_path: Path, flaw: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_c(model(flaw), tmp_path / "c", args=X)
    assert not list(tmp_path.iterdir())


def test_a_model_is_left_as_it_was(tmp_path: Path) -> None:
    whole = model().train()
    whole.high.eval()
    whole.low.use_quantization = False
    export_c(whole, tmp_path, args=X)
    assert whole.training and not whole.high.training and not whole.low.use_quantization
    assert not [module for module in whole.modules() if module._forward_hooks]


def test_what_c_can_not_have_is_refused(tmp_path: Path) -> None:
    gru = calibrated(3, 2, "int8")
    for name in ("", "2gru", "a-b", "größe", None):
        with pytest.raises(ValueError, match="^name is .*; expected letters, digits and underscores, a letter first$"):
            export_c(gru, tmp_path / "c", name)
    with pytest.raises(ValueError, match=r"^args is None; expected an example input of Classifier\.forward$"):
        export_c(model(), tmp_path / "c")
    gru.adjust_quant_config("g_pre", bitwidth=17)
    with pytest.raises(ValueError, match=r"^layer 0: operator 'gate\.g_pre' has 17 bits; expected at most 16 in C$"):
        export_c(gru, tmp_path / "c")
    for exponent in (-16, 31):
        far = uniform_grids(3, 8, gate__z_out=OracleGrid(16, True, exponent))
        with pytest.raises(ValueError, match=rf"'gate\.z_out' has the exponent {exponent}, with which 1 - z"):
            export_c(build(tmp_path.parent / "far.json", [[far]])[0], tmp_path / "c")
    with pytest.raises(ValueError, match=r"^the layer has disable_quantization = True; C computes integers alone$"):
        export_c(calibrated(3, 2, {"default_config": {"disable_quantization": True}}), tmp_path / "c")
    with pytest.raises(RuntimeError, match="calibrat"):
        export_c(QuantGRU(2, 3), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "compiler", lambda: None)
    report = export_c(calibrated(3, 2, "int8"), tmp_path)
    assert report.differing_integers is None and "no C compiler is here" in str(report)


def test_a_layer_alone_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        reports = export_layers(nn.Sequential(calibrated(3, 2, "int8"), nn.Identity()), tmp_path, "c")
        assert {name: (report.path, report.name) for name, report in reports.items()} == {
            "0": (tmp_path / "0", "gru_0")
        }
    assert (tmp_path / "0" / "gru_0.h").is_file()


def test_a_run_exports_it_beside_others(tmp_path: Path) -> None:
    for _ in range(2):
        reports = stages.export(model(), tmp_path, ("float", "c"), (X,))
        assert reports["model_c"].differing_integers == 0 and (tmp_path / "model_float.onnx").is_file()
    with pytest.warns(UserWarning, match=r"can't be exported as a whole in the format 'c' .*not fed by"):
        reports = stages.export(model("between"), tmp_path, ("c",), (X,))
    assert {name: report.differing_integers for name, report in reports.items()} == {
        "model_c/low": 0,
        "model_c/high": 0,
    }
