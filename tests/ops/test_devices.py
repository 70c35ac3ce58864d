"""The reference gives the same integers on every device."""

import copy
import random
from pathlib import Path

import pytest
import torch

from qgru import QuantGRU
from tests.random_gru import random_gru

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU: no GPU here")


@needs_gpu
@pytest.mark.parametrize("seed", range(12))
def test_gpu_equals_cpu(seed: int, tmp_path: Path) -> None:
    gru, _ = random_gru(seed, tmp_path / "q.json", dtype=torch.float32, batch_first=True)
    rng = random.Random(seed)
    x = torch.randn(rng.randint(1, 5), rng.randint(1, 9), gru.input_size)
    output, h_n = gru(x)
    output.square().sum().backward()
    on_gpu = copy.deepcopy(gru).cuda()
    on_gpu.zero_grad()
    gpu_output, gpu_h_n = on_gpu(x.cuda())
    gpu_output.square().sum().backward()
    assert torch.equal(gpu_output.cpu(), output) and torch.equal(gpu_h_n.cpu(), h_n)
    for own, other in zip(gru.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), own.grad, rtol=1e-5, atol=1e-5 * float(own.grad.abs().max()))


@needs_gpu
def test_calibration_on_a_gpu_sees_what_it_sees_on_the_cpu() -> None:
    gru = QuantGRU(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(11, 7, 3)
    on_gpu = copy.deepcopy(gru).cuda()
    for layer, data in ((gru, x), (on_gpu, x.cuda())):
        layer.calibrating = True
        layer(data)
        layer.finalize_calibration()
    for own, other in zip(gru.observations, on_gpu.observations, strict=True):
        for name in own:
            assert own[name].total == other[name].total
            assert own[name].high == pytest.approx(other[name].high, rel=1e-2, abs=1e-2)
