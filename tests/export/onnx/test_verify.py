"""Verification finds what differs."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qgru.export import LayerDifference, OnnxVerifier, VerificationReport, export_onnx, verify_onnx
from qgru.export.onnx.subgraph import extract
from qgru.report.onnx_stage import OnnxForward
from tests.export.models import Tagger, calibrated, noise, run

pytestmark = pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tagger and its file; tests change neither."""
    torch.manual_seed(0)
    model, path = Tagger(1), tmp_path_factory.mktemp("tagger") / "tagger.onnx"
    export_onnx(model, torch.randn(2, 5, 3), path)
    return model, path


def tampered(path, shape: tuple[int, ...]):
    """Flip the sign of the first integer weight of a shape."""
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if tuple(t.dims) == shape and t.data_type in (3, 5, 6))
    array = numpy_helper.to_array(weight).copy()
    weight.CopyFrom(numpy_helper.from_array(-np.sign(array) * np.abs(array).clip(1), weight.name))
    onnx.save(model, path)


def test_a_wrong_integer_is_counted(tmp_path):
    gru = calibrated(0, range(8, 9), input_size=3, hidden_size=7)
    x = noise(gru, 6, 4)
    export_onnx(gru, x, tmp_path / "gru.onnx")
    tampered(tmp_path / "gru.onnx", (7, 21))
    report = verify_onnx(gru, x, tmp_path / "gru.onnx")
    found = run(tmp_path / "gru.onnx", x)
    expected = sum(int((a != b.detach().numpy()).sum()) for a, b in zip(found, gru(x), strict=True))
    assert report.differing_integers == expected > 0
    assert report.total_integers == 6 * 4 * 7 + 4 * 7
    assert report.largest_float_difference > 0


def test_what_overwrites_a_layers_output_hides_nothing(tmp_path):
    class Rectified(nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.rnn, self.rectify = rnn, nn.ReLU(inplace=True)

        def forward(self, x):
            return self.rectify(self.rnn(x)[0])

    gru = calibrated(0, range(8, 9), input_size=3, hidden_size=7)
    x, reports = noise(gru, 6, 4), []
    for model in (gru, Rectified(gru)):
        export_onnx(model, x, tmp_path / "model.onnx")
        tampered(tmp_path / "model.onnx", (7, 21))
        reports.append(verify_onnx(model, x, tmp_path / "model.onnx"))
    assert reports[0].differing_integers == reports[1].differing_integers > 0


def test_a_layer_is_fed_its_own_input(exported):
    """A wrong float layer in front of a quantized one moves no integer of it."""
    model, path = copy.deepcopy(exported[0]), exported[1]
    with torch.no_grad():
        model.embed.weight.mul_(-2)
    report = verify_onnx(model, torch.randn(2, 5, 3), path)
    assert report.differing_integers == 0
    assert report.largest_float_difference > 0.01


def test_reports_add_up():
    one = VerificationReport({"a": LayerDifference(1, 10)}, 0.5)
    two = VerificationReport({"a": LayerDifference(2, 10), "b": LayerDifference(0, 7)}, 0.25)
    total = one + two
    assert total == VerificationReport({"a": LayerDifference(3, 20), "b": LayerDifference(0, 7)}, 0.5)
    assert (total.differing_integers, total.total_integers) == (3, 27)
    assert str(total) == "3 of 27 integers differ, largest float difference 0.5"


def test_a_plain_export_of_one_layer_is_verified_too(tmp_path):
    gru = calibrated(2)
    x = noise(gru, 5, 3)
    gru.export_mode = True
    torch.onnx.export(gru, (x,), tmp_path / "gru.onnx", dynamo=False)
    report = OnnxVerifier(gru, tmp_path / "gru.onnx")(x)
    assert (report.differing_integers, report.total_integers) == (0, 5 * 3 * gru.hidden_size + 3 * gru.hidden_size)


def test_a_file_that_does_not_say_where_its_layers_are(tmp_path):
    model = Tagger(3)
    model.rnn.export_mode = True
    torch.onnx.export(model, (torch.randn(2, 5, 3),), tmp_path / "tagger.onnx", dynamo=False)
    with pytest.raises(ValueError, match=r"tagger.onnx: .*expected a file that export_onnx wrote"):
        OnnxVerifier(model, tmp_path / "tagger.onnx")


def test_a_model_that_calls_other_layers(exported):
    model, path = copy.deepcopy(exported[0]), exported[1]
    verifier = OnnxVerifier(model, path)
    model.forward = lambda features: model.rnn(model.rnn(model.embed(features))[0][..., :5])
    with pytest.raises(ValueError, match="as when it was exported"):
        verifier(torch.randn(2, 5, 3))


def test_a_part_must_not_depend_on_anything_else(tmp_path):
    gru = calibrated(5)
    x = noise(gru, 5, 3)
    export_onnx(gru, x, tmp_path / "gru.onnx")
    model = onnx.load(tmp_path / "gru.onnx")
    inside = next(node.output[0] for node in model.graph.node if node.op_type == "MatMul")
    with pytest.raises(ValueError, match="is not among"):
        extract(model, [inside], ["output_1"])


def test_each_batch_runs_once(exported, monkeypatch):
    """The module, the file, and the file's part for each call of a quantized layer."""
    model, path = exported
    ran = count_runs(monkeypatch)
    handle = model.head.register_forward_hook(lambda *_: ran.append("module"))
    x = torch.randn(2, 5, 3)
    with OnnxForward(path, model) as forward:
        found = model(x)
    handle.remove()
    assert sorted(ran) == ["file", "file", "module"]
    assert [torch.equal(a, b) for a, b in zip(found, map(torch.from_numpy, run(path, x)), strict=True)] == [True, True]
    assert forward.report == verify_onnx(model, x, path)


def test_an_export_runs_the_module_once_and_a_lone_layer_once(tmp_path, monkeypatch):
    gru = calibrated(6, input_size=3)
    x = noise(gru, 5, 3)
    ran = count_runs(monkeypatch)
    computed = gru._quantized_forward
    monkeypatch.setattr(gru, "_quantized_forward", lambda *args: (ran.append("module"), computed(*args))[1])
    export_onnx(gru, x, tmp_path / "gru.onnx")
    assert sorted(ran) == ["file", "module"]


def count_runs(monkeypatch) -> list[str]:
    ran, whole = [], onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *args, **options: (ran.append("file"), whole(*args, **options))[1]
    )
    return ran
