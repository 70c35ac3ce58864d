"""`export_onnx`: metadata, atomic writing, errors, and a model that is left as it was."""

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import qgru
from qgru import QuantGRU, quant_params
from qgru.export import export_layers, export_onnx
from tests.export.models import Tagger, assert_same_integers, calibrated, noise, operators


def switches(model: nn.Module) -> list:
    grus = [m for m in model.modules() if isinstance(m, QuantGRU)]
    modes = [(g.export_mode, g.export_format, g.use_quantization, g.calibrating) for g in grus]
    return [modes, [m.training for m in model.modules()], sorted(vars(model))]


def test_metadata_holds_the_grids(tmp_path):
    model = Tagger(0)
    export_onnx(model, torch.randn(2, 5, 3), tmp_path / "tagger.onnx")
    metadata = onnxruntime.InferenceSession(tmp_path / "tagger.onnx").get_modelmeta().custom_metadata_map
    assert metadata["qgru.format"] == "qdq"
    content = json.loads(metadata["qgru.quant_params"])
    written = quant_params.to_mapping(model.rnn, model.rnn.ensure_calibrated().cells)
    assert content == {"rnn": json.loads(json.dumps(written))}
    (tmp_path / "rnn.json").write_text(json.dumps(content["rnn"]))
    fresh = QuantGRU(5, model.rnn.hidden_size, num_layers=2, bidirectional=True, batch_first=True)
    fresh.load_quant_params(tmp_path / "rnn.json")
    assert fresh.grids(1, True) == model.rnn.grids(1, True)


@pytest.mark.parametrize("dynamo", (False, True))
def test_nothing_is_changed_by_a_failed_export(dynamo, tmp_path, monkeypatch):
    model = Tagger(1).train()
    model.head.eval()
    model.rnn.export_format = "float"
    before, stream = switches(model), torch.get_rng_state()
    path = tmp_path / "tagger.onnx"
    path.write_text("the last good file")

    def fail(*_args, **_kwargs):
        raise OSError("no")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(OSError, match="no"):
        export_onnx(model, torch.ones(2, 5, 3), path, dynamo=dynamo)
    assert switches(model) == before
    assert path.read_text() == "the last good file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tagger.onnx"]
    monkeypatch.undo()
    if not dynamo:
        export_onnx(model, torch.ones(2, 5, 3), path)
        assert switches(model) == before
        assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("step", ("os.replace", "pathlib.Path.write_bytes", "onnx.checker.check_model"))
@pytest.mark.parametrize("earlier", (False, True))
def test_a_failed_write_or_check_leaves_what_was_there(step, earlier, tmp_path, monkeypatch):
    gru, path = calibrated(2), tmp_path / "gru.onnx"
    if earlier:
        path.write_text("the last good file")

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(gru, noise(gru, 3, 2), path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == earlier * [
        ("gru.onnx", "the last good file")
    ]


def test_an_uncalibrated_layer_is_named(tmp_path):
    model = Tagger(3)
    model.rnn.reset_calibration()
    with pytest.raises(RuntimeError, match=r"^rnn: .*not calibrated"):
        export_onnx(model, torch.randn(2, 5, 3), tmp_path / "tagger.onnx")
    report = export_onnx(model, torch.randn(2, 5, 3), tmp_path / "tagger.onnx", format="float")
    assert (report.total_integers, report.format) == (0, "float")
    assert report.largest_float_difference < 1e-5
    assert "GRU" in operators(tmp_path / "tagger.onnx")


def test_data_that_was_seen_is_finalized(tmp_path):
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    gru(torch.randn(9, 4, 3))
    gru.calibrating = False
    export_onnx(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx")
    assert gru.is_calibrated()
    gru.use_quantization = True
    assert_same_integers(gru, tmp_path / "gru.onnx", torch.randn(8, 3, 3))


def test_a_layer_that_its_configuration_keeps_in_float(tmp_path):
    gru = QuantGRU(3, 5)
    gru.load_bitwidth_config({"default_config": {"disable_quantization": True}, "operator_config": {}})
    report = export_onnx(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx")
    assert (report.total_integers, report.layers) == (0, {})
    assert "QuantizeLinear" not in operators(tmp_path / "gru.onnx")


def test_packed_input_is_named(tmp_path):
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = calibrated(4, input_size=3)

        def forward(self, x, lengths):
            return self.encoder(pack_padded_sequence(x, lengths))[1]

    with pytest.raises(TypeError, match="^encoder: .*PackedSequence.*unpacked"):
        export_onnx(Packs(), (torch.randn(4, 2, 3), torch.tensor([4, 2])), tmp_path / "packs.onnx")
    reports = export_layers(Packs(), tmp_path / "layers")
    assert reports["encoder"].differing_integers == 0
    assert (tmp_path / "layers" / "encoder.onnx").exists()


def test_more_than_float64_holds_is_refused_by_name(tmp_path):
    gru = QuantGRU(3, 5)
    gru.set_all_bitwidth(32)
    gru.calibrating = True
    gru(torch.randn(9, 4, 3))
    gru.calibrating = False
    with pytest.warns(UserWarning, match="exactness domain"):
        gru.finalize_calibration()
    with pytest.raises(ValueError, match=r"QuantGRU: layer 0: matmul.Wx .* bits; .* 53"):
        export_onnx(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "'tflite'; expected one of float, qdq"),
        ({"opset_version": 12}, "opset_version is 12; expected at least 13"),
        ({"opset_version": 17, "dynamo": True}, "opset_version is 17; expected at least 18"),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(calibrated(5), torch.randn(4, 2, 3), tmp_path / "gru.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_imported_only_when_used():
    code = (
        "import sys, qgru; qgru.export.export_onnx, qgru.export.verify_onnx\n"
        "print([name for name in ('onnx', 'onnxruntime', 'onnxscript') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("missing", ("onnx", "onnxruntime"))
def test_a_missing_package_says_what_to_install(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    gru = calibrated(7)
    with pytest.raises(ImportError, match=rf"{missing} is not installed.*pip install qgru\[onnx\]"):
        qgru.export.export_onnx(gru, noise(gru, 3, 2), tmp_path / "gru.onnx")
