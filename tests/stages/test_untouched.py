"""A call of a module leaves it nothing to remember."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.regression import MeanSquaredError

import qgru
from qgru.stages import calibrate
from qgru.stages.untouched import untouched

from .models import Model, batches


class Remembering(Model):
    """Counts and collects what it is called with, in every way that modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))
        self.norm = nn.BatchNorm1d(6)
        self.metric = MeanSquaredError()
        self.outputs: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}
        self.steps, self.cache = 0, None

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(self.norm(x))
        self.metric(output, torch.zeros_like(output))
        self.calls += 1
        self.last = output[0]
        self.outputs.append(output)
        self.by_name["output"] = output
        self.steps += 1
        self.cache, self.new = output, output
        return output


def seen(model: Remembering) -> list[object]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return [state, list(model.outputs), dict(model.by_name), model.steps, model.cache, hasattr(model, "new")]


@pytest.mark.parametrize("how", ["untouched", "calibrate"])
def test_buffers_metrics_and_attributes_are_left_as_they_were(how: str) -> None:
    model = qgru.convert(Remembering())
    buffers, collected = dict(model.named_buffers()), model.outputs
    before = seen(model)
    if how == "calibrate":
        calibrate(model, batches(2))
        assert model.gru.has_observations()
    else:
        with untouched(model):
            model(batches()[0][0])
            assert model.steps == model.calls == model.metric.update_count == 1
    after = seen(model)
    assert before[1:] == after[1:]
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert all(value is buffers[name] for name, value in model.named_buffers()) and model.outputs is collected
    assert model.metric.update_count == 0 and float(model.metric.total) == 0


def test_modules_that_learn_their_shape_from_the_call_keep_it() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with untouched(model):
        model(torch.randn(4, 5))
    assert model[0].in_features == 5 and model[1].num_features == 3
    assert model(torch.randn(4, 5)).shape == (4, 3)


def test_tensors_that_nobody_can_write_into_are_left_alone() -> None:
    model = Model()
    model.register_buffer("expanded", torch.zeros(1).expand(3))
    model.register_buffer("sparse", torch.zeros(3).to_sparse())
    with torch.inference_mode():
        model.register_buffer("inference", torch.zeros(3))
    with untouched(model):
        model(batches()[0][0])
    assert model.expanded.tolist() == model.inference.tolist() == [0, 0, 0]


def test_scripted_modules_go_on_working() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))))
    with untouched(model):
        model(torch.randn(4, 3))
    assert model(torch.randn(4, 3)).shape == (4, 3)
