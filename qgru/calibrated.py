"""The calibrated part of a layer: what it observed, and the grids that were chosen from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from qgru import quant_params
from qgru.calibration.cell import activation_grids, weight_grids
from qgru.calibration.methods import METHODS
from qgru.calibration.observer import merge, observe
from qgru.grid import Grid
from qgru.layout import standardize
from qgru.ops.call import Parameters
from qgru.ops.domain import outside_domain
from qgru.schema import BitwidthConfig
from qgru.state import CellState, QuantState, StatefulGRU


class CalibratedGRU(StatefulGRU):
    """Observe float forwards; make grids of what was seen."""

    _calibration_method: str = "sqnr"
    _percentile_value: float = 99.99

    def _observe(self, input: Tensor | PackedSequence, hx: Tensor | None) -> None:
        x, h0, layout = standardize(self, input, hx)
        if h0 is None:
            h0 = x.new_zeros(len(self.all_weights), x.shape[1], self.hidden_size)
        seen = observe(x, h0, self._cells(), self.bidirectional, layout.active)
        self._observed = merge(self._observed, seen)
        self._stale = True

    def _cells(self) -> list[Parameters]:
        """Return each layer's and direction's four parameters, zeros for missing biases."""
        if self.bias:
            return [tuple(weights) for weights in self.all_weights]
        missing = self.weight_ih_l0.new_zeros(3 * self.hidden_size)
        return [(*weights, missing, missing) for weights in self.all_weights]

    @property
    def calibration_method(self) -> str:
        """``"sqnr"``, ``"percentile"`` or ``"minmax"``."""
        return self._calibration_method

    @calibration_method.setter
    def calibration_method(self, value: str) -> None:
        if value not in METHODS:
            raise ValueError(f"calibration_method is {value!r}; expected one of {', '.join(METHODS)}")
        self._calibration_method = value

    @property
    def percentile_value(self) -> float:
        """Share of values that ``"percentile"`` keeps, in percent: above 0, at most 100."""
        return self._percentile_value

    @percentile_value.setter
    def percentile_value(self, value: float) -> None:
        if not isinstance(value, int | float) or not 0 < value <= 100:
            raise ValueError(f"percentile_value is {value!r}; expected a number above 0 and at most 100")
        self._percentile_value = float(value)

    def is_calibrated(self) -> bool:
        """Return True where every operator has a grid."""
        return self._quant_state().is_calibrated

    def has_observations(self) -> bool:
        """Return True where data was seen since the last reset."""
        return self._observed is not None

    def ensure_calibrated(self) -> QuantState:
        """Make the grids, where data was seen that they don't know of; return the calibrated state.

        Raises:
            RuntimeError: where there are no grids and nothing was observed.
        """
        known = self._quant_state()
        if self._stale or not known.is_calibrated:
            self.finalize_calibration()
            known = self._quant_state()
        return known

    def finalize_calibration(self, verbose: bool = False) -> None:
        """Choose every operator's grid from what was observed.

        Raises:
            RuntimeError: where nothing was observed.
            ValueError: naming the operator that holds a non-finite value or a range that no grid holds.
        """
        if self.observations is None:
            raise RuntimeError(
                "the layer is not calibrated and has seen no data; run forwards with calibrating = True first"
            )
        cells, shared = [], {}
        for index, (cell, seen) in enumerate(zip(self._quant_state().cells, self.observations, strict=True)):
            shared = {"input.x": seen["input.x"]} if "input.x" in seen else shared
            method = (self.calibration_method, self.percentile_value)
            grids = activation_grids(cell.config, {**shared, **seen}, *method)
            cells.append(CellState(cell.config, {**grids, **self._weight_grids(index, cell.config, grids)}))
        self._write(replace(self._quant_state(), cells=tuple(cells)))
        self._stale = False
        self._warn_outside_domain()
        if verbose:
            print(quant_params.summary(self))

    def refresh_weight_grids(self) -> None:
        """Derive the four weight operators' grids anew from the current parameters; the others stay.

        Raises:
            RuntimeError: where the layer is not calibrated.
            ValueError: where a parameter is not finite; the message names the operator.
        """
        self.ensure_calibrated()
        cells = []
        for index, cell in enumerate(self._quant_state().cells):
            cells.append(replace(cell, grids={**cell.grids, **self._weight_grids(index, cell.config, cell.grids)}))
        self._write(replace(self._quant_state(), cells=tuple(cells)))

    def _weight_grids(self, index: int, config: BitwidthConfig, grids: Mapping[str, Grid]) -> dict[str, Grid]:
        method = (self.calibration_method, self.percentile_value)
        return weight_grids(config, grids, self._cells()[index], self.bias, *method)

    def _warn_outside_domain(self) -> None:
        for index, cell in enumerate(self._quant_state().cells):
            input_size = self.all_weights[index][0].shape[1]
            for problem in outside_domain(cell.prepared.plan, input_size, self.hidden_size):
                warnings.warn(
                    f"outside the exactness domain: {problem}; backends may differ in the last integer", stacklevel=3
                )
                return

    def reset_calibration(self) -> None:
        """Forget the grids and the observations; the bit widths stay."""
        self.observations, self._stale = None, False
        self._write(self._quant_state().without_grids())
