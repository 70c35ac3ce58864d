"""A state dict is loaded whole or not at all: what does not fit is named, and the layer goes on as it was."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from qgru import QuantGRU, convert, float_state_dict
from qgru.schema import OPERATORS
from tests.calibrated import calibrated, quantize

FLAGS, GRIDS, EXPONENTS = "gru.quant_flags", "gru.quant_grids", "gru.quant_weight_exp2_inv"
ROW = {name: index for index, name in enumerate(OPERATORS)}
ASYMMETRIC = {"operator_config": {"gate.z_pre": {"is_symmetric": False}, "op.Rh_add_br": {"bitwidth": 12}}}


def model(config: dict | str = ASYMMETRIC, **options: object) -> nn.ModuleDict:
    return nn.ModuleDict({"gru": calibrated(4, 3, config, **{"num_layers": 2, "bidirectional": True, **options})})


def other_weights(of: nn.Module) -> dict[str, Tensor]:
    """A state dict whose every parameter differs from the module's."""
    state = copy.deepcopy(of.state_dict())
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


def assert_refused(target: nn.ModuleDict, state: dict, *words: str) -> None:
    """`state` is refused in those words, and `target` is what it was: tensors, observations, outputs."""
    x, before = torch.randn(5, 2, 3), copy.deepcopy(target.state_dict())
    want, seen = target["gru"](x)[0], target["gru"].observations
    with pytest.raises(RuntimeError) as refusal:
        target.load_state_dict(state)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    assert torch.equal(target["gru"](x)[0], want)
    assert (target["gru"].observations is None) == (seen is None)


CORRUPTIONS = {
    "a width": (GRIDS, (3, ROW["gate.z_out"], 0), 77, ["layer 1, reverse", "'gate.z_out'", "bitwidth is 77", "32"]),
    "no width": (GRIDS, (0, ROW["op.rRh"], 0), 0, ["layer 0", "'op.rRh'", "bitwidth is 0"]),
    "the optional operator's width": (GRIDS, (0, ROW["op.Rh_add_br"], 0), 0, ["'op.Rh_add_br'", "bitwidth is 0"]),
    "a flag of an operator": (GRIDS, (2, ROW["input.x"], 1), 2, ["layer 1", "'input.x'", "is_symmetric is 2"]),
    "an asymmetric weight": (GRIDS, (1, ROW["weight.R"], 1), 0, ["layer 0, reverse", "'weight.R'", "symmetric"]),
    "an exponent": (GRIDS, (0, ROW["matmul.Wx"], 3), -65, ["'matmul.Wx'", "exp2_inv is -65", "[-64, 64]"]),
    "a zero point": (GRIDS, (0, ROW["gate.z_pre"], 4), 1 << 40, ["'gate.z_pre'", "zero_point is 1099511627776"]),
    "a zero point where it is 0": (GRIDS, (0, ROW["gate.r_pre"], 4), 3, ["'gate.r_pre'", "zero_point is 3"]),
    "a weight's exponent": (EXPONENTS, (3, 2, 11), 99, ["layer 1, reverse", "'weight.bw'", "exp2_inv is 99"]),
    "one direction's input": (GRIDS, (3, ROW["input.x"], 3), 1, ["layer 1", "'input.x'", "both directions"]),
    "the switch": (FLAGS, (0,), 2, ["use_quantization is 2", "0 or 1"]),
    "calibrated": (FLAGS, (2,), 255, ["is_calibrated is 255"]),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_what_is_no_state_is_refused_by_name(what: str) -> None:
    key, index, value, words = CORRUPTIONS[what]
    target = model()
    state = other_weights(target)
    state[key][index] = value
    assert_refused(target, state, key, *words)


def test_shapes_and_types_are_checked_first() -> None:
    target = model()
    for key, change, words in (
        (GRIDS, lambda v: v[:2], ["torch.int64 of shape (2, 18, 5)", "(4, 18, 5)"]),
        (EXPONENTS, lambda v: v.float(), ["torch.float32", "expected torch.int64"]),
        (FLAGS, lambda v: v.bool(), ["torch.bool", "expected torch.uint8"]),
        (FLAGS, lambda v: v.tolist(), ["list", "expected a tensor"]),
        ("gru.weight_hh_l1", lambda v: v[:5], ["size mismatch for gru.weight_hh_l1"]),
    ):
        state = other_weights(target)
        state[key] = change(state[key])
        assert_refused(target, state, key, *words)
    for key in (FLAGS, GRIDS, EXPONENTS):
        state = other_weights(target)
        del state[key]
        assert_refused(target, state, f"{key} is missing")
    assert_refused(target, {"gru." + k: v for k, v in calibrated(4, 3, "int8").state_dict().items()}, "(1, 18, 5)")


def test_an_uncalibrated_layer_stays_one() -> None:
    """In float, with the observations that it had."""
    state = other_weights(model())
    state[GRIDS][0, 0, 0] = 40
    target = nn.ModuleDict({"gru": QuantGRU(3, 4, num_layers=2, bidirectional=True)})
    target["gru"].calibrating = True
    target["gru"](torch.randn(5, 2, 3))
    target["gru"].calibrating = False
    assert_refused(target, state, GRIDS, "bitwidth is 40")
    assert target["gru"].has_observations() and not target["gru"].is_calibrated()


VALUES = (
    0,
    1,
    2,
    3,
    8,
    16,
    31,
    32,
    33,
    -1,
    -3,
    -64,
    -65,
    64,
    65,
    127,
    128,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)


@pytest.mark.parametrize("seed", range(60))
def test_random_corruptions_load_as_a_state_or_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    target = model(ASYMMETRIC if seed % 2 else "int8", bidirectional=seed % 3 > 0, bias=seed % 5 > 0)
    state = copy.deepcopy(target.state_dict())
    for _ in range(rng.choice((1, 1, 2, 5))):
        values = state[rng.choice((FLAGS, GRIDS, GRIDS, EXPONENTS))].view(-1)
        value = rng.choice(VALUES)
        values[rng.randrange(len(values))] = value % 256 if values.dtype == torch.uint8 else value
    gru, x = target["gru"], torch.randn(5, 2, 3)
    want, grids = gru(x)[0], gru.grids()
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        assert "gru.quant_" in str(error)
        assert torch.equal(gru(x)[0], want) and gru.grids() == grids
        return
    again = copy.deepcopy(gru)
    again.load_state_dict(gru.state_dict())
    if gru.is_calibrated():
        assert torch.equal(again(x)[0], gru(x)[0]) and again.grids() == gru.grids()
    else:
        assert not gru.use_quantization or gru.bitwidth_config.disable_quantization or not gru.has_observations()
        with pytest.raises(RuntimeError, match="not calibrated"):
            gru.grids()


def test_a_refused_layer_does_not_keep_others_from_being_named() -> None:
    target = nn.ModuleDict({"a": calibrated(4, 3, "int8"), "b": calibrated(4, 3, "int8")})
    state = copy.deepcopy(target.state_dict())
    state["a.quant_grids"][0, 0, 0] = state["b.quant_grids"][0, 3, 0] = 50
    with pytest.raises(RuntimeError, match=r"(?s)a\.quant_grids, layer 0.*'input\.x'.*b\.quant_grids.*'weight\.R'"):
        target.load_state_dict(state)


@pytest.mark.parametrize("kind", ["pruned", "weight_norm", "spectral_norm"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_float_state_dict_loads_strictly_whatever_stands_over_the_weight(kind: str, order: str) -> None:
    def reparametrize(gru: nn.GRU) -> nn.GRU:
        if kind == "pruned":
            return prune.l1_unstructured(gru, "weight_ih_l0", amount=0.4)
        return getattr(parametrizations, kind)(gru, "weight_ih_l0")

    plain = reparametrize(nn.GRU(3, 4)).eval()
    target = convert(reparametrize(nn.GRU(3, 4))) if order == "before" else reparametrize(convert(nn.GRU(3, 4)))
    quantize(target.eval(), torch.randn(5, 2, 3))
    result = target.load_state_dict(plain.state_dict(), strict=True)
    assert not result.missing_keys and not target.is_calibrated() and not target.has_observations()
    target.use_quantization = False
    x = torch.randn(5, 2, 3)
    assert torch.equal(target(x)[0], plain(x)[0])
    assert list(float_state_dict(target)) == list(plain.state_dict())


def test_parts_of_other_modules_leave_the_state_alone() -> None:
    target = model()
    target["head"] = nn.Linear(8, 2)
    head = {"head.weight": torch.zeros(2, 8), "head.bias": torch.zeros(2)}
    target.load_state_dict(head, strict=False)
    assert target["gru"].is_calibrated()
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict(head)
