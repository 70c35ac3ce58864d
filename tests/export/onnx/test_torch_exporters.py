"""Plain `torch.onnx.export` on layers whose ``export_mode`` is on, and both exporters through `export_onnx`."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.onnx import errors

from qgru import convert
from qgru.export import OnnxVerifier, export_onnx
from tests.export.models import Tagger, all_nodes, assert_same_integers, calibrated, noise, operators, run

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using the legacy:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning"
)
TIME_AND_BATCH = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}


def export(model: nn.Module, x: torch.Tensor, path, dynamo: bool, opset: int | None = None) -> None:
    if dynamo:
        options = {"dynamic_shapes": (TIME_AND_BATCH,), "verbose": False}
    else:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "a", 1: "b"}}}
    torch.onnx.export(model, (x,), path, dynamo=dynamo, opset_version=opset, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize(
    ("dynamo", "seed", "opset", "options"),
    [
        (False, 0, None, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (False, 1, 14, {"bias": False}),
        (False, 2, 18, {"num_layers": 3}),
        (True, 3, None, {"batch_first": True}),
    ],
)
def test_qdq(dynamo, seed, opset, options, tmp_path):
    gru = calibrated(seed, **options)
    gru.export_mode = True
    gru.export_format = "qdq"
    export(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", dynamo, opset)
    for time, batch in ((7, 2), (1, 1), (13, 5)):
        assert_same_integers(gru, tmp_path / "gru.onnx", noise(gru, time, batch))
    assert ("Scan" if dynamo else "Loop") in operators(tmp_path / "gru.onnx")


@pytest.mark.parametrize("dynamo", (False, True))
def test_float_is_one_standard_node_a_layer(dynamo, tmp_path):
    gru = calibrated(4, num_layers=2, bidirectional=True, hidden_size=5)
    gru.export_mode, gru.export_format = True, "float"
    export(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", dynamo)
    nodes = [node for node in onnx.load(tmp_path / "gru.onnx").graph.node if node.op_type == "GRU"]
    assert len(nodes) == 2
    for node in nodes:
        assert {a.name: a.i for a in node.attribute if a.name == "linear_before_reset"} == {"linear_before_reset": 1}
    gru.export_mode = gru.use_quantization = False
    for time, batch in ((7, 2), (1, 1)):
        x = noise(gru, time, batch)
        for found, expected in zip(run(tmp_path / "gru.onnx", x), gru(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dynamo", (False, True))
def test_the_modules_own_parameters_of_the_moment_are_exported(dynamo, tmp_path):
    gru = calibrated(5)
    others = {name: torch.randn_like(parameter) for name, parameter in gru.named_parameters()}
    torch.func.functional_call(gru, others, (noise(gru, 4, 3),))
    gru.export_mode = True
    with torch.no_grad():
        gru.weight_hh_l0.mul_(-1)
    gru.adjust_quant_config("output.h", zero_point=1, is_symmetric=False)
    export(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", dynamo)
    assert_same_integers(gru, tmp_path / "gru.onnx", noise(gru, 6, 2))


@pytest.mark.parametrize("dynamo", (False, True))
def test_inside_a_larger_model(dynamo, tmp_path):
    model = Tagger(6)
    report = export_onnx(model, torch.randn(1, 1, 3), tmp_path / "tagger.onnx", dynamo=dynamo)
    verifier = OnnxVerifier(model, tmp_path / "tagger.onnx")
    for batch, time in ((2, 7), (1, 1), (5, 13)):
        report += verifier(torch.randn(batch, time, 3))
    assert report.differing_integers == 0
    hidden = model.rnn.hidden_size
    assert report.total_integers == sum(
        2 * hidden * b * t + 4 * hidden * b for b, t in ((1, 1), (2, 7), (1, 1), (5, 13))
    )
    assert report.layers.keys() == {"rnn"}
    assert report.largest_float_difference < 1e-5
    kept = onnx.load(tmp_path / "tagger.onnx")
    assert not any(node.doc_string or node.metadata_props for node in all_nodes(kept.graph))
    assert [entry.name for entry in kept.graph.output] == ["output_0", "output_1"]


def test_hx_and_the_names_and_axes_that_the_caller_chose(tmp_path):
    model = Tagger(7)
    hx = torch.randn(4, 2, model.rnn.hidden_size)
    names = {"input_names": ["features", "state"], "output_names": ["tags", "last"]}
    axes = {"features": {1: "time"}}
    export_onnx(model, (torch.randn(2, 6, 3), hx), tmp_path / "tagger.onnx", dynamic_axes=axes, **names)
    graph = onnx.load(tmp_path / "tagger.onnx").graph
    dims = [[d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in graph.input]
    assert [entry.name for entry in graph.input] == names["input_names"]
    assert [entry.name for entry in graph.output] == names["output_names"]
    assert dims == [[2, "time", 3], list(hx.shape)]
    assert OnnxVerifier(model, tmp_path / "tagger.onnx")(torch.randn(2, 9, 3), hx).differing_integers == 0


def test_dynamic_shapes_that_the_caller_chose(tmp_path):
    gru = calibrated(8, num_layers=1)
    time = torch.export.Dim("time")
    export_onnx(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", dynamo=True, dynamic_shapes=({0: time},))
    (entry,) = onnx.load(tmp_path / "gru.onnx").graph.input
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["time", 3, gru.input_size]
    assert_same_integers(gru, tmp_path / "gru.onnx", noise(gru, 9, 3))


def test_unbatched(tmp_path):
    gru = calibrated(9, num_layers=2, bidirectional=True, batch_first=True)
    h0 = torch.randn(4, gru.hidden_size)
    export_onnx(gru, (torch.randn(6, gru.input_size), h0), tmp_path / "gru.onnx")
    assert_same_integers(gru, tmp_path / "gru.onnx", torch.randn(11, gru.input_size), h0)


def test_a_subclass_with_its_own_forward(tmp_path):
    class LastState(nn.GRU):
        def forward(self, input):
            return super().forward(input.flip(-1))[1][-1]

    gru = convert(LastState(3, 5))
    gru.calibrating = True
    gru(torch.randn(9, 4, 3))
    gru.calibrating = False
    report = export_onnx(gru, torch.randn(4, 3, 3), tmp_path / "gru.onnx")
    assert (report.differing_integers, report.total_integers) == (0, 4 * 3 * 5 + 3 * 5)
    assert report.largest_float_difference == 0


def test_a_layer_that_is_called_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = calibrated(10, input_size=3, hidden_size=3)

        def forward(self, x):
            return self.rnn(self.rnn(x)[0])[0]

    report = export_onnx(Twice(), torch.randn(4, 2, 3), tmp_path / "twice.onnx")
    assert (report.differing_integers, report.total_integers) == (0, 2 * (4 * 2 * 3 + 2 * 3))


def test_export_mode_outside_of_an_export_changes_nothing():
    gru = calibrated(11, num_layers=2)
    x = noise(gru, 5, 2)
    expected = gru(x)[0]
    gru.export_mode = True
    assert torch.equal(gru(x)[0], expected)
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    assert torch.equal(gru(packed)[0].data[:2], expected[0])
    gru.export_format = "float"
    gru.use_quantization = False
    assert torch.equal(gru(x)[0], nn.GRU.forward(gru, x)[0])


def test_plain_export_of_what_cannot_be(tmp_path):
    from qgru import QuantGRU

    gru = QuantGRU(3, 5).eval()
    gru.export_mode = True
    with pytest.raises(RuntimeError, match="QuantGRU: .*not calibrated"):
        export(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx", dynamo=False)
    with pytest.raises(errors.OnnxExporterError, match="not calibrated"):
        export(gru, torch.randn(4, 2, 3), tmp_path / "gru.onnx", dynamo=True)


@pytest.mark.parametrize("dynamo", (False, True))
def test_parametrized_weights(dynamo, tmp_path):
    gru = calibrated(13, input_size=3, hidden_size=3)
    nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    assert export_onnx(gru, noise(gru, 4, 3), tmp_path / "gru.onnx", dynamo=dynamo).differing_integers == 0
    assert_same_integers(gru, tmp_path / "gru.onnx", noise(gru, 6, 2))


@pytest.mark.parametrize("dynamo", (False, True))
@pytest.mark.parametrize("format", ("qdq", "float"))
def test_float16(dynamo, format, tmp_path):
    gru = calibrated(14, range(4, 12), num_layers=1 if dynamo else 2, hidden_size=3).half()
    h0 = torch.randn(gru.num_layers, 3, gru.hidden_size, dtype=torch.float16)
    report = export_onnx(gru, (noise(gru, 4, 3), h0), tmp_path / "gru.onnx", format, dynamo=dynamo)
    assert report.largest_float_difference < {"qdq": 1e-9, "float": 2e-3}[format]
    if format == "qdq":
        assert_same_integers(gru, tmp_path / "gru.onnx", noise(gru, 7, 2), h0[:, :2])


@pytest.mark.parametrize("dynamo", (False, True))
def test_bfloat16_is_refused_by_name(dynamo, tmp_path):
    model = Tagger(15).bfloat16()
    with pytest.raises(ValueError, match=r"^rnn: .* torch.bfloat16; expected float16, float32 or float64: call float"):
        export_onnx(model, torch.randn(2, 5, 3).bfloat16(), tmp_path / "tagger.onnx", dynamo=dynamo)
    assert list(tmp_path.iterdir()) == []


def test_no_time_steps(tmp_path):
    """As the package's docstring says, of ONNX Runtime; the process would not survive asking a ``float`` file."""
    gru = calibrated(16, input_size=3, hidden_size=5)
    x, h0 = noise(gru, 4, 2), torch.randn(1, 2, 5)
    export_onnx(gru, (x, h0), tmp_path / "gru.onnx")
    output, h_n = run(tmp_path / "gru.onnx", x[:0], h0)
    grid = gru.grids()["output.h"]
    assert output.size == 0
    assert torch.equal(torch.from_numpy(h_n).double(), grid.dequantize(grid.quantize(h0)))
    with pytest.raises(RuntimeError):
        gru(x[:0], h0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("mode", (False, True))
def test_torch_jit_trace_says_what_to_use(mode):
    gru = calibrated(17)
    gru.export_mode = mode
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace can't record .* qgru.export.export_onnx"):
        torch.jit.trace(gru, (noise(gru, 4, 3),))
    gru.use_quantization = False
    x = noise(gru, 4, 3)
    assert torch.equal(torch.jit.trace(gru, (x,))(x)[0], nn.GRU.forward(gru, x)[0])
