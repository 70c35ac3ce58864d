"""A model's arguments: the tensors in them, and what a graph calls these and their dimensions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from qgru import torch_private
from qgru.gru import QuantGRU


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in torch_private.tree_leaves(tree) if isinstance(leaf, Tensor)]


def first_foreign(tree: Any) -> Any:
    """Return the first thing in nested tuples, lists and dicts that is neither a tensor nor a plain value, or None."""
    plain = (Tensor, bool, int, float, complex, str, type(None))
    return next((leaf for leaf in torch_private.tree_leaves(tree) if not isinstance(leaf, plain)), None)


def as_tuple(args: Any) -> tuple[Any, ...]:
    """Return positional arguments, of which a single one may come without its tuple."""
    return args if isinstance(args, tuple) else (args,)


def input_names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """Name every tensor in `args` after the parameter of `forward` that it belongs to."""
    names = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    for position, arg in enumerate(args):
        parameter = parameters[min(position, len(parameters) - 1)]
        found = len(tensors(arg))
        is_numbered = found > 1 or parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{parameter.name}_{len(names) + i}" if is_numbered else parameter.name for i in range(found)]
    return names


def output_names(count: int) -> list[str]:
    """Name a graph's outputs ``output``, or ``output_0``, ``output_1``, ... where there are several."""
    return [f"output_{i}" for i in range(count)] if count > 1 else ["output"]


def example(gru: QuantGRU) -> Tensor:
    """Return an input (7, 3, input) that covers the range of the layer's input grid; torch's random stream stays."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(7, 3, gru.input_size, generator=generator)
    low, high = gru.input_grid.real_range if gru.is_calibrated() else (-1.0, 1.0)
    return (low + (high - low) * uniform).to(gru.weight_ih_l0)
