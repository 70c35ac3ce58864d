"""`nn.GRU` to `QuantGRU` inside any module, and back.

A conversion changes a module's class, not the module: its parameters, hooks and identity stay, and whoever holds a
reference to it holds the converted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from qgru.exclusion import check_matches, excluded
from qgru.gru import QuantGRU
from qgru.state import BUFFERS

Module = TypeVar("Module", bound=nn.Module)


class _Converted:
    """Marks the classes that `_quantized_class` makes, and pickles their instances."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__mro__[1],), self.__getstate__()


@cache
def _quantized_class(cls: type[nn.GRU]) -> type[QuantGRU]:
    """Return `QuantGRU`, or for a subclass of `nn.GRU` one that has its methods in front of `QuantGRU`'s."""
    if cls is nn.GRU:
        return QuantGRU
    return type(
        cls.__name__, (cls, _Converted, QuantGRU), {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


def _blank(cls: type[nn.GRU]) -> QuantGRU:
    quantized = _quantized_class(cls)
    return quantized.__new__(quantized)


def convert(module: Module, exclude: Sequence[str] = ()) -> Module:
    """Turn every `nn.GRU` inside `module`, or `module` itself, into a `QuantGRU`, in place.

    The module objects and their Parameters stay the same ones; a subclass of `nn.GRU` keeps its own methods; what is
    a `QuantGRU` already is left alone.

    Args:
        module: any module.
        exclude: qualified names of layers that stay in float, with wildcards: ``["teacher.*"]``.

    Returns:
        `module`.

    Raises:
        ValueError: for a name in `exclude` that matches no `nn.GRU`; lists those that there are.
    """
    check_matches(module, exclude)
    stay = excluded(module, exclude)
    for gru in _modules(module, nn.GRU):
        if not isinstance(gru, QuantGRU) and gru not in stay:
            _change_class(gru, _quantized_class)
            gru._attach()
    return module


def revert(module: Module) -> Module:
    """Turn every `QuantGRU` inside `module`, or `module` itself, back into the class it came from, in place.

    Returns:
        `module`, without any quantization state.
    """
    for gru in _modules(module, QuantGRU):
        gru._detach()
        _change_class(gru, _float_class)
    return module


def _float_class(cls: type[QuantGRU]) -> type[nn.GRU]:
    return cls.__mro__[1] if issubclass(cls, _Converted) else nn.GRU


def _change_class(gru: nn.GRU, change: Callable[[type], type]) -> None:
    """Change a module's class, under the class that `torch.nn.utils.parametrize` may have put over it."""
    if not parametrize.is_parametrized(gru):
        gru.__class__ = change(type(gru))
        return
    injected = type(gru)
    names = {key: value for key, value in vars(injected).items() if key not in ("__dict__", "__weakref__")}
    gru.__class__ = type(injected.__name__, (change(injected.__bases__[0]),), names)


def _modules(module: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    return (child for child in list(module.modules()) if isinstance(child, kind))


def quantized_layers(module: nn.Module) -> dict[str, QuantGRU]:
    """Return every `QuantGRU` inside `module` by its qualified name, a shared one once."""
    return {name: child for name, child in module.named_modules() if isinstance(child, QuantGRU)}


def float_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the float module would have, loadable into one that holds `nn.GRU`."""
    prefixes = [name + "." if name else "" for name in _all_names(module)]
    own = {prefix + name for prefix in prefixes for name in BUFFERS}
    return {key: value for key, value in module.state_dict().items() if key not in own}


def _all_names(module: nn.Module) -> list[str]:
    return [n for n, child in module.named_modules(remove_duplicate=False) if isinstance(child, QuantGRU)]
