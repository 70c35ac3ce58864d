"""What every backend has to pass: the reference's integers, its gradients, and a backend's manners.

A check is a function of a `Subject`; `tests/ops/test_conformance.py` runs all of them on every backend there is.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from qgru import QuantGRU
from qgru.ops import backends
from qgru.ops.backends import Backend
from qgru.ops.call import Gradient, LayerCall
from qgru.ops.stack import _shape
from tests.calibrated import calibrated
from tests.ops.serving import cells_of, op_arguments
from tests.random_gru import random_gru

PRESETS = ("int8", "int8_mixed", "w4a8", "w8a16", "int16")
CHECKS: list[Callable[[Subject, Path], None]] = []


@dataclass(frozen=True)
class Subject:
    """A backend, and where its tensors are."""

    backend: Backend
    device: str

    def takes(self, gru: QuantGRU, x: Tensor) -> bool:
        """Tell whether it serves a layer and its input, both on the CPU."""
        with backends.forced(self.backend), torch.no_grad():
            try:
                backends.serving(
                    _shape(x.to(self.device), [p for cell in gru._cells() for p in cell]),
                    [cell.plan for cell in cells_of(gru)],
                    1 + gru.bidirectional,
                )
            except RuntimeError:
                return False
        return True

    def moved(self, gru: QuantGRU) -> QuantGRU:
        """Return a copy of a layer on the device."""
        return copy.deepcopy(gru).to(self.device)


def check(function: Callable[[Subject, Path], None]) -> Callable[[Subject, Path], None]:
    CHECKS.append(function)
    return function


def loss(*results: Tensor) -> Tensor:
    """A sum with weights that depend on the place alone."""
    total = 0
    for tensor in results:
        place = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape)
        total = total + (tensor.double() * torch.cos(1.7 * place)).sum()
    return total


Results = tuple[Tensor, Tensor, dict[str, Tensor]]


def results(gru: QuantGRU, x: Tensor, h0: Tensor | None = None, lengths: list[int] | None = None) -> Results:
    """Output, last state and gradients, on the CPU; x: (time, batch, input)."""
    gru.zero_grad()
    x = x.clone().requires_grad_()
    h0 = None if h0 is None else h0.clone().requires_grad_()
    fed = x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, h_n = gru(fed, h0)
    output = output.data if isinstance(output, PackedSequence) else output
    loss(output, h_n).backward()
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in gru.named_parameters()}}
    if h0 is not None:
        gradients["h0"] = h0.grad
    return output.detach().cpu(), h_n.detach().cpu(), {name: g.double().cpu() for name, g in gradients.items()}


def compare(
    subject: Subject, gru: QuantGRU, x: Tensor, h0: Tensor | None = None, lengths: list[int] | None = None
) -> None:
    """Training and inference give the reference's integers, and training its gradients."""
    own, moved = subject.moved(gru), [None if t is None else t.to(subject.device) for t in (x, h0)]
    fed = moved[0] if lengths is None else pack_padded_sequence(moved[0], torch.tensor(lengths), enforce_sorted=False)
    with backends.forced(subject.backend), without_tf32():
        output, h_n, gradients = results(own, *moved, lengths)
        with torch.no_grad():
            inferred, inferred_h = own(fed, moved[1])
    with backends.forced("reference"):
        want, want_h, want_gradients = results(gru, x, h0, lengths)
    inferred = inferred.data if isinstance(inferred, PackedSequence) else inferred
    for got in ((output, h_n), (inferred.cpu(), inferred_h.cpu())):
        assert_same(got[0], want)
        assert_same(got[1], want_h)
    assert_close(gradients, want_gradients)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Ask for gradients as exact as float32's."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def assert_same(got: Tensor, want: Tensor) -> None:
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(9.0), want.nan_to_num(9.0))


def assert_close(gradients: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Gradients of float32 against float64's: docs/numerics.md allows 1e-5 of the norm."""
    for name, gradient in want.items():
        if bool(gradient.isfinite().all()):
            error = (gradients[name] - gradient).norm()
            assert error <= 1e-5 * gradient.norm(), f"{name}: {error:.3g} of {gradient.norm():.3g}"


@check
def presets_of_odd_sizes(subject: Subject, _: Path) -> None:
    for config in PRESETS:
        for inputs, hidden, batch, time in ((1, 1, 1, 1), (7, 37, 11, 9), (33, 64, 3, 5)):
            gru, x = calibrated(hidden, inputs, config), torch.randn(batch, time, inputs).transpose(0, 1)
            assert subject.takes(gru, x)
            compare(subject, gru, x, torch.randn(1, batch, hidden))


@check
def random_grids(subject: Subject, folder: Path) -> None:
    taken = 0
    for seed, widths in enumerate([range(1, 9)] * 4 + [range(1, 17)] * 3 + [range(9, 33)] * 3):
        rng, settings = random.Random(seed), {"batch_first": False, "hidden_size": (1, 5, 20)[seed % 3]}
        gru, _ = random_gru(seed, folder / "q.json", widths, torch.float32, **settings)
        batch, time = rng.randint(1, 9), rng.randint(1, 9)
        lengths = [time, *(rng.randint(1, time) for _ in range(batch - 1))] if seed % 2 else None
        h0 = torch.randn(gru.num_layers * (1 + gru.bidirectional), batch, gru.hidden_size) if seed % 3 else None
        x = torch.randn(time, batch, gru.input_size)
        if subject.takes(gru, x):
            taken += 1
            compare(subject, gru, x, h0, lengths)
    assert taken >= 4


@check
def layers_directions_and_padding(subject: Subject, _: Path) -> None:
    for bidirectional in (False, True):
        gru = calibrated(19, 5, "int8_mixed", num_layers=2, bidirectional=bidirectional)
        compare(subject, gru, torch.randn(9, 5, 5), torch.randn(2 + 2 * bidirectional, 5, 19), [4, 9, 1, 7, 9])
        compare(subject, gru, torch.randn(9, 5, 5))


@check
def dropout_between_layers(subject: Subject, _: Path) -> None:
    found = []
    gru = subject.moved(calibrated(20, 6, "int8", num_layers=2, dropout=0.4, bidirectional=True).train())
    x = torch.randn(7, 4, 6).to(subject.device)
    for backend in (subject.backend, backends.named("reference")):
        torch.manual_seed(3)
        with backends.forced(backend), without_tf32():
            found.append(results(gru, x))
    assert_same(found[0][0], found[1][0])
    assert_close(found[0][2], found[1][2])


@check
def nan_stays_in_its_row_from_there_on(subject: Subject, _: Path) -> None:
    gru = calibrated(20, 6, "int8", num_layers=2, bidirectional=True)
    x, h0 = torch.randn(7, 5, 6), torch.randn(4, 5, 20)
    x[3, 1, 2], x[1, 4, 0], h0[0, 2, 3] = torch.nan, torch.inf, torch.nan
    compare(subject, gru, x, h0)


@check
def gradients_of_a_lost_row_are_zero(subject: Subject, _: Path) -> None:
    gru, x = subject.moved(calibrated(20, 4, "int8")), torch.randn(6, 3, 4).to(subject.device)
    x[2, 1, 0] = torch.nan
    with backends.forced(subject.backend):
        gru(x)[0].nan_to_num().sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in gru.parameters())


@check
def a_nan_parameter_makes_everything_nan(subject: Subject, _: Path) -> None:
    for layers in (1, 2):
        gru = subject.moved(calibrated(20, 4, "int8", num_layers=layers))
        with torch.no_grad(), backends.forced(subject.backend):
            getattr(gru, f"weight_hh_l{layers - 1}")[0, 0] = torch.nan
            assert all(bool(t.isnan().all()) for t in gru(torch.randn(6, 3, 4).to(subject.device)))


@check
def gradients_that_overflowed_stay_visible(subject: Subject, _: Path) -> None:
    gru = subject.moved(calibrated(20, 4, "int8"))
    with backends.forced(subject.backend):
        output, _ = gru(torch.randn(6, 3, 4).to(subject.device))
        output.backward(torch.full_like(output, torch.inf))
    assert not bool(torch.isfinite(gru.weight_hh_l0.grad).all())


@check
def half_inputs_under_autocast(subject: Subject, _: Path) -> None:
    gru, x = subject.moved(calibrated(20, 6, "int8")), torch.randn(7, 4, 6).to(subject.device)
    for dtype in (torch.bfloat16, torch.float16):
        with backends.forced(subject.backend):
            with torch.autocast(subject.device, dtype):
                output = gru(x.to(dtype))[0]
            assert_same(output, gru(x.to(dtype).float())[0])


@check
def an_output_changed_in_place_trains(subject: Subject, _: Path) -> None:
    """What the caller does to the output in place is the caller's: `nn.GRU` on a CPU allows it, too."""
    for bidirectional in (False, True):
        gru, gradients = calibrated(20, 6, "int8", bidirectional=bidirectional), []
        x = torch.randn(7, 4, 6)
        for backend, inplace in ((subject.backend, True), (backends.named("reference"), False)):
            model = subject.moved(gru)
            with backends.forced(backend), without_tf32():
                output, h_n = model(x.to(subject.device))
                loss(nn.ReLU(inplace=inplace)(output), h_n.mul_(1) if inplace else h_n).backward()
            gradients.append({name: p.grad.double().cpu() for name, p in model.named_parameters()})
        assert_close(*gradients)


@check
def a_backward_repeats_to_the_bit(subject: Subject, _: Path) -> None:
    gru = subject.moved(calibrated(40, 8, "int8"))
    with backends.forced(subject.backend):
        output, _ = gru(torch.randn(30, 13, 8).to(subject.device))
        output.sum().backward(retain_graph=True)
        first = [parameter.grad.clone() for parameter in gru.parameters()]
        gru.zero_grad()
        output.sum().backward()
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(first, gru.parameters(), strict=True))


@check
def integers_in_and_out(subject: Subject, _: Path) -> None:
    for config in ("int8", "int16"):
        gru = calibrated(20, 8, config, num_layers=2, bidirectional=True)
        grid = gru.input_grid
        x_q = torch.randint(grid.qmin, grid.qmax + 1, (9, 6, 8), dtype=torch.int32)
        with backends.forced("reference"):
            want = gru.forward_integers(x_q)
        with backends.forced(subject.backend):
            got = subject.moved(gru).forward_integers(x_q.to(subject.device))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@check
def a_stream_in_steps_and_in_chunks(subject: Subject, folder: Path) -> None:
    taken = 0
    for seed, widths in enumerate([range(1, 9)] * 4 + [range(1, 17)] * 4):
        settings = {"batch_first": False, "bidirectional": False, "hidden_size": (5, 37)[seed % 2]}
        gru, _ = random_gru(seed, folder / "q.json", widths, torch.float32, **settings)
        batch, x = 1 + seed % 3, torch.randn(7, 1 + seed % 3, gru.input_size)
        state = None if seed % 2 else torch.randn(gru.num_layers, batch, gru.hidden_size)
        if seed % 4 == 3:
            x[3, -1, 0], x[2, 0, 0] = torch.nan, torch.inf
        if not subject.takes(gru, x):
            continue
        taken += 1
        with torch.no_grad(), backends.forced("reference"):
            want, want_h = gru(x, state)
        gru, x, state = subject.moved(gru), x.to(subject.device), state if state is None else state.to(subject.device)
        with torch.no_grad(), backends.forced(subject.backend):
            start, steps = state, []
            for x_t in x:
                y_t, state = gru.step(x_t, state)
                steps.append(y_t)
            first, middle = gru(x[:2], start)
            rest, last = gru(x[2:], middle)
        assert_same(torch.stack(steps).cpu(), want)
        assert_same(torch.cat((first, rest)).cpu(), want)
        for end in (state, last):
            assert_same(end.cpu(), want_h)
    assert taken >= 4


@check
def the_op_has_a_schema_a_fake_and_a_gradient(subject: Subject, _: Path) -> None:
    for config in ("int8", "w8a16"):
        gru = subject.moved(calibrated(9, 5, config))
        x, h0 = (torch.randn(size).to(subject.device) for size in ((4, 3, 5), (1, 3, 9)))
        with backends.forced(subject.backend):
            arguments = op_arguments(gru, x.requires_grad_(), h0.requires_grad_(), subject.backend.name)
            checks = ("test_schema", "test_autograd_registration", "test_faketensor")
            torch.library.opcheck(torch.ops.qgru.gru_layer.default, arguments, test_utils=checks)


@check
def a_traced_layer_trains_alike(subject: Subject, _: Path) -> None:
    """Through the ops, as a compiled graph calls them."""
    gru, x = subject.moved(calibrated(9, 5, "int8", bidirectional=True)), torch.randn(4, 3, 5).to(subject.device)
    with backends.forced(subject.backend), torch._dynamo.config.patch(allow_rnn=True):
        want = results(gru, x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of experimental support for RNNs
            got = results(torch.compile(gru, backend="aot_eager"), x)
    assert_same(got[0], want[0])
    renamed = {name.removeprefix("_orig_mod."): gradient for name, gradient in got[2].items()}
    assert_close(renamed, want[2])


@check
def what_it_says_of_types_and_memory_is_so(subject: Subject, _: Path) -> None:
    for config in PRESETS:
        gru = subject.moved(calibrated(9, 5, config, bidirectional=True))
        cells, x = cells_of(gru), torch.randn(4, 3, 5).to(subject.device)
        parameters = [parameter for cell in gru._cells() for parameter in cell]
        exponents, plans = [cell.exponents(x) for cell in cells], [cell.plan for cell in cells]
        for gradient in Gradient:
            call = LayerCall(x, None, parameters, exponents, None, None, plans, int(gradient))
            with torch.no_grad():
                states, last, workspace = subject.backend.forward(call)
            assert states.dtype == last.dtype == subject.backend.state_dtype(plans)
            length = subject.backend.workspace_bytes(call.shape, plans, int(gradient)) if gradient else 0
            assert workspace.dtype == torch.uint8 and workspace.numel() == length
            assert (states.shape, last.shape) == ((4, 3, 18), (2, 3, 9))
