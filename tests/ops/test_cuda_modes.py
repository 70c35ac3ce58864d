"""Two bidirectional layers, trained in every way that a model runs on GPUs, give the reference's integers."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qgru import QuantGRU
from qgru.ops.cuda import compile as nvrtc
from tests.calibrated import calibrated

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(not nvrtc.is_available(), reason="cuda-core is not installed"),
]
STEPS = 3


def model() -> QuantGRU:
    return calibrated(40, 8, "int8_mixed", num_layers=2, bidirectional=True)


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(9, 6, 8) for _ in range(STEPS)]


def train_step(gru: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=False)
    output = gru(x)[0]
    output.float().square().mean().backward()
    optimizer.step()
    return output.detach()


def check(gru: QuantGRU, before: QuantGRU, run: tuple[Tensor, Tensor, dict[str, Tensor]]) -> None:
    """The weights moved, and the last forward gave what the reference gives for the weights that it read."""
    x, output, weights = run
    reference = copy.deepcopy(before).cpu()
    reference.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(output.float().cpu(), reference(x.float().cpu())[0])
    assert not torch.equal(gru.weight_hh_l1.cpu(), before.weight_hh_l1.cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_and_compile(dtype: torch.dtype | None, compiled: bool) -> None:
    before = model()
    gru = copy.deepcopy(before).cuda()
    callable_ = torch.compile(gru) if compiled else gru
    optimizer = torch.optim.SGD(gru.parameters(), 0.1)
    for x in batches():
        weights = {name: value.cpu().clone() for name, value in gru.state_dict().items()}
        x = x.cuda() if dtype is None else x.cuda().to(dtype)
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            output = train_step(callable_, optimizer, x)
    check(gru, before, (x, output, weights))


def test_cuda_graph_of_a_training_step() -> None:
    before = model()
    gru = copy.deepcopy(before).cuda()
    optimizer = torch.optim.SGD(gru.parameters(), 0.1)
    static = torch.empty(9, 6, 8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for x in batches():
            static.copy_(x)
            train_step(gru, optimizer, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train_step(gru, optimizer, static)
    for x in batches():
        static.copy_(x)
        weights = {name: value.cpu().clone() for name, value in gru.state_dict().items()}
        graph.replay()
        output = captured.clone()
    check(gru, before, (x, output, weights))


def _ddp_rank(rank: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    torch.cuda.set_device(rank)
    before = model()
    gru = copy.deepcopy(before).cuda()
    parallel = DistributedDataParallel(gru, device_ids=[rank])
    optimizer = torch.optim.SGD(gru.parameters(), 0.1)
    for x in batches():
        weights = {name: value.cpu().clone() for name, value in gru.state_dict().items()}
        own = x.cuda()[:, 3 * rank : 3 * rank + 3]
        output = train_step(parallel, optimizer, own)
    check(gru, before, (own, output, weights))
    torch.save({name: value.cpu() for name, value in gru.state_dict().items()}, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 GPUs here")
def test_two_gpus(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_ddp_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
