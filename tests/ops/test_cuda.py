"""The CUDA kernels against the reference on the CPU: integers exactly, gradients within docs/numerics.md's bounds."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qgru import QuantGRU
from qgru.ops.cuda import compile as nvrtc
from tests.calibrated import calibrated
from tests.ops.conformance import loss, results
from tests.ops.serving import serving
from tests.random_gru import random_gru

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(not nvrtc.is_available(), reason="cuda-core is not installed"),
]


def takes_kernels(gru: QuantGRU, x: Tensor) -> bool:
    return serving(gru, x) == "cuda"


def compare(
    gru: QuantGRU, x: Tensor, h0: Tensor | None = None, lengths: list[int] | None = None, tolerance: float = 1e-5
) -> bool:
    """Compare a module on the GPU with the same on the CPU; return whether kernels ran."""
    on_gpu = copy.deepcopy(gru).cuda()
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, tolerance > 1e-5
    try:
        got = results(on_gpu, x.cuda(), None if h0 is None else h0.cuda(), lengths)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    want = results(gru, x, h0, lengths)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    for name, gradient in want[2].items():
        error = (got[2][name] - gradient).norm()
        assert error <= tolerance * gradient.norm(), f"{name}: {error:.3g} of {gradient.norm():.3g}"
    return takes_kernels(on_gpu, x.cuda())


@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8", "w8a16", "int16"])
@pytest.mark.parametrize(("hidden", "batch"), [(1, 1), (37, 5), (64, 9), (128, 4), (129, 3), (256, 2), (500, 3)])
def test_presets(config: str, hidden: int, batch: int) -> None:
    gru = calibrated(hidden, 19, config)
    assert compare(gru, torch.randn(8, batch, 19), torch.randn(1, batch, hidden))


@pytest.mark.parametrize(("hidden", "config"), [(700, "int8"), (1000, "int16"), (2048, "int8"), (2000, "w8a16")])
def test_hidden_sizes_of_the_largest_clusters(hidden: int, config: str) -> None:
    assert compare(calibrated(hidden, 5, config), torch.randn(4, 3, 5))


@pytest.mark.parametrize(("hidden", "batch"), [(300, 70), (1024, 100), (600, 33)])
def test_long_walks_of_clusters(hidden: int, batch: int) -> None:
    assert compare(calibrated(hidden, 5, "int8"), torch.randn(40, batch, 5), tolerance=1e-3)


@pytest.mark.parametrize("batch", [600, 1100, 2200])
def test_large_batches_take_more_rows_a_cta(batch: int) -> None:
    assert compare(calibrated(40, 6, "int8_mixed"), torch.randn(5, batch, 6))


@pytest.mark.parametrize("seed", range(36))
def test_random_grids(seed: int, tmp_path: Path) -> None:
    rng, widths = random.Random(seed), range(2, 9) if seed < 24 else range(7, 17)
    sizes = {"hidden_size": rng.choice((3, 20, 70)), "input_size": rng.choice((1, 4, 30)), "batch_first": False}
    gru, _ = random_gru(seed, tmp_path / "q.json", widths, torch.float32, **sizes)
    batch, time = rng.randint(1, 9), rng.randint(1, 9)
    lengths = [time, *(rng.randint(1, time) for _ in range(batch - 1))] if seed % 2 else None
    h0 = torch.randn(gru.num_layers * (1 + gru.bidirectional), batch, gru.hidden_size)
    compare(gru, torch.randn(time, batch, gru.input_size), h0, lengths)


def test_most_random_grids_take_the_kernels(tmp_path: Path) -> None:
    taken = 0
    for seed in range(24):
        gru, _ = random_gru(seed, tmp_path / "q.json", range(2, 9), torch.float32)
        taken += takes_kernels(gru.cuda(), torch.randn(2, 2, gru.input_size, device="cuda"))
    assert taken >= 12


@pytest.mark.parametrize("seed", range(4))
def test_what_no_kernel_takes_runs_on_the_reference(seed: int, tmp_path: Path) -> None:
    gru, _ = random_gru(seed, tmp_path / "q.json", range(17, 20), torch.float32)
    x = torch.randn(5, 3, gru.input_size)
    gru.batch_first = False
    assert not compare(gru, x)


def test_tf32_allows_a_thousandth() -> None:
    assert compare(calibrated(128, 16, "int8"), torch.randn(60, 8, 16), tolerance=1e-3)


@pytest.mark.parametrize("train", [False, True])
def test_cuda_graph_replays_the_same_integers(train: bool) -> None:
    gru = calibrated(64, 8, "int8").cuda()
    x = torch.randn(12, 6, 8, device="cuda")

    def run() -> Tensor:
        with torch.set_grad_enabled(train):
            output = gru(x)[0]
            if train:
                gru.zero_grad()
                output.sum().backward()
        return output

    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, run())


def test_compiled_model_gives_the_same_integers_and_gradients() -> None:
    gru = calibrated(40, 8, "int8", num_layers=2, bidirectional=True).cuda()
    x = torch.randn(9, 6, 8, device="cuda")
    compiled = torch.compile(gru)
    outputs, gradients = [], []
    for model in (gru, compiled):
        gru.zero_grad()
        outputs.append(model(x)[0])
        loss(outputs[-1], outputs[-1]).backward()
        gradients.append([parameter.grad.clone() for parameter in gru.parameters()])
    assert torch.equal(*outputs)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_recomputing_gives_the_same_gradient() -> None:
    gru = calibrated(24, 8, "int8").cuda()
    x = torch.randn(5, 3, 8, device="cuda", requires_grad=True)
    checkpoint(lambda t: gru(t)[0], x, use_reentrant=False).sum().backward()
    checkpointed = gru.weight_hh_l0.grad.clone()
    gru.zero_grad()
    gru(x)[0].sum().backward()
    assert torch.equal(checkpointed, gru.weight_hh_l0.grad)
