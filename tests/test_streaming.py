"""Streams in steps and in chunks are the whole sequence, and prepared weights are never those of another moment."""

from __future__ import annotations

import copy
import pickle
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from qgru import QuantGRU
from qgru.ops import backends
from qgru.ops.cpu import backend as cpu
from qgru.ops.cpu import kernels
from tests.calibrated import calibrated
from tests.random_gru import random_gru

needs_kernels = pytest.mark.skipif(cpu._kernels is None, reason="no compiler built the CPU kernels")
X = torch.linspace(-2, 2, 60).view(4, 3, 5)


def stream(gru: QuantGRU, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output and the last state of steps; x: (time, ...)."""
    outputs = []
    for x_t in x:
        y_t, state = gru.step(x_t, state)
        outputs.append(y_t)
    return torch.stack(outputs), state


def assert_streams(gru: QuantGRU, x: Tensor = X) -> None:
    """Steps give what a copy of the layer, which has prepared nothing, gives on the reference."""
    with torch.no_grad():
        output, state = stream(gru, x)
        with backends.forced("reference"):
            want, want_state = copy.deepcopy(gru)(x)
    assert torch.equal(output, want) and torch.equal(state, want_state)


def is_prepared(gru: QuantGRU) -> bool:
    return gru._steps.prepared is not None


@needs_kernels
@pytest.mark.parametrize("config", ["int8", "int8_mixed", "w4a8", "w8a16", "int16"])
def test_presets_stream_on_prepared_weights(config: str) -> None:
    gru = calibrated(7, 5, config, num_layers=2)
    assert_streams(gru)
    assert is_prepared(gru)


def cut(rng: random.Random, x: Tensor) -> list[Tensor]:
    """A sequence in chunks of any length."""
    places = sorted(rng.sample(range(1, len(x)), rng.randint(1, len(x) - 1)))
    return [x[start:end] for start, end in zip([0, *places], [*places, len(x)], strict=True)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("seed", range(12))
def test_integers_in_chunks_are_those_of_the_whole(seed: int, backend: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    widths = (range(2, 9), range(2, 17), range(9, 33))[seed % 3]
    gru, _ = random_gru(seed, tmp_path / "q.json", widths, torch.float32, bidirectional=False, batch_first=False)
    grids = [gru.grids(layer)["output.h"] for layer in range(gru.num_layers)]
    x_q = torch.randint(gru.input_grid.qmin, gru.input_grid.qmax + 1, (9, 2, gru.input_size))
    state = torch.stack([torch.randint(grid.qmin, grid.qmax + 1, (2, gru.hidden_size)) for grid in grids])
    with backends.forced("reference"):
        want, want_state = gru.forward_integers(x_q, state)
    outputs = []
    with backends.forced(backend, "reference"):
        for chunk in cut(rng, x_q):
            output, state = gru.forward_integers(chunk, state)
            outputs.append(output)
    assert torch.equal(torch.cat(outputs), want) and torch.equal(state, want_state)


def test_shapes_whatever_batch_first_is() -> None:
    for batch_first in (False, True):
        gru = calibrated(7, 5, "int8", num_layers=2, batch_first=batch_first)
        with torch.no_grad():
            output, h_n = gru(X.transpose(0, 1) if batch_first else X)
            steps, state = stream(gru, X)
            assert torch.equal(steps, output.transpose(0, 1) if batch_first else output) and torch.equal(state, h_n)
            alone, alone_state = stream(gru, X[:, 1])
            assert torch.equal(alone, steps[:, 1]) and torch.equal(alone_state, state[:, 1])
            strided, strided_state = gru.step(
                X[0].t().contiguous().t(), state.transpose(0, 1).contiguous().transpose(0, 1)
            )
            assert torch.equal(strided, gru.step(X[0], state)[0]) and strided_state.shape == state.shape
            assert gru.step(X[0, :0])[0].shape == (0, 7)


def test_a_state_is_no_part_of_the_output() -> None:
    gru = calibrated(7, 5, "int8")
    with torch.no_grad():
        y, state = gru.step(X[0])
        kept = state.clone()
        y.zero_()
        gru.step(X[1], state)
    assert torch.equal(state, kept)


def test_float_steps_are_nn_gru() -> None:
    gru = QuantGRU(5, 7, num_layers=2, batch_first=True)
    want, want_state = nn.GRU.forward(gru, X.transpose(0, 1))
    output, state = stream(gru, X)
    assert torch.allclose(output.transpose(0, 1), want, atol=1e-6) and torch.allclose(state, want_state, atol=1e-6)
    assert not is_prepared(gru)


@needs_kernels
def test_weights_are_prepared_once() -> None:
    gru, x_q = calibrated(7, 5, "int8", num_layers=2), torch.randint(-128, 128, (4, 3, 5))
    prepared, original = [], kernels.Kernels.prepare

    def counted(*arguments: object) -> int:
        prepared.append(arguments)
        return original(*arguments)

    with torch.no_grad(), mock.patch.object(kernels.Kernels, "prepare", counted):
        stream(gru, X)
        assert len(prepared) == 2  # one a layer
        state = None
        for chunk in x_q:
            _, state = gru.forward_integers(chunk.unsqueeze(0), state)
        gru(X)
        assert len(prepared) == 2
        gru.weight_hh_l1.mul_(0.5)
        stream(gru, X)
        assert len(prepared) == 3


@needs_kernels
def test_zeros_for_missing_biases_live_as_long_as_what_looks_at_them() -> None:
    gru, zeros = calibrated(7, 5, "int8", bias=False), []
    cells = gru._cells

    def watched() -> list:
        found = cells()
        zeros.append(weakref.ref(found[0][2]))
        return found

    with torch.no_grad(), mock.patch.object(gru, "_cells", watched):
        gru.step(X[0])
        assert is_prepared(gru) and zeros[0]() is not None
    assert_streams(gru)


def in_place(gru: QuantGRU) -> None:
    with torch.no_grad():
        gru.weight_hh_l0.mul_(0.5)


def one_element_through_data(gru: QuantGRU) -> None:
    gru.weight_ih_l0.data[3, 2] += 0.5


def all_signs_through_data(gru: QuantGRU) -> None:
    for parameter in gru.parameters():
        parameter.data.neg_()


def rows_swapped_through_numpy(gru: QuantGRU) -> None:
    rows = gru.weight_hh_l0.detach().numpy()
    rows[[1, 4]] = rows[[4, 1]]


def bias_through_data(gru: QuantGRU) -> None:
    gru.bias_hh_l0.data[-1] = 1.0


def data_assigned_twice(gru: QuantGRU) -> None:
    for factor in (0.3, 2.0):  # the second may get the memory of the first
        gru.weight_hh_l0.data = gru.weight_hh_l0.data * factor


def data_turned_in_place(gru: QuantGRU) -> None:
    gru.weight_hh_l0.data = gru.weight_hh_l0.data.view(7, 21).t()


def another_parameter(gru: QuantGRU) -> None:
    gru.weight_ih_l0 = nn.Parameter(gru.weight_ih_l0.detach() * 0.5)


def shared_memory_written(gru: QuantGRU) -> None:
    gru.share_memory()
    gru.weight_hh_l0.data.mul_(0.5)


def loaded(gru: QuantGRU) -> None:
    gru.load_state_dict(calibrated(7, 5, "int8_mixed", method="percentile").state_dict())


def loaded_by_assignment(gru: QuantGRU) -> None:
    gru.load_state_dict(calibrated(7, 5, "w4a8").state_dict(), assign=True)


def moved(gru: QuantGRU) -> None:
    in_place(gru.double())
    gru.float()


def another_grid(gru: QuantGRU) -> None:
    gru.adjust_quant_config("h", 5)


def fresh_weight_grids(gru: QuantGRU) -> None:
    gru.weight_hh_l0.data.mul_(4)
    gru.refresh_weight_grids()


def a_grid_in_the_buffers(gru: QuantGRU) -> None:
    other = copy.deepcopy(gru)
    other.adjust_quant_config("h", 5)
    gru.quant_grids.data.copy_(other.quant_grids)


def new_observations(gru: QuantGRU) -> None:
    gru.calibrating = True
    gru.step(20 * X[0])
    gru.calibrating = False


def a_parametrization(gru: QuantGRU) -> None:
    parametrizations.weight_norm(gru, "weight_hh_l0")
    with torch.no_grad():
        gru.parametrizations.weight_hh_l0.original0.mul_(0.5)


CHANGES = [
    in_place, one_element_through_data, all_signs_through_data, rows_swapped_through_numpy, bias_through_data,
    data_assigned_twice, data_turned_in_place, another_parameter, shared_memory_written, loaded, loaded_by_assignment,
    moved, another_grid, fresh_weight_grids, a_grid_in_the_buffers, new_observations, a_parametrization,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_has_changed_is_seen_at_the_next_step(change: Callable[[QuantGRU], None]) -> None:
    gru = calibrated(7, 5, "int8")
    with torch.no_grad():
        before, _ = stream(gru, X)
    assert is_prepared(gru) or cpu._kernels is None
    change(gru)
    assert_streams(gru)
    with torch.no_grad():
        assert not torch.equal(stream(gru, X)[0], before)


@needs_kernels
def test_every_word_of_every_tensor_is_looked_at() -> None:
    gru = calibrated(7, 5, "int8", num_layers=2)
    with torch.no_grad():
        gru.step(X[0])
        for tensor in (*gru.parameters(), gru.quant_flags, gru.quant_grids, gru.quant_weight_exp2_inv):
            flat = tensor.data.view(-1)
            for place in {0, len(flat) // 2, len(flat) - 1}:
                stepper, old = gru._steps.prepared.stepper, flat[place].clone()
                flat[place] += 1
                assert stepper(X[0], None) is None
                flat[place] = old
                assert stepper(X[0], None) is not None


@needs_kernels
def test_large_weights_are_looked_at_in_turns() -> None:
    gru = calibrated(260, 300, "int8")
    x, late = torch.randn(3, 2, 300), gru.weight_hh_l0.data
    with torch.no_grad():
        stream(gru, x)
        assert not gru._steps.prepared.stepper.sees_all
        for write in (lambda: gru.weight_hh_l0.mul_(0.9), lambda: late.mul_(0.9), lambda: gru.bias_hh_l0.add_(0.1)):
            write()
            assert_streams(gru, x)
        late[-1, -1] = 3.0
        stream(gru, x)  # 600,000 weights: within three steps
        assert_streams(gru, x)


def test_a_gradient_goes_through_steps() -> None:
    gru = calibrated(7, 5, "int8", num_layers=2)
    gradients = []
    for run in (lambda: stream(gru, X)[0], lambda: gru(X)[0]):
        gru.zero_grad()
        run().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in gru.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        stream(gru, X)
    x = X[0].clone().requires_grad_()
    gru.requires_grad_(False).step(x)[0].sum().backward()
    assert bool(x.grad.abs().sum() > 0)
    gru.step(X[0])
    assert is_prepared(gru) or cpu._kernels is None  # nothing here asks for a gradient


def test_a_nan_parameter_is_visible() -> None:
    gru = calibrated(7, 5, "int8", num_layers=2)
    with torch.no_grad():
        gru.step(X[0])
        gru.weight_ih_l1[0, 0] = torch.nan
        assert all(bool(tensor.isnan().all()) for tensor in gru.step(X[0]))


def test_hooks_dropout_and_inference_mode() -> None:
    gru, seen = calibrated(7, 5, "int8", num_layers=2, dropout=0.5), []
    with torch.inference_mode():
        gru.eval().step(X[0])
        assert torch.equal(stream(gru, X)[0], gru(X)[0])
        assert not torch.equal(gru.train().step(X[0])[0], gru.eval().step(X[0])[0])
        handle = gru.register_forward_hook(lambda *_: seen.append(1))
        gru.step(X[0])
        handle.remove()
        gru.step(X[0])
    assert seen == [1]


def test_copies_prepare_their_own() -> None:
    gru = calibrated(7, 5, "int8")
    with torch.no_grad():
        stream(gru, X)
        for other in (copy.deepcopy(gru), copy.copy(gru), pickle.loads(pickle.dumps(gru))):
            assert not is_prepared(other)
            assert_streams(other)
    other.weight_hh_l0.data.mul_(0.5)
    assert_streams(gru)
    assert_streams(other)


def test_backends_that_are_forced_run_steps_too() -> None:
    gru = calibrated(7, 5, "int8")
    with torch.no_grad():
        gru.step(X[0])
        with backends.forced("reference"), mock.patch.object(type(backends.named("reference")), "forward") as forward:
            forward.side_effect = RuntimeError("the reference ran")
            with pytest.raises(RuntimeError, match="the reference ran"):
                gru.step(X[0])
    assert_streams(gru)


def test_threads_step_one_layer() -> None:
    gru, found = calibrated(20, 5, "int8"), {}
    x = torch.randn(200, 1, 5)

    def run(index: int) -> None:
        with torch.no_grad():
            found[index] = stream(gru, x + index)[0]

    threads = [Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert all(torch.equal(found[index], gru(x + index)[0]) for index in range(3))


def test_bad_arguments() -> None:
    gru = calibrated(7, 5, "int8")
    with pytest.raises(ValueError, match="step: the layer is bidirectional"):
        calibrated(7, 5, "int8", bidirectional=True).step(X[0])
    with pytest.raises(ValueError, match=r"step: x_t has 3 dimensions; expected \(batch, input\) or \(input,\)"):
        gru.step(X)
    with pytest.raises(TypeError, match="step: x_t is a list; expected a tensor"):
        gru.step([0.0] * 5)
    with pytest.raises(RuntimeError, match="must be equal to input_size|size"):
        gru.step(X[0, :, :4])
    with pytest.raises(RuntimeError, match="hidden"):
        gru.step(X[0], torch.zeros(1, 2, 7))
    with pytest.raises(ValueError, match=r"dtype|float64"):
        gru.step(X[0].double())
