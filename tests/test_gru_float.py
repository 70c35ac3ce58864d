"""In float mode the layer is `nn.GRU`: the same bits out, the same gradients, the same errors."""

import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from qgru import QuantGRU
from tests.calibrated import quantize

OPTIONS = [
    {"num_layers": layers, "bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "dropout": dropout}
    for layers, bias, batch_first, bidirectional, dropout in itertools.product(
        (1, 3), (True, False), (True, False), (True, False), (0.0, 0.4)
    )
    if layers > 1 or not dropout
]


def pair(input_size: int = 3, hidden_size: int = 5, **options: object) -> tuple[nn.GRU, QuantGRU]:
    """A plain and a quantizable GRU, each built from the same random state."""
    torch.manual_seed(7)
    plain = nn.GRU(input_size, hidden_size, **options)
    torch.manual_seed(7)
    return plain, QuantGRU(input_size, hidden_size, **options)


def flat(result: tuple) -> list[Tensor]:
    output, h_n = result
    return (
        [*(part for part in output if part is not None), h_n] if isinstance(output, PackedSequence) else [output, h_n]
    )


def assert_same(plain: nn.GRU, quant: QuantGRU, *arguments: object) -> None:
    """Same outputs, types and gradients of inputs and parameters, bit for bit and with the same dropout masks."""
    results, gradients = [], []
    for module in (plain, quant):
        module.zero_grad()
        inputs = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
        torch.manual_seed(3)
        result = module(*inputs)
        tensors = flat(result)
        sum((t.double() * (i + 1)).square().sum() for i, t in enumerate(tensors) if t.is_floating_point()).backward()
        results.append(tensors)
        gradients.append([a.grad for a in [*inputs, *module.parameters()] if isinstance(a, Tensor)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_every_option(options: dict) -> None:
    plain, quant = pair(**options)
    assert isinstance(quant, nn.GRU)
    for (name, a), (other, b) in zip(plain.named_parameters(), quant.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)
    directions = options["num_layers"] * (1 + options["bidirectional"])
    x, h0 = torch.randn(4, 4, 3), torch.randn(directions, 4, 5)
    assert_same(plain, quant, x)
    assert_same(plain, quant, x, h0)
    assert_same(plain, quant, x, None)
    assert_same(plain, quant, x[0], h0[:, 0])
    packed = pack_padded_sequence(x, torch.tensor([1, 4, 2, 4]), options["batch_first"], enforce_sorted=False)
    assert_same(plain, quant, packed, h0)
    assert_same(plain, quant, pack_sequence([torch.randn(n, 3) for n in (5, 3, 1)]), h0[:, :3])
    plain.eval(), quant.eval()
    assert_same(plain, quant, x, h0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    plain, quant = pair(num_layers=2, bidirectional=True, dtype=dtype)
    assert_same(plain, quant, torch.randn(6, 2, 3, dtype=dtype), torch.randn(4, 2, 5, dtype=dtype))


def test_autocast() -> None:
    plain, quant = pair(num_layers=2)
    x = torch.randn(6, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(plain(x), quant(x), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


def test_the_constructor_takes_nn_gru_s_arguments() -> None:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    values = (3, 5, 2, False, True, 0.25, True)
    plain = nn.GRU(*values)
    for module in (QuantGRU(*values), QuantGRU(**dict(zip(names, values, strict=True)))):
        assert [getattr(module, name) for name in names] == [getattr(plain, name) for name in names]
    assert QuantGRU(3, 5).use_quantization is False and QuantGRU(3, 5, use_quantization=True).use_quantization is True
    assert QuantGRU(3, 5, device="meta").weight_ih_l0.is_meta


def test_building_one_takes_as_much_randomness_as_nn_gru() -> None:
    torch.manual_seed(0)
    nn.GRU(3, 5, 2)
    after = torch.rand(3)
    torch.manual_seed(0)
    QuantGRU(3, 5, 2)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m(torch.randn(4, 2, 4)),
        lambda m: m(torch.randn(4, 2, 3, 1)),
        lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 3, 5)),
        lambda m: m(torch.randn(4, 3), torch.randn(1, 3, 5)),
        lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 2, 6)),
        lambda m: m(torch.randn(4, 2, 3).double()),
    ],
)
def test_wrong_input_fails_as_in_nn_gru(wrong: Callable) -> None:
    errors = []
    for module in pair():
        with pytest.raises(Exception) as error:  # noqa: B017, PT011
            wrong(module)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"hidden_size": 0}, {"dropout": 1.5}, {"num_layers": "2"}])
def test_wrong_arguments_fail_as_in_nn_gru(options: dict) -> None:
    errors = []
    for kind in (nn.GRU, QuantGRU):
        with pytest.raises((ValueError, TypeError)) as error:
            kind(**{"input_size": 3, "hidden_size": 5, **options})
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_float_checkpoints_load_strictly_and_leave_it_uncalibrated() -> None:
    plain, quant = pair(num_layers=2, bidirectional=True)
    other = nn.GRU(3, 5, 2, bidirectional=True)
    quantize(quant, torch.randn(6, 2, 3))
    assert quant.is_calibrated()
    result = quant.load_state_dict(other.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert not quant.is_calibrated()
    quant.use_quantization = False
    assert_same(other, quant, torch.randn(4, 2, 3))
    with pytest.raises(RuntimeError, match="weight_ih_l0"):
        quant.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "weight_ih_l0"}, strict=True)
    with pytest.raises(RuntimeError, match="stranger"):
        quant.load_state_dict({**plain.state_dict(), "stranger": torch.zeros(1)}, strict=True)


def test_a_float_module_inside_a_model_loads_strictly() -> None:
    plain = nn.ModuleDict({"encoder": nn.Sequential(nn.GRU(3, 5)), "head": nn.Linear(5, 2)})
    quant = nn.ModuleDict({"encoder": nn.Sequential(QuantGRU(3, 5)), "head": nn.Linear(5, 2)})
    quant.load_state_dict(plain.state_dict(), strict=True)
    assert_same(plain["encoder"][0], quant["encoder"][0], torch.randn(4, 2, 3))


def test_surface_of_nn_gru_survives() -> None:
    plain, quant = pair(num_layers=2, bidirectional=True)
    quant.flatten_parameters()
    assert [len(w) for w in quant.all_weights] == [len(w) for w in plain.all_weights]
    assert quant.mode == "GRU" and "3, 5, num_layers=2" in repr(quant)
    assert_same(plain.double(), quant.double(), torch.randn(4, 2, 3).double())
    assert_same(plain, pickle.loads(pickle.dumps(quant)), torch.randn(4, 2, 3).double())
    plain.float(), quant.float()
    for module in (plain, quant):
        module.zero_grad()
        module.weight_ih_l0.requires_grad_(False)
        module(torch.randn(4, 2, 3))[0].sum().backward()
        assert module.weight_ih_l0.grad is None and module.weight_hh_l0.grad.abs().sum() > 0
