"""What of a model is a chain that C can have: GRUs that feed each other, and a linear layer at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru.convert import quantized_layers
from qgru.gru import QuantGRU


@dataclass(frozen=True)
class Chain:
    """A model as a chain.

    Attributes:
        grus: qualified names and layers, each fed by the one before.
        x: the first one's input, as it was called.
        linear: the name and layer behind them, or None.
        left_out: what of the model is not in the chain, for people; empty where nothing is.
    """

    grus: list[tuple[str, QuantGRU]]
    x: Tensor
    linear: tuple[str, nn.Linear] | None
    left_out: str


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    args: tuple[Any, ...]
    output: Any


def chain_of(model: nn.Module, args: tuple[Any, ...]) -> Chain:
    """Run a model, and find its chain.

    Args:
        model: any module with calibrated layers; it is left as it was.
        args: positional arguments of its `forward`.

    Raises:
        ValueError: naming the layer, where GRUs are no chain: one is called twice, given a state or a packed sequence,
            or not fed by the one before.
    """
    modules = {**quantized_layers(model), **{n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}}
    result, calls = _calls(model, modules, args)
    of_grus = [call for call in calls if isinstance(call.module, QuantGRU)]
    _check(of_grus, quantized_layers(model))
    first, last = of_grus[0], of_grus[-1]
    linears = [call for call in calls if isinstance(call.module, nn.Linear)]
    behind = linears[-1] if linears and _is_fed_by(linears[-1].args[0], last) else None
    left_out = []
    if not any(isinstance(arg, Tensor) and _same(arg, first.args[0]) for arg in args):
        left_out.append(f"what is done to the input before {first.name or 'the GRU'}")
    if behind is None or not _same(behind.output, result):
        behind = None
        if first.module is not model:
            left_out.append(f"what follows {last.name or 'the GRU'}")
    return Chain(
        [(call.name, call.module) for call in of_grus],
        first.args[0],
        (behind.name, behind.module) if behind else None,
        " and ".join(left_out),
    )


def _calls(model: nn.Module, modules: Mapping[str, nn.Module], args: tuple[Any, ...]) -> tuple[Any, list[_Call]]:
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(
            lambda module, given, output, name=name: calls.append(_Call(name, module, given, output))
        )
        for name, module in modules.items()
    ]
    try:
        with _quantized(model), torch.no_grad():
            return model(*args), calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _quantized(model: nn.Module) -> Iterator[None]:
    """Have a model in eval mode and its layers quantized; afterwards it is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    switches = [(gru, gru.use_quantization, gru.calibrating) for gru in quantized_layers(model).values()]
    model.eval()
    try:
        for gru, _, _ in switches:
            gru.use_quantization, gru.calibrating = True, False
        yield
    finally:
        for gru, use, calibrating in switches:
            gru.use_quantization, gru.calibrating = use, calibrating
        for module, mode in modes:
            module.training = mode


def _check(calls: list[_Call], layers: Mapping[str, QuantGRU]) -> None:
    names = [call.name for call in calls]
    for name in layers:
        if names.count(name) != 1:
            raise ValueError(f"layer {name!r} is called {names.count(name)} times; expected once, in a chain")
    for before, call in zip([None, *calls], calls, strict=False):
        if isinstance(call.args[0], PackedSequence) or any(arg is not None for arg in call.args[1:]):
            raise ValueError(f"layer {call.name!r} is given a state or a packed sequence; expected a tensor alone")
        if before is not None and not _same(call.args[0], before.output[0]):
            raise ValueError(f"layer {call.name!r} is not fed by {before.name!r}; expected a chain")


def _is_fed_by(given: Tensor, gru: _Call) -> bool:
    """Return True where `given` is the GRU's output, of all steps or the last one, or its last state."""
    output, h_n = gru.output
    time = 1 if gru.module.batch_first and output.dim() == 3 else 0
    seen = (output, output.select(time, -1), h_n[-1])
    return not gru.module.bidirectional and any(_same(given, tensor) for tensor in seen)


def _same(a: Any, b: Any) -> bool:
    """Return True for tensors of the same numbers, whatever their shapes."""
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a.flatten(), b.flatten())
