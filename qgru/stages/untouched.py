"""What a module keeps for itself while it is called: buffers, counters, lists of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qgru.gru import QuantGRU

_TORCHS_OWN = frozenset(vars(nn.Module()))
_OTHERS = (QuantGRU, torch.jit.ScriptModule)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Leave the buffers and attributes of a module, and of all modules inside it, as they were.

    Tensors, lists and dictionaries get back what they held. Left alone are parameters, what torch keeps of a module,
    scripted modules, modules that learn their shapes from the first call, and quantized layers, which observe.
    """
    children = [child for child in module.modules() if not isinstance(child, _OTHERS) and not _is_lazy(child)]
    kept = [
        (holder, {name: (value, _copy(value)) for name, value in holder.items() if name not in _TORCHS_OWN})
        for child in children
        for holder in (vars(child), child._buffers)
    ]
    try:
        yield
    finally:
        for holder, before in kept:
            _restore(holder, before)


def _is_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False))))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if _is_writable(value) else None
    return value.copy() if type(value) in (list, dict) else None


def _is_writable(tensor: Tensor) -> bool:
    """Tell whether a forward may write into a tensor: not into parameters, nor where elements share memory."""
    if isinstance(tensor, nn.Parameter) or tensor.is_inference() or tensor.layout is not torch.strided:
        return False
    return all(stride > 0 or size <= 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _restore(holder: Any, before: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in holder if name not in before and name not in _TORCHS_OWN]:
        del holder[name]
    for name, (value, copied) in before.items():
        if isinstance(copied, Tensor):
            value.detach().copy_(copied)
        elif isinstance(copied, list):
            value[:] = copied
        elif isinstance(copied, dict):
            value.clear()
            value.update(copied)
        if holder.get(name) is not value:
            holder[name] = value
