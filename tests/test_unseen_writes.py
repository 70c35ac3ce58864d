"""Writes to the state's buffers that leave no trace on the tensor are seen at the next call."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from qgru import QuantGRU
from qgru import buffers as state_buffers
from qgru.state import BUFFERS
from tests.calibrated import calibrated

X = torch.linspace(-1, 1, 60).view(5, 4, 3)


def buffers(gru: QuantGRU) -> list[Tensor]:
    return [getattr(gru, name) for name in BUFFERS]


def blank_twin(gru: QuantGRU) -> QuantGRU:
    """The same parameters, in float, already called once."""
    twin = QuantGRU(3, 4)
    twin.load_state_dict({name: value for name, value in gru.state_dict().items() if name not in BUFFERS})
    assert not torch.equal(twin(X)[0], gru(X)[0])
    return twin


def through_numpy(own: Tensor, new: Tensor) -> None:
    own.numpy()[...] = new.numpy()


def data_copy(own: Tensor, new: Tensor) -> None:
    own.data.copy_(new)


def data_assigned(own: Tensor, new: Tensor) -> None:
    own.data = new.clone()


@pytest.mark.parametrize("write", [through_numpy, data_copy, data_assigned])
def test_writes_past_the_version_counter(write: Callable[[Tensor, Tensor], None]) -> None:
    gru = calibrated(4, 3, "int8")
    twin = blank_twin(gru)
    for own, new in zip(buffers(twin), buffers(gru), strict=True):
        write(own, new)
    assert twin.is_calibrated() and torch.equal(twin(X)[0], gru(X)[0]) and twin.grids() == gru.grids()
    twin.quant_flags.data[0] = 0
    assert twin.use_quantization is False and torch.equal(twin(X)[0], nn.GRU.forward(twin, X)[0])


def test_a_state_that_is_none_is_an_error_that_names_it() -> None:
    gru = calibrated(4, 3, "int8")
    gru.quant_grids.data[0, 3, 0] = 40
    with pytest.raises(ValueError, match=r"quant_grids, layer 0: operator 'weight\.R': bitwidth is 40; expected"):
        gru(X)
    gru.load_state_dict(calibrated(4, 3, "int8").state_dict())
    assert gru.is_calibrated() and gru(X)[0].isfinite().all()


def _switch_on(shared: list[Tensor], new: list[Tensor]) -> None:
    for own, value in zip(shared, new, strict=True):
        own.copy_(value)


def test_a_writer_in_another_process() -> None:
    gru = calibrated(4, 3, "int8")
    twin = blank_twin(gru).share_memory()
    twin(X)
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_switch_on, args=(buffers(twin), buffers(gru)))
    writer.start()
    writer.join()
    assert writer.exitcode == 0 and torch.equal(twin(X)[0], gru(X)[0])


def _receive(rank: int, store: str, results: dict) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    source = calibrated(4, 3, "int8")
    gru = source if rank == 0 else blank_twin(source)
    gru(X)
    for buffer in buffers(gru):
        dist.broadcast(buffer, 0)
    results[rank] = gru(X)[0].detach().tolist(), gru.is_calibrated()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_broadcast_under_gloo(tmp_path: Path) -> None:
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_receive, (str(tmp_path / "store"), results), nprocs=2)
        assert results[0] == results[1] == (calibrated(4, 3, "int8")(X)[0].tolist(), True)


@pytest.fixture(params=["pretended", "cuda"])
def accelerated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> QuantGRU:
    """A layer whose buffers are not compared, for that would have every call wait for the device."""
    if request.param == "pretended":
        monkeypatch.setattr(state_buffers, "_is_compared", lambda tensor: False)
    elif not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return calibrated(4, 3, "int8").to("cpu" if request.param == "pretended" else request.param)


CAUSES = {
    "mode": lambda gru: gru.eval(),
    "mode of the whole": lambda gru: nn.Sequential(gru).eval(),
    "move": lambda gru: nn.Sequential(gru).double(),
    "load": lambda gru: gru.load_state_dict(gru.state_dict()),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_on_an_accelerator_they_are_read_again_for_cause(accelerated: QuantGRU, cause: str) -> None:
    accelerated.quant_flags.data[0] = 0
    assert accelerated.use_quantization is True
    CAUSES[cause](accelerated)
    assert accelerated.use_quantization is False
    accelerated.quant_flags[0] = 1
    assert accelerated.use_quantization is True


def test_on_an_accelerator_a_loop_reads_nothing(accelerated: QuantGRU, monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.to(accelerated.weight_ih_l0.device)
    accelerated(x)
    monkeypatch.setattr(state_buffers, "decode", None)
    for _ in range(3):
        accelerated.train()
        accelerated(x)[0].sum().backward()
