"""The CPU kernels, every path: integers against the oracle and the reference, gradients against the reference."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from qgru import QuantGRU
from qgru.ops import backends
from qgru.ops.cpu import backend, kernels
from qgru.ops.plan import FLOAT, plan_of
from tests.calibrated import calibrated
from tests.ops.serving import serving
from tests.random_gru import assert_equal, oracle_layers, random_gru

needs_kernels = pytest.mark.skipif(backend._kernels is None, reason="no compiler built the CPU kernels")
HERE = backend.paths() if backend._kernels is not None else ()
WAYS = [(path, exact) for path in backend.PATHS for exact in (False, True)]


@pytest.fixture(params=WAYS, ids=[f"{path}-{'exact' if exact else 'fast'}" for path, exact in WAYS])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Force one path, and with "exact" int64 arithmetic where the fast kernels would serve too."""
    path, exact = request.param
    if path not in HERE:
        pytest.skip(f"this machine has no {path}")
    index = backend.PATHS.index(path)
    with mock.patch.object(backend, "path", lambda: index):
        if exact:
            with mock.patch.object(backend, "_is_fast", lambda *_: False):
                yield
        else:
            yield


def on_kernels(gru: QuantGRU, x: Tensor) -> bool:
    return serving(gru, x) == "cpu"


def is_fast(gru: QuantGRU, x: Tensor) -> bool:
    plan = plan_of(gru.grids())
    return not plan.sum_wide(x.shape[2]) and plan.carrier(x.shape[2], gru.hidden_size) == FLOAT


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget which backend serves what, and what was said about it, before and after."""
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(backends, "_served", {})
    yield


@needs_kernels
@pytest.mark.parametrize(("widths", "dtype"), [(range(1, 9), torch.float32), (range(1, 17), torch.float64)])
@pytest.mark.parametrize("seed", range(8))
def test_random_grids_give_the_integers_of_the_oracle(
    way: None, seed: int, widths: range, dtype: torch.dtype, tmp_path: Path
) -> None:
    gru, grids = random_gru(seed, tmp_path / "q.json", widths, dtype)
    gru.batch_first = True
    rng = random.Random(seed)
    lengths = None if seed % 2 else [rng.randint(1, 6) for _ in range(5)]
    x = torch.randn(5, 6, gru.input_size, dtype=dtype)
    h0 = torch.randn(gru.num_layers * (1 + gru.bidirectional), 5, gru.hidden_size, dtype=dtype) if seed % 3 else None
    with torch.no_grad():
        assert on_kernels(gru, x)
        assert_equal(gru, oracle_layers(gru, grids), x, lengths, h0)


@needs_kernels
def test_wide_grids_give_the_integers_of_the_oracle(way: None, tmp_path: Path) -> None:
    taken = 0
    for seed in range(30):
        gru, grids = random_gru(seed, tmp_path / "q.json", range(9, 33), num_layers=1)
        gru.batch_first = True
        for reverse in range(1 + gru.bidirectional):
            for gate in "zrg":
                bits = min(16, gru.get_quant_config(f"{gate}_pre", reverse=bool(reverse))["bitwidth"])
                gru.adjust_quant_config(f"{gate}_pre", bits, reverse=bool(reverse))
        x = torch.randn(3, 5, gru.input_size, dtype=torch.float64)
        with torch.no_grad():
            if not on_kernels(gru, x):
                continue
            taken += 1
            output, h_n = gru(x)
            with backends.forced("reference"):
                want, want_h = gru(x)
        assert torch.equal(output, want) and torch.equal(h_n, want_h)
    assert taken >= 15


@needs_kernels
def test_enough_random_grids_are_fast(tmp_path: Path) -> None:
    fast = 0
    for seed in range(8):
        gru, _ = random_gru(seed, tmp_path / "q.json", range(1, 9), torch.float32)
        fast += is_fast(gru, torch.randn(6, 5, gru.input_size))
    assert fast >= 5


@needs_kernels
def test_threads_change_no_integer(way: None) -> None:
    gru, x = calibrated(20, 6, "int8"), torch.randn(7, 13, 6)
    output = gru(x)[0]
    torch.set_num_threads(3)
    try:
        assert torch.equal(gru(x)[0], output)
    finally:
        torch.set_num_threads(1)


@needs_kernels
def test_weights_that_are_stored_transposed_get_the_same_gradients(way: None) -> None:
    gru, x = calibrated(9, 5, "int8"), torch.randn(4, 3, 5)
    gradients = []
    for _ in range(2):
        gru.zero_grad()
        gru(x)[0].sum().backward()
        gradients.append([parameter.grad.clone() for parameter in gru.parameters()])
        for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
            weight.data = weight.data.t().contiguous().t()
    assert all(map(torch.equal, *gradients))


@needs_kernels
def test_memory_that_runs_out_is_an_error(way: None) -> None:
    call = kernels.Backward(time=1, batch=1, hidden=2**22, parts=1)  # R alone takes 192 TiB
    with pytest.raises(RuntimeError, match="the cpu kernels: out of memory"):
        backend._kernels.backward(call, backend.path())


@needs_kernels
def test_a_library_of_other_sources_is_not_called() -> None:
    with mock.patch.object(kernels, "Forward", kernels.Backward):
        assert backend._loaded() == (None, f"{backend.LIBRARY} was built from other sources")


def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_text("no library")
    with mock.patch.object(backend, "LIBRARY", broken):
        found, problem = backend._loaded()
    assert found is None and str(broken) in problem
    with mock.patch.multiple(backend, _kernels=None, _problem=problem):
        assert backend.Cpu().describe() == f"they can't be loaded: {problem}"


@needs_kernels
def test_what_differs_in_the_last_bit_of_a_float64_is_left_to_the_reference(fresh_choice: None) -> None:
    gru, x = calibrated(4, 3, "int16"), torch.randn(2, 1, 3)
    assert on_kernels(gru, x) and on_kernels(gru, x.bfloat16())
    with pytest.warns(UserWarning, match="their gradients are float32, and float64 is asked for"):
        assert not on_kernels(gru, x.double())
    with torch.no_grad():
        assert on_kernels(gru, x.double())
    gru.adjust_quant_config("z_pre", 17)
    with pytest.warns(UserWarning, match="gate.z_pre has 17 bits, and only up to 16 there is a table"):
        assert not on_kernels(gru, x)


@needs_kernels
def test_a_path_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGRU_CPU_PATH", "mmx")
    backend.path.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"QGRU_CPU_PATH is 'mmx'; expected one of plain"):
            backend.path()
    finally:
        backend.path.cache_clear()


def test_without_the_kernels_the_reference_serves_and_says_so_once(fresh_choice: None) -> None:
    gru, x = calibrated(9, 5, "int8"), torch.randn(4, 3, 5)
    want = gru(x)[0]
    with mock.patch.object(backend, "_kernels", None):
        backends._served.clear()
        with pytest.warns(UserWarning, match="slowly; the cpu kernels can't: they were not built"):
            output = gru(x)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gru(torch.randn(5, 3, 5))
    assert torch.equal(output, want)
