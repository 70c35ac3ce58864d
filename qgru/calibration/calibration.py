"""What a layer saw, how its grids are to be made of that, and the state with those grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from qgru.calibration.cell import activation_grids, weight_grids
from qgru.calibration.methods import METHODS
from qgru.calibration.observer import Observations, Pending, merge, observe, on_host
from qgru.grid import Grid
from qgru.ops.call import Parameters
from qgru.state import CellState, QuantState


class Calibration:
    """Observe float forwards; make grids of what was seen.

    Attributes:
        is_stale: something was seen that the layer's grids don't know of.
    """

    def __init__(self) -> None:
        self.is_stale = False
        self._seen: Pending | None = None
        self._method = "sqnr"
        self._percentile = 99.99

    @property
    def method(self) -> str:
        """``"sqnr"``, ``"percentile"`` or ``"minmax"``."""
        return self._method

    @method.setter
    def method(self, value: str) -> None:
        if value not in METHODS:
            raise ValueError(f"calibration_method is {value!r}; expected one of {', '.join(METHODS)}")
        self._method = value

    @property
    def percentile(self) -> float:
        """Share of values that ``"percentile"`` keeps, in percent: above 0, at most 100."""
        return self._percentile

    @percentile.setter
    def percentile(self, value: float) -> None:
        if not isinstance(value, int | float) or not 0 < value <= 100:
            raise ValueError(f"percentile_value is {value!r}; expected a number above 0 and at most 100")
        self._percentile = float(value)

    @property
    def has_observations(self) -> bool:
        """True where data was seen since the last reset."""
        return self._seen is not None

    @property
    def observations(self) -> Observations | None:
        """What was seen since the last reset, for every layer and direction by operator; None where nothing was."""
        self._seen = on_host(self._seen)
        return self._seen

    @observations.setter
    def observations(self, value: Observations | None) -> None:
        self._seen = value

    def forget(self) -> None:
        """Drop what was seen."""
        self._seen, self.is_stale = None, False

    def observe(
        self, x: Tensor, h0: Tensor, parameters: Sequence[Parameters], bidirectional: bool, active: Tensor | None
    ) -> None:
        """Add every inner value of one float forward; see `qgru.calibration.observer.observe`."""
        self._seen = merge(self._seen, observe(x, h0, parameters, bidirectional, active))
        self.is_stale = True

    def calibrated(self, state: QuantState, parameters: Sequence[Parameters], bias: bool) -> QuantState:
        """Return a state whose every operator has the grid that fits what was seen.

        Args:
            state: holds the bit widths.
            parameters: of every layer and direction.
            bias: False where the biases are missing.

        Raises:
            RuntimeError: where nothing was seen.
            ValueError: naming the operator that holds a non-finite value or a range that no grid holds.
        """
        if self.observations is None:
            raise RuntimeError(
                "the layer is not calibrated and has seen no data; run forwards with calibrating = True first"
            )
        cells, shared = [], {}
        for cell, seen, own in zip(state.cells, self.observations, parameters, strict=True):
            shared = {"input.x": seen["input.x"]} if "input.x" in seen else shared
            grids = activation_grids(cell.config, {**shared, **seen}, self._method, self._percentile)
            cells.append(self._with_weight_grids(cell, grids, own, bias))
        return replace(state, cells=tuple(cells))

    def with_fresh_weight_grids(self, state: QuantState, parameters: Sequence[Parameters], bias: bool) -> QuantState:
        """Return a calibrated state whose four weight operators have grids that fit the parameters.

        Raises:
            ValueError: where a parameter is not finite; the message names the operator.
        """
        pairs = zip(state.cells, parameters, strict=True)
        return replace(state, cells=tuple(self._with_weight_grids(cell, cell.grids, own, bias) for cell, own in pairs))

    def _with_weight_grids(
        self, cell: CellState, grids: Mapping[str, Grid] | None, parameters: Parameters, bias: bool
    ) -> CellState:
        own = weight_grids(cell.config, grids, parameters, bias, self._method, self._percentile)
        return CellState(cell.config, {**grids, **own})
