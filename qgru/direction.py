"""One direction of one layer: what parameters, grids and files are kept by, in `nn.GRU`'s order."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from qgru.schema import WEIGHTS

_PREFIXES = dict(zip(WEIGHTS, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), strict=True))


class Direction(NamedTuple):
    """One direction of one layer.

    Attributes:
        layer: counted from 0.
        reverse: True for the walk from the last time step to the first.
    """

    layer: int = 0
    reverse: bool = False

    @property
    def suffix(self) -> str:
        """`nn.GRU`'s ending of parameter names: ``"_l0"``, ``"_l1_reverse"``."""
        return f"_l{self.layer}{'_reverse' * self.reverse}"

    @property
    def short_suffix(self) -> str:
        """`suffix` without ``"_l0"``, for names that a single layer is to keep: ``""``, ``"_reverse"``, ``"_l1"``."""
        return self.suffix.removeprefix("_l0")

    @property
    def section(self) -> str:
        """The key in ``quant_params.json``: ``"operators"``, ``"operators_reverse"``, ``"operators_reverse_l1"``."""
        return f"operators{'_reverse' * self.reverse}{f'_l{self.layer}' if self.layer else ''}"

    def __str__(self) -> str:
        return f"layer {self.layer}{', reverse' * self.reverse}"


def parameter_name(operator: str, direction: Direction) -> str:
    """Return `nn.GRU`'s name of a weight operator's parameter: ``"weight_ih_l1_reverse"`` for ``"weight.W"``."""
    return _PREFIXES[operator] + direction.suffix


def directions_of(gru: nn.GRU) -> tuple[Direction, ...]:
    """Return every direction of every layer, in the order of `nn.GRU`'s parameters and final states."""
    both = (False, True) if gru.bidirectional else (False,)
    return tuple(Direction(layer, reverse) for layer in range(gru.num_layers) for reverse in both)


def index_of(gru: nn.GRU, direction: Direction) -> int:
    """Return where a direction stands in `directions_of`.

    Raises:
        ValueError: where the layer has none such.
    """
    known = directions_of(gru)
    if direction not in known:
        count = len(known) // gru.num_layers
        raise ValueError(
            f"layer {direction.layer}, reverse {direction.reverse}: expected one of {gru.num_layers} layers, "
            f"{count} direction(s)"
        )
    return known.index(direction)
