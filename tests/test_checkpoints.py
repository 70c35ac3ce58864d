"""Classes that build `nn.GRU` and load quantized state dicts, with no callback and no Lightning."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import qgru
from qgru import QuantGRU
from tests.stages.models import Model, batches, calibrated


def quantized(model: nn.Module | None = None) -> Any:
    model = calibrated(model)
    for gru in qgru.quantized_layers(model).values():
        gru.use_quantization = True
    return model.eval()


def fresh() -> type[Model]:
    """A class of the test's own, for it is changed."""
    return type("Fresh", (Model,), {})


def compiled_name(state: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("gru.", "gru._orig_mod."): value for name, value in state.items()}


@pytest.mark.parametrize("assign", [False, True])
def test_a_class_loads_its_own_quantized_state(assign: bool) -> None:
    trained, x = quantized(), batches()[0][0]
    with pytest.raises(RuntimeError, match="Unexpected key.*gru.quant_flags"):
        fresh()().load_state_dict(trained.state_dict())
    loaded = qgru.loads_quantized(fresh())()
    loaded.load_state_dict(trained.state_dict(), assign=assign)
    assert isinstance(loaded.gru, QuantGRU) and loaded.gru.use_quantization
    assert torch.equal(loaded.eval()(x), trained(x))
    assert loaded.gru.get_quant_config() == trained.gru.get_quant_config()


def test_inside_another_module_and_in_a_subclass() -> None:
    cls = qgru.loads_quantized(fresh())
    subclass = type("Subclass", (cls,), {})
    trained = nn.ModuleDict({"a": quantized(), "b": quantized()})
    outer = nn.ModuleDict({"a": cls(), "b": subclass()})
    outer.load_state_dict(trained.state_dict())
    assert outer["a"].gru.is_calibrated() and outer["b"].gru.is_calibrated()


def test_only_what_was_converted_is() -> None:
    """A float state dict leaves the class what it was, and so does a layer that stayed in float."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.GRU(3, 4), nn.GRU(3, 4)

    source, target = Two(), qgru.loads_quantized(Two)()
    target.load_state_dict(source.state_dict())
    assert type(target.student) is nn.GRU
    qgru.convert(source.student)
    target.load_state_dict(source.state_dict())
    assert type(target.student) is QuantGRU and type(target.teacher) is nn.GRU


def test_the_layer_itself_and_one_inside_torch_compile() -> None:
    class Own(nn.GRU):
        pass

    trained = quantized()
    own = qgru.loads_quantized(Own)(3, 5, batch_first=True)
    own.load_state_dict(trained.gru.state_dict())
    assert isinstance(own, Own) and own.is_calibrated()
    loaded = qgru.loads_quantized(fresh())()
    loaded.gru = torch.compile(loaded.gru, backend="eager")
    loaded.load_state_dict(compiled_name(trained.state_dict()))
    assert loaded.gru._orig_mod.is_calibrated()


def test_decorating_twice_is_decorating_once() -> None:
    cls, trained = fresh(), quantized()
    assert qgru.loads_quantized(qgru.loads_quantized(cls)) is cls
    loaded = cls()
    loaded.load_state_dict(trained.state_dict())
    assert loaded.gru.is_calibrated() and type(loaded.gru) is QuantGRU


def test_same_parameters_and_optimizer() -> None:
    loaded = qgru.loads_quantized(fresh())()
    before = dict(loaded.named_parameters())
    loaded.load_state_dict(quantized().state_dict())
    assert all(parameter is before[name] for name, parameter in loaded.named_parameters())


def test_a_checkpoint_in_which_one_layer_stayed_in_float(tmp_path: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.GRU(3, 4), nn.GRU(3, 4)

    source = Two()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "float.ckpt")
    assert set(qgru.quantized_layers(qgru.load_from_checkpoint(Two, tmp_path / "float.ckpt"))) == {"student", "teacher"}
    qgru.convert(source.student)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "one.ckpt")
    assert set(qgru.quantized_layers(qgru.load_from_checkpoint(Two, tmp_path / "one.ckpt"))) == {"student"}


def test_what_lightnings_command_line_notes_is_no_argument(tmp_path: Any) -> None:
    """Also where the constructor takes anything."""
    notes = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "tests.stages.models.Model"}
    checkpoint = {"state_dict": quantized(Model(6)).state_dict(), "hyper_parameters": {"hidden_size": 6, **notes}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert qgru.load_from_checkpoint(Model, tmp_path / "last.ckpt").gru.hidden_size == 6


def test_a_float_state_over_a_quantized_one_is_said() -> None:
    model = quantized()
    with pytest.warns(UserWarning, match="no quantization state for gru, which was calibrated: it computes in float"):
        model.load_state_dict(Model().state_dict())
    assert not model.gru.is_calibrated()


@pytest.mark.parametrize("strict", [True, False])
def test_a_quantized_state_that_is_dropped_is_said(strict: bool) -> None:
    """Some libraries load with ``strict=False``, and a float model would be all that is seen of it."""
    model = fresh()()
    says = pytest.warns(UserWarning, match=r"the quantization state of gru is dropped.*qgru.loads_quantized\(cls\)")
    fails = nullcontext() if not strict else pytest.raises(RuntimeError, match="Unexpected key.*gru.quant_flags")
    with says, fails:
        model.load_state_dict(quantized().state_dict(), strict=strict)
    assert type(model.gru) is nn.GRU


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_nothing_is_dropped() -> None:
    trained = quantized()
    Model().load_state_dict(Model().state_dict())
    Model().load_state_dict(qgru.float_state_dict(trained))
    qgru.convert(Model()).load_state_dict(trained.state_dict())
    qgru.loads_quantized(fresh())().load_state_dict(trained.state_dict())


@pytest.mark.parametrize("inner", [True, False], ids=["whole model", "layer"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_torch_jit_script_says_what_to_use(inner: bool) -> None:
    model = calibrated()
    with pytest.raises(RuntimeError, match=r"torch.jit.script can't compile a QuantGRU.*export_onnx.*qgru.revert"):
        torch.jit.script(model if inner else model.gru)
    x = batches()[0][0]
    scripted = torch.jit.script(qgru.revert(copy.deepcopy(model)).eval())
    assert torch.equal(scripted(x), model.eval()(x))
