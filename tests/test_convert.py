"""nn.GRU to QuantGRU and back inside modules of other people: the same objects, the same behaviour."""

import copy
import io
import pickle
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence

from qgru import QuantGRU, convert, quantized_layers, revert
from tests.calibrated import quantize
from tests.calibration.raw import calibrate


class NamedGRU(nn.GRU):
    """A user's subclass, at module level so that it pickles."""

    def __init__(self, *args: object, name: str = "mine", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.name = name

    def describe(self) -> str:
        return f"{self.name}: {self.hidden_size}"


class ScaledGRU(nn.GRU):
    """Its forward surrounds nn.GRU's and changes what it returns."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        output, _ = super().forward(input * 2.0, hx)
        return output + 1.0


class StatelessGRU(ScaledGRU):
    """Two levels down, with a class attribute and a property."""

    flag = "kept"

    @property
    def double(self) -> int:  # type: ignore[override]
        return 2 * self.hidden_size


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.GRU(3, 5)
        self.listed = nn.ModuleList([nn.GRU(5, 5), nn.Linear(5, 5), nn.GRU(5, 4)])
        self.mapped = nn.ModuleDict({"a": nn.Sequential(OrderedDict(inner=nn.GRU(2, 3)))})
        self.other = nn.LSTM(3, 5)
        self.cell = nn.GRUCell(3, 5)
        self.shared_one = self.direct
        self.plain_list = [self.listed[0]]


def test_every_gru_inside_is_converted_in_place_and_nothing_else() -> None:
    model = Nested()
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert convert(model) is model
    after = dict(model.named_modules(remove_duplicate=False))
    assert modules.keys() == after.keys() and all(modules[name] is after[name] for name in modules)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameter is parameters[name]
    for name, module in after.items():
        is_gru = name in ("direct", "shared_one", "listed.0", "listed.2", "mapped.a.inner")
        assert isinstance(module, QuantGRU) == is_gru
        assert not is_gru or type(module) is QuantGRU
    assert type(model.other) is nn.LSTM and type(model.cell) is nn.GRUCell
    assert model.shared_one is model.direct and model.plain_list[0] is model.listed[0]
    assert list(quantized_layers(model)) == ["direct", "listed.0", "listed.2", "mapped.a.inner"]
    assert quantized_layers(model)["listed.0"] is model.listed[0]


def test_shared_modules_and_tied_parameters_stay_shared() -> None:
    model = Nested()
    model.listed.append(nn.GRU(5, 5))
    model.listed[3].weight_hh_l0 = model.listed[0].weight_hh_l0
    convert(model)
    assert model.listed[3].weight_hh_l0 is model.listed[0].weight_hh_l0
    model.direct.use_quantization = True
    assert model.shared_one.use_quantization is True and model.listed[0].use_quantization is False
    with torch.no_grad():
        model.listed[0].weight_hh_l0.fill_(0.25)
    x = torch.randn(4, 2, 5)
    twin = nn.GRU(5, 5)
    twin.load_state_dict(dict(model.listed[3].named_parameters()))
    assert torch.equal(model.listed[3](x)[0], twin(x)[0])


def test_the_root_itself() -> None:
    gru = nn.GRU(3, 5, 2, bidirectional=True, batch_first=True, bias=False)
    x = torch.randn(2, 4, 3)
    want = gru(x)[0]
    identity, weak = id(gru), weakref.ref(gru)
    assert convert(gru) is gru and id(gru) == identity and weak() is gru
    assert type(gru) is QuantGRU and torch.equal(gru(x)[0], want)
    assert list(quantized_layers(gru)) == [""]
    quantize(gru, x)
    assert not torch.equal(gru(x)[0], want)


def test_converting_twice_changes_nothing() -> None:
    model = convert(Nested())
    quantize(model.direct, torch.randn(6, 3, 3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    convert(convert(model))
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.direct.is_calibrated() and model.direct.use_quantization


def test_the_way_back() -> None:
    model = Nested()
    kinds = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    modules, parameters = list(model.modules()), list(model.parameters())
    x = torch.randn(4, 2, 3)
    want = model.direct(x)[0]
    convert(model)
    quantize(model.direct, torch.randn(6, 3, 3))
    assert not torch.equal(model.direct(x)[0], want)
    assert revert(model) is model
    assert [type(module) for module in model.modules()] == kinds
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys and torch.equal(model.direct(x)[0], want)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert revert(model) is model and not quantized_layers(model)
    lone = QuantGRU(3, 5)
    assert type(revert(lone)) is nn.GRU


def test_conversion_draws_no_random_numbers_and_keeps_mode_and_grad() -> None:
    model = Nested().eval().requires_grad_(False)
    state = torch.get_rng_state()
    convert(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.direct.training and not model.direct.weight_ih_l0.requires_grad


@pytest.mark.parametrize("kind", [NamedGRU, ScaledGRU, StatelessGRU])
def test_a_subclass_keeps_its_own_methods(kind: type) -> None:
    gru = kind(3, 5)
    x = torch.randn(4, 2, 3)
    want = gru(x)
    convert(gru)
    assert isinstance(gru, kind) and isinstance(gru, QuantGRU) and isinstance(gru, nn.GRU)
    got = gru(x)
    for a, b in zip(want if isinstance(want, tuple) else [want], got if isinstance(got, tuple) else [got], strict=True):
        assert torch.equal(a, b)
    assert gru.name == "mine" and gru.describe() == "mine: 5" if kind is NamedGRU else True
    quantize(gru, torch.randn(6, 3, 3))
    quantized = gru(x)
    first = quantized[0] if isinstance(quantized, tuple) else quantized
    assert not torch.equal(first, want[0] if isinstance(want, tuple) else want)
    plain = QuantGRU(3, 5)
    plain.load_state_dict(gru.state_dict(), strict=True)
    if kind is NamedGRU:
        assert torch.equal(plain(x)[0], first)
    else:
        assert torch.equal(plain(2 * x)[0] + 1, first)
    assert revert(gru) is gru and type(gru) is kind


def test_a_second_instance_of_a_subclass_is_of_the_same_class() -> None:
    a, b = convert(NamedGRU(3, 5)), convert(NamedGRU(4, 6, name="other"))
    assert type(a) is type(b) and b.describe() == "other: 6"
    assert "NamedGRU" in type(a).__name__ and "NamedGRU(3, 5)" in repr(a)


def through_torch(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch])
def test_a_converted_subclass_copies_and_pickles(way) -> None:
    gru = convert(NamedGRU(3, 5, name="kept"))
    quantize(gru, torch.randn(6, 3, 3))
    other = way(gru)
    assert type(other) is type(gru) and other.describe() == "kept: 5"
    assert other.grids() == gru.grids() and other.use_quantization
    x = torch.randn(4, 2, 3)
    assert torch.equal(other(x)[0], gru(x)[0])
    model = way(nn.Sequential(OrderedDict(a=gru, b=gru)))
    assert model.a is model.b


def test_a_class_of_a_function_s_body_copies() -> None:
    """It can't be pickled, converted or not; deepcopy needs no name."""

    class Local(nn.GRU):
        def describe(self) -> str:
            return "local"

    gru = convert(Local(3, 5))
    assert copy.deepcopy(gru).describe() == "local"


def test_hooks_survive() -> None:
    gru = nn.GRU(3, 5)
    calls = []
    gru.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    gru.register_forward_hook(lambda module, args, output: calls.append("post"))
    gru.register_state_dict_pre_hook(lambda module, prefix, keep: calls.append("state"))
    gru.weight_ih_l0.register_hook(lambda grad: calls.append("grad"))
    convert(gru)
    quantize(gru, torch.randn(6, 3, 3))
    calls.clear()
    gru(torch.randn(4, 2, 3))[0].sum().backward()
    gru.state_dict()
    assert calls == ["pre", "post", "grad", "state"]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_parametrizations_survive(kind: str, order: str) -> None:
    gru = nn.GRU(3, 5).eval()
    register = {"weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm}[kind]
    if order == "before":
        register(gru, "weight_hh_l0")
        convert(gru)
    else:
        convert(gru)
        register(gru, "weight_hh_l0")
    gru.eval()
    assert isinstance(gru, QuantGRU) and parametrize.is_parametrized(gru, "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    plain = nn.GRU(3, 5).eval()
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    plain.load_state_dict({name: getattr(gru, name).detach() for name in names})
    assert torch.equal(gru(x)[0], plain(x)[0])
    data = [(torch.randn(6, 3, 3), None, None)]
    twin = calibrate(convert(plain), data)
    calibrate(gru, data)
    gru.use_quantization = twin.use_quantization = True
    assert gru.grids() == twin.grids() and torch.equal(gru(x)[0], twin(x)[0])
    gru.train()
    gru(x)[0].sum().backward()
    originals = list(gru.parametrizations.weight_hh_l0.parameters())
    assert originals and any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in originals)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_parametrized_module_reverts(order: str) -> None:
    gru = nn.GRU(3, 5)
    plain = copy.deepcopy(parametrizations.weight_norm(copy.deepcopy(gru), "weight_hh_l0").state_dict())
    if order == "before":
        convert(parametrizations.weight_norm(gru, "weight_hh_l0"))
    else:
        parametrizations.weight_norm(convert(gru), "weight_hh_l0")
    x = torch.randn(4, 2, 3)
    want = gru(x)[0]
    revert(gru)
    assert not isinstance(gru, QuantGRU) and list(gru.state_dict()) == list(plain) and torch.equal(gru(x)[0], want)
    parametrize.remove_parametrizations(gru, "weight_hh_l0")
    assert type(gru) is nn.GRU and torch.equal(gru(x)[0], want)


@pytest.mark.parametrize("order", ["before", "after"])
def test_removing_a_parametrization_leaves_a_quantized_layer(order: str) -> None:
    """As weight norm is removed before an export."""
    gru = nn.GRU(3, 5)
    if order == "before":
        convert(parametrizations.weight_norm(gru, "weight_hh_l0"))
    else:
        parametrizations.weight_norm(convert(gru), "weight_hh_l0")
    quantize(gru, torch.randn(6, 3, 3))
    x = torch.randn(4, 2, 3)
    want = gru(x)[0]
    parametrize.remove_parametrizations(gru, "weight_hh_l0")
    assert isinstance(gru, QuantGRU) and torch.equal(gru(x)[0], want)
    assert type(revert(gru)) is nn.GRU


def test_an_optimizer_made_before_conversion_still_fits() -> None:
    model = Nested()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model)
    quantize(model.direct, torch.randn(6, 3, 3))
    before = model.direct.weight_ih_l0.detach().clone()
    model.direct(torch.randn(6, 2, 3))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(model.direct.weight_ih_l0, before)
    x = torch.randn(5, 2, 3)
    again = QuantGRU(3, 5)
    again.load_state_dict(model.direct.state_dict())
    assert torch.equal(model.direct(x)[0], again(x)[0])


def test_packed_sequences_through_a_converted_model() -> None:
    gru = convert(nn.GRU(3, 5))
    calibrate(gru, [(torch.randn(2, 4, 3), [4, 2], None)])
    gru.use_quantization = True
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    assert isinstance(gru(packed)[0], PackedSequence)


def test_nothing_to_convert_is_no_error() -> None:
    model = nn.Sequential(nn.Linear(3, 5))
    assert convert(model) is model and revert(model) is model and quantized_layers(model) == {}
