"""Histograms that a GPU counts: those of the CPU, bin for bin."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from qgru import QuantGRU
from qgru.calibration.device import DeviceHistogram, count
from qgru.calibration.histogram import Histogram
from qgru.ops.cuda import compile as nvrtc

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(not nvrtc.is_available(), reason="cuda-core is not installed"),
]


def assert_same(a: Histogram, b: Histogram) -> None:
    for name in ("keys", "counts", "sums", "squares"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.low, a.high) == (b.low, b.high)


def samples() -> list[Tensor]:
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.0, 1.0, 1.0])
    return [torch.randn(100_003), torch.zeros(777), special, torch.randn(33) * 1e-30, torch.full((1,), -7.25)]


@pytest.mark.parametrize("index", range(5))
def test_bins_moments_and_bounds_are_the_cpus(index: int) -> None:
    values = samples()[index]
    assert_same(count({"op": [values.cuda()]})["op"].to_host(), Histogram.of(values))


def test_sums_of_histograms_settle_to_the_sum() -> None:
    a, b = torch.randn(5000), torch.randn(37) * 100
    both = count({"op": [a.cuda()]})["op"] + count({"op": [b.cuda()]})["op"]
    assert_same(both.to_host(), Histogram.of(a) + Histogram.of(b))
    for copied in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert_same(copied, both.to_host())


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_an_error_that_names_the_operator(value: float) -> None:
    with pytest.raises(ValueError, match="'gate.z_pre'.*expected finite"):
        count({"input.x": [torch.ones(5).cuda()], "gate.z_pre": [torch.tensor([1.0, value, 2.0]).cuda()]})


@pytest.mark.parametrize("lengths", [None, [7, 3, 5]])
def test_a_layer_observes_on_the_gpu_until_it_is_asked(lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    gru = QuantGRU(5, 9, num_layers=2, bidirectional=True).cuda()
    gru.calibrating = True
    for _ in range(2):
        x = torch.randn(7, 3, 5, device="cuda")
        gru(x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    assert all(isinstance(h, DeviceHistogram) for cell in gru._calibration._seen for h in cell.values())
    totals = {name: histogram.total for name, histogram in gru.observations[0].items()}
    steps = 2 * (21 if lengths is None else sum(lengths))
    assert totals["matmul.Wx"] == steps * 27 and totals["gate.z_out"] == steps * 9 and gru.has_observations()


def test_a_nan_batch_leaves_what_was_seen() -> None:
    gru = QuantGRU(5, 9).cuda()
    gru.calibrating = True
    gru(torch.randn(7, 3, 5, device="cuda"))
    before = gru.observations
    with pytest.raises(ValueError, match="calibration: operator"):
        gru(torch.full((7, 3, 5), torch.nan, device="cuda"))
    assert gru.observations is not None and gru.observations[0]["input.x"].total == before[0]["input.x"].total
