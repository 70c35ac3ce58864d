"""Measured errors: the integers are those of a calibration, and the module stays as it is."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qgru
from qgru.direction import Direction
from qgru.schema import OPTIONAL, BitwidthConfig, OperatorConfig
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import SEARCHED, config_of
from tests.search.models import Classifier, Structured, batches, observed, uniform


def finalized(module: nn.Module, config: BitwidthConfig) -> nn.Module:
    """The module with a configuration as users give it one."""
    module = copy.deepcopy(module).eval()
    for layer in qgru.quantized_layers(module).values():
        layer.load_bitwidth_config(config)
        layer.finalize_calibration()
        layer.use_quantization = True
    return module


def random_config(seed: int) -> BitwidthConfig:
    rng = random.Random(seed)
    operators = {}
    for name, known in uniform(8).operators.items():
        is_symmetric = name.startswith("weight") or rng.random() < 0.7
        operators[name] = OperatorConfig(rng.randint(2, 12), is_symmetric, known.is_unsigned)
    if rng.random() < 0.5:
        operators[OPTIONAL] = OperatorConfig(rng.randint(2, 12))
    return BitwidthConfig(operators)


@pytest.mark.parametrize("method", ["sqnr", "minmax", "percentile"])
def test_grids_and_outputs_are_those_of_a_calibration(method: str) -> None:
    module = observed(Classifier())
    for layer in qgru.quantized_layers(module).values():
        layer.calibration_method = method
    outputs: list[Tensor] = []

    def call(own: nn.Module, batch: Any) -> Tensor:
        outputs.append(own(batch[0]))
        grids.append([layer._quant_state().cells for layer in qgru.quantized_layers(own).values()])
        return outputs[-1]

    grids: list[Any] = []
    evaluator = Evaluator(module, batches(), call)
    for seed in range(6):
        config = random_config(seed)
        outputs.clear(), grids.clear()
        evaluator.error(config)
        evaluator.error(random_config(seed + 1))  # what is kept of others does no harm
        del outputs[2:], grids[2:]
        expected = finalized(module, config)
        assert grids[0] == [layer._quant_state().cells for layer in qgru.quantized_layers(expected).values()]
        for batch, output in zip(batches(), outputs, strict=True):
            assert torch.equal(output, expected(batch[0]))


def test_the_error_is_relative_to_the_variance_of_the_float_outputs() -> None:
    module = observed(Classifier())
    quantized = finalized(module, uniform(5))
    float_outputs = torch.cat([qgru.revert(copy.deepcopy(module)).eval()(x) for x, _ in batches()]).detach()
    outputs = torch.cat([quantized(x) for x, _ in batches()]).detach()
    expected = (outputs - float_outputs).double().square().mean() / float_outputs.double().var(correction=0)
    assert Evaluator(module, batches()).error(uniform(5)) == pytest.approx(float(expected), rel=1e-5)


def test_of_logits_it_is_the_divergence_from_the_float_distribution() -> None:
    module = observed(Classifier())
    quantized = finalized(module, uniform(5))
    plain = qgru.revert(copy.deepcopy(module)).eval()
    p, q = (torch.cat([own(x) for x, _ in batches()]).detach().double().log_softmax(-1) for own in (plain, quantized))
    expected = nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert Evaluator(module, batches(), logits=True).error(uniform(5)) == pytest.approx(float(expected), rel=1e-6)


def test_every_floating_tensor_of_a_structure_counts_relative_to_itself() -> None:
    data = [torch.randn(6, 5, 3), torch.randn(6, 5, 3)]
    module = observed(Structured(), data)
    quantized, plain = finalized(module, uniform(4)), qgru.revert(copy.deepcopy(module)).eval()
    errors = []
    for pick in (lambda out: out["states"].data.detach(), lambda out: out["rest"][0].detach()):
        actual, expected = (torch.cat([pick(m(x)).flatten() for x in data]).double() for m in (quantized, plain))
        errors.append(float((actual - expected).square().mean() / expected.var(correction=0)))
    assert errors[0] != errors[1]
    assert Evaluator(module, data).error(uniform(4)) == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_one_place_alone() -> None:
    """A width in one direction is what `adjust_quant_config` on a calibrated layer gives there."""
    module = observed(Classifier())
    evaluator = Evaluator(module, batches())
    place = ("second", Direction(1, True))
    assert place in evaluator.places and len(evaluator.places) == 5
    error = evaluator.error(uniform(12), {place: uniform(12, output__h=3)})
    expected = finalized(module, uniform(12))
    state = finalized(module, uniform(12, output__h=3)).second._quant_state()
    cells = [*expected.second._quant_state().cells[:3], state.cells[3]]
    expected.second._write(type(state)(True, tuple(cells)))
    plain = qgru.revert(copy.deepcopy(module)).eval()
    actual, wanted = (torch.cat([m(x) for x, _ in batches()]).detach().double() for m in (expected, plain))
    assert error == pytest.approx(float((actual - wanted).square().mean() / wanted.var(correction=0)), rel=1e-5)


def everything(module: nn.Module) -> list[Any]:
    layers = qgru.quantized_layers(module).values()
    known = [(layer._quant_state(), layer.calibrating, layer._calibration.is_stale) for layer in layers]
    tensors = [(name, tensor.clone()) for name, tensor in module.state_dict().items()]
    modes = [child.training for child in module.modules()]
    return [known, tensors, modes, torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def same(before: list[Any], after: list[Any]) -> bool:
    tensors = all(n == m and torch.equal(a, b) for (n, a), (m, b) in zip(before[1], after[1], strict=True))
    return tensors and before[:1] + before[2:] == after[:1] + after[2:]


def test_the_module_is_untouched_even_where_a_call_fails() -> None:
    module = observed(Classifier()).train()
    module.first.eval()
    module.first.finalize_calibration()
    before, calls = everything(module), 0
    evaluator = Evaluator(module, batches(), lambda own, batch: own(batch[0] + torch.rand(()) + random.random()))
    evaluator.error(uniform(4))
    assert same(before, everything(module))

    def fails(own: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyError("gone")
        return own(batch[0])

    failing = Evaluator(module, batches(), fails)
    with pytest.raises(RuntimeError, match="KeyError: 'gone'"):
        failing.error(uniform(4))
    assert same(before, everything(module))


def test_draws_in_the_forward_are_the_same_for_all() -> None:
    module = observed(Classifier())
    noisy = Evaluator(module, batches(), lambda own, batch: own(batch[0]) + torch.randn(()) + np.random.rand())
    assert noisy.error(uniform(16, gate__z_pre=12, gate__r_pre=12, gate__g_pre=12)) < 1e-4


def test_it_grows_as_widths_shrink() -> None:
    evaluator = Evaluator(observed(Classifier()), batches())
    errors = [evaluator.error(uniform(width)) for width in (12, 8, 5, 3)]
    assert errors == sorted(errors) and errors[0] < 1e-3 < errors[-1]


def test_what_can_not_be_measured_is_named() -> None:
    module = observed(Classifier())
    with pytest.raises(ValueError, match="Linear holds no quantized layer"):
        Evaluator(nn.Linear(3, 3), batches())
    with pytest.raises(ValueError, match="the layer 'first' has observed no data"):
        Evaluator(qgru.convert(Classifier()), batches())
    with pytest.raises(ValueError, match="batches is empty"):
        Evaluator(module, [])
    for useless in (lambda own, batch: None, lambda own, batch: own(batch[0]).sum()):
        with pytest.raises(ValueError, match="returns no floating tensor but single numbers"):
            Evaluator(module, batches(), useless)
    with pytest.raises(ValueError, match="don't vary"):
        Evaluator(module, batches(), lambda own, batch: 0 * own(batch[0]))
    with pytest.raises(ValueError, match="of the float module is NaN or infinite"):
        Evaluator(module, batches(), lambda own, batch: own(batch[0]) / 0)
    with pytest.raises(ValueError, match="of the quantized module is NaN or infinite"):
        Evaluator(module, batches(), lambda own, batch: own(batch[0]) / (not own.first.use_quantization)).error(
            config_of(dict.fromkeys(SEARCHED, 8))
        )
