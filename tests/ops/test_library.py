"""The ops as tracers see them: shapes without values, and what a trace leaves behind: nothing."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from qgru import QuantGRU
from qgru.ops import backends
from tests.calibrated import calibrated
from tests.ops.serving import op_arguments, serving


def test_import_neither_initializes_cuda_nor_loads_the_compiler() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import qgru; new = set(sys.modules) - before;"
        "print(torch.cuda.is_initialized(), any(name.startswith('cuda.') for name in new))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def on_meta(gru: QuantGRU, backend: str) -> tuple:
    """The arguments of the op for (7, 3, 6), without values."""
    h0 = torch.randn(1 + gru.bidirectional, 3, 10)
    arguments = op_arguments(gru, torch.randn(7, 3, 6), h0, backend)
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), arguments)


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_fake_kernels_give_the_shapes(backend: str, bidirectional: bool) -> None:
    directions = 1 + bidirectional
    x, h0, parameters, *rest = on_meta(calibrated(10, 6, "int8", bidirectional=bidirectional), backend)
    inferred = (*rest[:-2], 0, backend)
    states, last, workspace = torch.ops.qgru.gru_layer(x, h0, parameters, *inferred)
    assert (states.shape, last.shape, workspace.numel()) == ((7, 3, 10 * directions), (directions, 3, 10), 0)
    dx, dh, gradients = torch.ops.qgru.gru_layer_backward(states, None, workspace, True, x, h0, parameters, *rest)
    assert (dx.shape, dh.shape) == (x.shape, h0.shape)
    assert [g.shape for g in gradients] == [parameter.shape for parameter in parameters]


def test_a_device_without_kernels_is_left_to_the_reference() -> None:
    assert serving(calibrated(10, 6, "int8"), torch.randn(3, 2, 6, device="meta")) == "reference"


def is_untouched(gru: QuantGRU, x: Tensor) -> None:
    """Assert that `gru` gives real integers and real gradients, those of the reference."""
    outputs = []
    for name in ("cpu", "reference"):
        gru.zero_grad()
        with backends.forced(name):
            output = gru(x)[0]
            output.square().sum().backward()
        assert not isinstance(output, FakeTensor)
        assert not any(isinstance(p.grad, FakeTensor) for p in gru.parameters())
        outputs.append(output)
    assert torch.equal(*outputs) and not bool(outputs[0].isnan().any())


def test_torch_export_as_a_layers_first_call_leaves_nothing_behind() -> None:
    gru, x = calibrated(10, 6, "int8").eval(), torch.randn(7, 3, 6)
    program = torch.export.export(gru, (x,), strict=False)
    is_untouched(gru, x)
    assert torch.equal(program.module()(x)[0], gru(x)[0])


@pytest.mark.parametrize("train", [False, True])
def test_a_fake_pass_as_a_layers_first_call_leaves_nothing_behind(train: bool) -> None:
    gru, x = calibrated(11, 6, "int8"), torch.randn(7, 3, 6)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.set_grad_enabled(train), mode:
        output = gru(mode.from_tensor(x))[0]
    assert isinstance(output, FakeTensor) and output.shape == (7, 3, 11)
    is_untouched(gru, x)


def test_more_lengths_than_are_remembered_read_the_exponents_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_KEPT", 5)
    gru = calibrated(12, 6, "int8")
    (cell,) = gru._quant_state().prepared
    kept = cell.exponents(torch.empty(0))
    with mock.patch.object(type(cell), "_exponent_rows", side_effect=AssertionError("read again")):
        for length in range(1, 20):
            assert gru(torch.zeros(length, 2, 6))[0].shape == (length, 2, 12)
            assert len(backends._served) <= 5
    assert cell.exponents(torch.empty(0)) is kept


def test_a_layer_compiles_whole_where_only_the_reference_serves() -> None:
    """Opaque to the tracer as kernels are: one node, however many time steps."""
    gru, x = calibrated(9, 5, "int8", num_layers=2), torch.randn(4, 3, 5)
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with backends.forced("reference"), torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(gru, backend=record, fullgraph=True)
        assert torch.equal(compiled(x)[0], gru(x)[0])
    calls = [node for node in graphs[0].graph.nodes if node.target is torch.ops.qgru.gru_layer]
    assert len(graphs) == 1 and len(calls) == 2
