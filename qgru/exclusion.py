"""Which recurrent layers of a module stay in float: those excluded by name, and those that can't be converted."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from qgru.files import shown
from qgru.gru import QuantGRU


def check_patterns(exclude: Sequence[str]) -> tuple[str, ...]:
    """Return names with wildcards as a tuple.

    Raises:
        ValueError: for anything but a sequence of strings.
    """
    if isinstance(exclude, str) or not all(isinstance(pattern, str) for pattern in exclude):
        raise ValueError(f"exclude is {shown(exclude)}; expected a list of names with wildcards, as ['teacher.*']")
    return tuple(exclude)


def check_matches(module: nn.Module, exclude: Sequence[str]) -> None:
    """Refuse patterns that name no `nn.GRU`, or one that is converted already.

    Raises:
        ValueError: naming the pattern and the names that there are.
    """
    layers = _layers(module)
    for pattern in check_patterns(exclude):
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            names = ", ".join(map(repr, layers)) or "none"
            raise ValueError(f"exclude has {shown(pattern)}, which matches no nn.GRU; expected one of {names}")
        quantized = [name for name in found if isinstance(layers[name], QuantGRU)]
        if quantized:
            raise ValueError(
                f"exclude has {shown(pattern)}, and {quantized[0]!r} is a QuantGRU already; expected an nn.GRU, which "
                "qgru.revert makes of it"
            )


def matching(module: nn.Module, exclude: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns that name a layer of a module as it is now."""
    names = _layers(module)
    return tuple(pattern for pattern in exclude if any(fnmatchcase(name, pattern) for name in names))


def excluded(module: nn.Module, exclude: Sequence[str]) -> set[nn.GRU]:
    """Return the layers that a pattern names; one that is shared, by any of its names."""
    layers = _layers(module).items()
    return {layer for name, layer in layers if any(fnmatchcase(name, pattern) for pattern in exclude)}


def staying_float(module: nn.Module) -> dict[str, str]:
    """Return what stays in float in a converted module, by qualified name, and what it is."""
    found = {}
    for name, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            if child.original_name in ("GRU", "GRUCell"):
                found[name] = f"scripted {child.original_name}"
        elif isinstance(child, nn.GRUCell):
            found[name] = "nn.GRUCell"
        elif isinstance(child, nn.GRU) and not isinstance(child, QuantGRU):
            found[name] = "excluded"
    return found


def _layers(module: nn.Module) -> dict[str, nn.GRU]:
    return {name: child for name, child in module.named_modules(remove_duplicate=False) if isinstance(child, nn.GRU)}
