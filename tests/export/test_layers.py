"""Each layer as a file of its own: in the folder, under a name of its own, all of them or none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qgru.export import export_layers, verify_onnx
from qgru.export.layers import file_names
from tests.export.models import ONLY_8_BITS, Tagger, calibrated


def test_layers_one_by_one(tmp_path):
    model = Tagger(6)
    stream = torch.get_rng_state()
    for format in ("qdq", "float"):
        (report,) = export_layers(model, tmp_path / format, format).values()
        assert report.path == tmp_path / format / "rnn.onnx"
        assert report.largest_float_difference < 1e-5
        assert [entry.name for entry in (tmp_path / format).iterdir()] == ["rnn.onnx"]
    assert torch.equal(torch.get_rng_state(), stream)
    report = verify_onnx(model.rnn, torch.randn(3, 8, 5), tmp_path / "qdq" / "rnn.onnx")
    assert report.differing_integers == 0 < report.total_integers


def small(seed: int) -> nn.Module:
    return calibrated(seed, ONLY_8_BITS, input_size=1, hidden_size=3)


def test_names_of_layers_stay_in_the_folder(tmp_path):
    model = nn.Module()
    evil = tmp_path / "evil"
    for seed, name in enumerate((str(evil), "../escaped", "a/b", "a_b")):
        model._modules[name] = small(seed)  # as `add_module` takes any name without a dot
    reports = export_layers(model, tmp_path / "one" / "layers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    assert [entry.name for entry in (tmp_path / "one").iterdir()] == ["layers"]
    assert sorted((tmp_path / "one" / "layers").iterdir()) == sorted(report.path for report in reports.values())
    assert list(reports) == list(model._modules)
    for name, report in reports.items():
        assert verify_onnx(model._modules[name], torch.randn(4, 2, 1), report.path).differing_integers == 0


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["rnn", "encoder.gru"], ["rnn", "encoder.gru"]),
        ([""], ["Identity"]),
        (["/tmp/evil", "..", "../x", ".hidden"], ["_tmp_evil", "_", "_x", "hidden"]),
        (["a/b", "a_b", "a:b", "a_b-2"], ["a_b-3", "a_b", "a_b-4", "a_b-2"]),
        (["GRU", "gru", "Gru"], ["GRU", "gru-2", "Gru-3"]),
    ],
)
def test_file_names(layers, names):
    assert list(file_names(layers, nn.Identity()).items()) == list(zip(layers, names, strict=True))


def test_a_layer_that_fails_leaves_the_files_of_an_earlier_run(tmp_path):
    model = nn.ModuleDict({"first": small(0), "second": small(1)})
    export_layers(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"first.onnx", "second.onnx"}
    model["first"].adjust_quant_config("output.h", bitwidth=7)
    model["second"].reset_calibration()
    with pytest.raises(RuntimeError, match="not calibrated"):
        export_layers(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
