"""Where a quantized layer's state goes and comes back from: state dicts, files, copies."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from qgru import QuantGRU, convert, float_state_dict
from tests.calibrated import calibrated, quantize


def quantized(**options: object) -> QuantGRU:
    """Calibrated, finalized and switched to quantized, with one operator adjusted by hand."""
    torch.manual_seed(1)
    gru = QuantGRU(3, 5, **{"num_layers": 2, "bidirectional": True, **options}).eval()
    gru.load_bitwidth_config({"operator_config": {"gate.z_out": {"bitwidth": 6, "is_symmetric": False}}})
    quantize(gru, torch.randn(9, 4, 3))
    gru.adjust_quant_config("g_pre", bitwidth=11, layer=1, reverse=True)
    return gru


def assert_same_settings(a: QuantGRU, b: QuantGRU) -> None:
    """What isn't in a state dict but belongs to the object."""
    names = ("calibration_method", "percentile_value", "export_mode", "export_format", "training")
    assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]


def through_torch_save(module: nn.Module, weights_only: bool) -> nn.Module:
    file = io.BytesIO()
    torch.save(module.state_dict() if weights_only else module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    if not weights_only:
        return loaded
    fresh = QuantGRU(3, 5, num_layers=2, bidirectional=True).eval()
    fresh.load_state_dict(loaded, strict=True)
    return fresh


WAYS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save of the module": lambda m: through_torch_save(m, False),
    "state dict, weights only": lambda m: through_torch_save(m, True),
}


def assert_same_state(a: QuantGRU, b: QuantGRU) -> None:
    assert b.is_calibrated() and b.use_quantization is a.use_quantization and b.calibrating is a.calibrating
    assert b.bitwidth_config.operators["gate.z_out"] == a.bitwidth_config.operators["gate.z_out"]
    for layer in range(2):
        for reverse in (False, True):
            assert a.grids(layer, reverse) == b.grids(layer, reverse)
            for name, integers in a.quantized_weights(layer, reverse).items():
                assert torch.equal(integers, b.quantized_weights(layer, reverse)[name])
    x = torch.randn(7, 3, 3)
    for one, other in zip(a(x), b(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_on_the_way(way: str) -> None:
    gru = quantized()
    gru.calibration_method, gru.percentile_value, gru.export_format = "percentile", 98.5, "float"
    other = WAYS[way](gru)
    assert type(other) is QuantGRU
    assert_same_state(gru, other)
    if way != "state dict, weights only":
        assert_same_settings(gru, other)
    assert other.grids(1, True)["gate.g_pre"].bitwidth == 11


@pytest.mark.parametrize("way", [name for name in WAYS if name != "copy"])
def test_a_copy_is_independent(way: str) -> None:
    gru = quantized()
    before = copy.deepcopy(gru.state_dict())
    other = WAYS[way](gru)
    other.adjust_quant_config("z_pre", bitwidth=3)
    other.use_quantization = False
    with torch.no_grad():
        other.weight_ih_l0.zero_()
    assert gru.use_quantization is True and gru.grids()["gate.z_pre"].bitwidth == 8
    assert all(torch.equal(before[name], value) for name, value in gru.state_dict().items())


def test_the_state_dict_s_shapes_never_depend_on_the_stage() -> None:
    fresh = QuantGRU(3, 5, num_layers=2, bidirectional=True)
    assert {k: (v.shape, v.dtype) for k, v in fresh.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in quantized().state_dict().items()
    }


def test_a_state_dict_carries_every_stage() -> None:
    gru = QuantGRU(3, 5)
    stages = [copy.deepcopy(gru.state_dict())]
    quantize(gru, torch.randn(4, 2, 3)).use_quantization = False
    stages.append(copy.deepcopy(gru.state_dict()))
    gru.use_quantization = True
    stages.append(copy.deepcopy(gru.state_dict()))
    for stage, (has_grids, switched) in zip(stages, ((False, False), (True, False), (True, True)), strict=True):
        other = QuantGRU(3, 5, use_quantization=True)
        other.load_state_dict(stage, strict=True)
        assert (other.is_calibrated(), other.use_quantization) == (has_grids, switched)


def test_observations_survive_a_copy_and_a_pickle() -> None:
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    gru(torch.randn(8, 4, 3))
    copies = [copy.deepcopy(gru), pickle.loads(pickle.dumps(gru))]
    for module in (gru, *copies):
        assert module.calibrating and module.has_observations()
        module.calibrating = False
        module.finalize_calibration()
    assert all(module.grids() == gru.grids() for module in copies)


@pytest.mark.parametrize("switch", ["use_quantization", "calibrating"])
def test_moving_and_casting_keeps_the_switches_and_the_grids(switch: str) -> None:
    gru = quantized()
    grids = gru.grids()
    gru.use_quantization = False
    setattr(gru, switch, True)
    for cast in (nn.Module.double, nn.Module.half, nn.Module.bfloat16, nn.Module.float):
        cast(gru)
        assert gru.grids() == grids and getattr(gru, switch) is True
    gru.to("cpu").train().eval().requires_grad_(False)
    assert gru.grids() == grids and getattr(gru, switch) is True


def test_quantization_state_is_integer_and_buffers_only() -> None:
    gru = quantized()
    parameters = dict(gru.named_parameters())
    assert list(parameters) == [name for name, _ in nn.GRU(3, 5, 2, bidirectional=True).named_parameters()]
    extra = {name: value for name, value in gru.state_dict().items() if name not in parameters}
    assert extra and not any(value.is_floating_point() for value in extra.values())
    assert set(extra) == {name for name, _ in gru.named_buffers()}


def test_the_way_back_to_a_float_checkpoint() -> None:
    model = nn.ModuleDict({"rnn": quantized(), "norm": nn.BatchNorm1d(5), "head": nn.Linear(10, 2)})
    plain = nn.ModuleDict(
        {"rnn": nn.GRU(3, 5, 2, bidirectional=True), "norm": nn.BatchNorm1d(5), "head": nn.Linear(10, 2)}
    )
    state = float_state_dict(model)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    x = torch.randn(4, 2, 3)
    model["rnn"].use_quantization = False
    assert torch.equal(model["rnn"](x)[0], plain["rnn"].eval()(x)[0])
    lone = nn.GRU(3, 5, 2, bidirectional=True)
    lone.load_state_dict(float_state_dict(model["rnn"]), strict=True)


@pytest.mark.parametrize("module_of", [lambda g: g, lambda g: nn.Sequential(g)])
def test_loading_refinalizes_nothing(module_of: Callable) -> None:
    """Grids come from the file even when the module has unfinalized observations of its own."""
    source = quantized()
    target = QuantGRU(3, 5, num_layers=2, bidirectional=True).eval()
    target.calibrating = True
    target(torch.randn(9, 4, 3) * 50)
    target.calibrating = False
    module_of(target).load_state_dict(module_of(source).state_dict())
    assert_same_state(source, target)


def test_loading_by_assignment() -> None:
    source = quantized()
    target = QuantGRU(3, 5, num_layers=2, bidirectional=True).eval()
    target.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert_same_state(source, target)
    plain = nn.GRU(3, 5, 2, bidirectional=True)
    target.load_state_dict(plain.state_dict(), assign=True)
    assert not target.is_calibrated() and target.weight_ih_l0 is not source.weight_ih_l0


@pytest.mark.parametrize("is_float", [False, True])
def test_a_module_built_without_memory_is_filled_from_a_file(is_float: bool) -> None:
    source = nn.GRU(3, 5, 2, bidirectional=True).eval() if is_float else quantized()
    for assign in (False, True):
        target = QuantGRU(3, 5, num_layers=2, bidirectional=True, device="meta").eval()
        if not assign:
            target.to_empty(device="cpu")
        target.load_state_dict(source.state_dict(), assign=assign)
        if is_float:
            x = torch.randn(4, 2, 3)
            target.to("cpu") if not assign else None
            assert torch.equal(target(x)[0], source(x)[0])
        else:
            assert_same_state(source, target)


def test_converted_layers_save_and_load_as_quant_gru() -> None:
    gru = convert(nn.Sequential(nn.GRU(3, 5)))
    quantize(gru[0], torch.randn(4, 2, 3))
    other = convert(nn.Sequential(nn.GRU(3, 5)))
    other.load_state_dict(gru.state_dict(), strict=True)
    x = torch.randn(4, 2, 3)
    assert torch.equal(gru(x)[0], other(x)[0])
    with pytest.raises(RuntimeError, match="quant_"):
        nn.Sequential(nn.GRU(3, 5)).load_state_dict(gru.state_dict(), strict=True)


@pytest.mark.parametrize("whole", [lambda g: g, lambda g: nn.Sequential(g)])
@pytest.mark.parametrize("start", ["cpu", "meta"])
def test_memory_without_values_is_not_a_state(whole: Callable, start: str) -> None:
    """`to_empty` leaves anything in the buffers; the switch and the bit widths are known all the same."""
    gru = calibrated(5, 3, {"operator_config": {"gate.z_out": {"bitwidth": 6}}})
    gru.to(start)
    whole(gru).to_empty(device="cpu")
    assert not gru.is_calibrated() and not gru.has_observations()
    assert gru.use_quantization and gru.bitwidth_config.operators["gate.z_out"].bitwidth == 6
    with pytest.raises(RuntimeError, match="not calibrated"):
        gru(torch.randn(4, 2, 3))
    gru.reset_parameters()
    gru.use_quantization = False
    assert gru(torch.randn(4, 2, 3))[0].isfinite().all()


def test_garbage_in_the_buffers_is_not_read() -> None:
    gru = calibrated(5, 3, "int8")
    gru._apply(lambda t: torch.full_like(t, 77))
    assert not gru.is_calibrated() and gru.quant_grids[0, 0, 0] == 8
    assert all(bool((parameter == 77).all()) for parameter in gru.parameters())


def test_new_parameters_are_not_calibrated() -> None:
    gru = calibrated(5, 3, "int8")
    gru.reset_parameters()
    assert not gru.is_calibrated() and not gru.has_observations() and gru.use_quantization
    assert gru.bitwidth_config.operators["gate.z_out"].is_unsigned
    with pytest.raises(RuntimeError, match="not calibrated"):
        gru(torch.randn(4, 2, 3))


def test_a_cast_of_everything_leaves_integers() -> None:
    gru = calibrated(5, 3, {"operator_config": {"gate.z_pre": {"bitwidth": 32, "is_symmetric": False}}})
    grids = gru.grids()
    gru.type(torch.float16)
    assert gru.grids() == grids and gru.quant_grids.dtype == torch.int64 and gru.quant_flags.dtype == torch.uint8


def test_a_copy_without_values_keeps_its_state() -> None:
    gru = calibrated(5, 3, "int8").to("meta")
    assert copy.deepcopy(gru).is_calibrated() and copy.deepcopy(gru).grids() == gru.grids()


def test_a_replica_s_switches_are_its_own() -> None:
    """As `nn.DataParallel` makes them, each with its own tensors."""
    gru = quantized()
    replica = gru._replicate_for_data_parallel()
    replica._buffers = {name: buffer.clone() for name, buffer in gru._buffers.items()}
    replica.use_quantization, replica.calibration_method = False, "percentile"
    assert gru.use_quantization and not replica.use_quantization and gru.calibration_method == "sqnr"


def test_files_do_not_tell_whether_the_grids_were_made_or_loaded(tmp_path: Path) -> None:
    gru = calibrated(5, 3, "int8_mixed", num_layers=2)
    loaded = QuantGRU(3, 5, num_layers=2)
    loaded.load_state_dict(gru.state_dict())
    for name, layer in (("made", gru), ("loaded", loaded)):
        layer.export_quant_params(tmp_path / name, include_weights=True)
    assert (tmp_path / "made").read_bytes() == (tmp_path / "loaded").read_bytes()
