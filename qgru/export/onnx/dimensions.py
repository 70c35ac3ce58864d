"""Which dimensions of a graph's inputs are dynamic, where the caller doesn't say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from qgru import torch_private
from qgru.export.onnx.arguments import tensors

Dimensions: TypeAlias = frozenset[tuple[int, int]]
"""Pairs of a tensor, counted from 0 in the arguments' order, and a dimension of it."""
Result = TypeVar("Result")


def dynamic_axes(names: Sequence[str], args: tuple[Any, ...], fixed: Dimensions) -> dict[str, dict[int, str]]:
    """Return `torch.onnx.export`'s ``dynamic_axes`` with dimensions 0 and 1 of every tensor in `args` but `fixed`."""
    axes: dict[str, dict[int, str]] = {name: {} for name in names}
    for index, axis in sorted(_all(args) - fixed):
        axes[names[index]][axis] = f"{names[index]}_dim_{axis}"
    return axes


def dynamic_shapes(args: tuple[Any, ...], fixed: Dimensions) -> Any:
    """Return `torch.onnx.export`'s ``dynamic_shapes``; otherwise as `dynamic_axes`."""
    dynamic, indices = _all(args) - fixed, count()

    def axes(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        index = next(indices)
        return {axis: torch.export.Dim.AUTO for axis in range(leaf.dim()) if (index, axis) in dynamic}

    return torch_private.tree_map(axes, args)


def as_dynamic_as_possible(
    export: Callable[[Dimensions], Result], names: Sequence[str], args: tuple[Any, ...]
) -> Result:
    """Export with all dimensions dynamic, or, where that fails, with as few fixed as will do, and warn which.

    Args:
        export: does so, with the given dimensions fixed.
        names: of the tensors in `args`.
        args: what `export` exports with.

    Returns:
        What `export` does.

    Raises:
        Exception: `export`'s own, where it fails with every dimension fixed as well.
    """
    try:
        return export(frozenset())
    except Exception as error:
        found = _with_some_fixed(export, args)
        if found is None:
            raise
        result, fixed = found
        sizes = [tensor.shape for tensor in tensors(args)]
        places = ", ".join(f"dimension {axis} of {names[i]!r} at {sizes[i][axis]}" for i, axis in sorted(fixed))
        warnings.warn(
            f"qgru: the file fixes {places}: the export fails otherwise ({type(error).__name__}); "
            "dynamic_axes says which dimensions are to vary",
            stacklevel=4,
        )
        return result


def _with_some_fixed(export: Callable[[Dimensions], Result], args: tuple[Any, ...]) -> tuple[Result, Dimensions] | None:
    """Return what `export` gives, and the dimensions that were fixed for it; None where fixing them is no help."""
    found = None
    for fixed in _choices(args):
        try:
            found = export(fixed), fixed
        except Exception:
            if fixed == _all(args):
                return None
        else:
            if fixed != _all(args):
                break
    return found


def _all(args: tuple[Any, ...]) -> Dimensions:
    return frozenset((i, axis) for i, tensor in enumerate(tensors(args)) for axis in range(min(2, tensor.dim())))


def _choices(args: tuple[Any, ...]) -> list[Dimensions]:
    """Return what to fix, in the order to try: the likeliest one, all (is it the dimensions?), each, each of all."""
    found = tensors(args)
    singles = sorted(_all(args), key=lambda place: (found[place[0]].shape[place[1]] != 1, -place[1], place[0]))
    groups = [frozenset(place for place in singles if place[1] == axis) for axis in (1, 0)]
    first, *rest = [frozenset([place]) for place in singles] or [_all(args)]
    return list(dict.fromkeys([first, _all(args), *rest, *groups]))
