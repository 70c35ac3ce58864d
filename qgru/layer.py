"""What makes a recurrent layer of torch a quantized one: integer buffers, switches, and a calibration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru import quant_params
from qgru.buffers import StateBuffers, keeps_values, register_buffers, why_not
from qgru.calibration.calibration import Calibration
from qgru.calibration.observer import Observations
from qgru.layout import standardize
from qgru.ops.call import Parameters
from qgru.ops.domain import outside_domain
from qgru.state import BUFFERS, QuantState
from qgru.streaming import Steps


class QuantizedLayer(nn.RNNBase):
    """Goes in front of `nn.GRU`: keeps the quantization state with the module, whatever torch does with that.

    Attributes:
        calibrating: record what float forwards see; wins over ``use_quantization``.
        export_mode: make `forward` traceable by `torch.onnx.export`.
    """

    calibrating: bool = False
    export_mode: bool = False
    _export_format: str = "qdq"
    _calibration: Calibration
    _state_buffers: StateBuffers
    _steps: Steps

    def _attach(self) -> None:
        """Make a blank quantization state part of the module."""
        self._calibration, self._state_buffers, self._steps = Calibration(), register_buffers(self), Steps()

    def _detach(self) -> None:
        """Leave nothing of the quantization in the module."""
        for name in BUFFERS:
            delattr(self, name)
        for name in QuantizedLayer.__annotations__:
            vars(self).pop(name, None)

    @property
    def use_quantization(self) -> bool:
        """Compute the integers of the definition instead of the float layer."""
        return self._quant_state().use_quantization

    @use_quantization.setter
    def use_quantization(self, value: bool) -> None:
        self._write(replace(self._quant_state(), use_quantization=bool(value)))

    @property
    def calibration_method(self) -> str:
        """``"sqnr"``, ``"percentile"`` or ``"minmax"``."""
        return self._calibration.method

    @calibration_method.setter
    def calibration_method(self, value: str) -> None:
        self._calibration.method = value

    @property
    def percentile_value(self) -> float:
        """Share of values that ``"percentile"`` keeps, in percent: above 0, at most 100."""
        return self._calibration.percentile

    @percentile_value.setter
    def percentile_value(self, value: float) -> None:
        self._calibration.percentile = value

    @property
    def observations(self) -> Observations | None:
        """What was seen since the last reset, for every layer and direction by operator; None where nothing was."""
        return self._calibration.observations

    @observations.setter
    def observations(self, value: Observations | None) -> None:
        self._calibration.observations = value

    def is_calibrated(self) -> bool:
        """Return True where every operator has a grid."""
        return self._quant_state().is_calibrated

    def has_observations(self) -> bool:
        """Return True where data was seen since the last reset."""
        return self._calibration.has_observations

    def ensure_calibrated(self) -> QuantState:
        """Make the grids, where data was seen that they don't know of; return the calibrated state.

        Raises:
            RuntimeError: where there are no grids and nothing was observed.
        """
        known = self._quant_state()
        if self._calibration.is_stale or not known.is_calibrated:
            self.finalize_calibration()
            known = self._quant_state()
        return known

    def finalize_calibration(self, verbose: bool = False) -> None:
        """Choose every operator's grid from what was observed.

        Raises:
            RuntimeError: where nothing was observed.
            ValueError: naming the operator that holds a non-finite value or a range that no grid holds.
        """
        self._write(self._calibration.calibrated(self._quant_state(), self._cells(), self.bias))
        self._calibration.is_stale = False
        self._warn_outside_domain()
        if verbose:
            print(quant_params.summary(self, self._quant_state().cells))

    def refresh_weight_grids(self) -> None:
        """Derive the four weight operators' grids anew from the current parameters; the others stay.

        Raises:
            RuntimeError: where the layer is not calibrated.
            ValueError: where a parameter is not finite; the message names the operator.
        """
        known = self.ensure_calibrated()
        self._write(self._calibration.with_fresh_weight_grids(known, self._cells(), self.bias))

    def reset_calibration(self) -> None:
        """Forget the grids and the observations; the bit widths stay."""
        self._calibration.forget()
        self._write(self._quant_state().without_grids())

    def _warn_outside_domain(self) -> None:
        for cell, parameters in zip(self._quant_state().prepared, self.all_weights, strict=True):
            for problem in outside_domain(cell.plan, parameters[0].shape[1], self.hidden_size):
                warnings.warn(
                    f"outside the exactness domain: {problem}; backends may differ in the last integer", stacklevel=3
                )
                return

    def _observe(self, input: Tensor | PackedSequence, hx: Tensor | None) -> None:
        x, h0, layout = standardize(self, input, hx)
        if h0 is None:
            h0 = x.new_zeros(len(self.all_weights), x.shape[1], self.hidden_size)
        self._calibration.observe(x, h0, self._cells(), self.bidirectional, layout.active)

    def _cells(self) -> list[Parameters]:
        """Return each layer's and direction's four parameters, zeros for missing biases."""
        if self.bias:
            return [tuple(weights) for weights in self.all_weights]
        missing = self.weight_ih_l0.new_zeros(3 * self.hidden_size)
        return [(*weights, missing, missing) for weights in self.all_weights]

    def _quant_state(self) -> QuantState:
        return self._state_buffers.read(self)

    def _write(self, state: QuantState) -> None:
        self._state_buffers.write(self, state)

    def train(self, mode: bool = True) -> QuantizedLayer:
        """Set the mode, as torch does."""
        if mode != self.training:
            self._state_buffers.expire()
        return super().train(mode)

    def reset_parameters(self) -> None:
        """Draw new parameters, as torch does; the layer is not calibrated then."""
        super().reset_parameters()
        if BUFFERS[0] in self._buffers:  # torch's constructor comes here first
            self.reset_calibration()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLayer:
        """Move or cast as torch does; after `to_empty` the layer is not calibrated."""
        self._state_buffers.expire()
        known, keeps = self._quant_state(), keeps_values(fn, self._buffers[BUFFERS[0]].device)
        super()._apply(fn, recurse)
        if not keeps:
            self._calibration.forget()
            self._write(known.without_grids())
        elif not self._state_buffers.have_types(self):
            self._write(known)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load as torch does, or change nothing; the state dict of a float layer leaves the layer uncalibrated."""
        given = {name: state_dict[prefix + name] for name in BUFFERS if prefix + name in state_dict}
        refused = self._misfits(state_dict, prefix)
        problem = why_not(self, given) if given else None
        if problem:
            refused.append(f"{prefix}{problem}")
        if refused:
            error_msgs.extend(refused)
            return
        first = (f"{prefix}weight_ih_l0", f"{prefix}parametrizations.weight_ih_l0.")
        is_float = not given and any(key.startswith(first) for key in state_dict)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if is_float:
            if self._state_buffers.state.is_calibrated:
                warnings.warn(
                    f"the state dict has no quantization state for {prefix.rstrip('.') or 'the layer'}, which was "
                    "calibrated: it computes in float now, until it is calibrated again",
                    stacklevel=2,
                )
            own = [prefix + name for name in BUFFERS]
            missing_keys[:] = [key for key in missing_keys if key not in own]
            self._write(self._state_buffers.state.without_grids())
        if is_float or given:
            self._calibration.forget()
            self._state_buffers.expire()
            self._quant_state()

    def _misfits(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        """Return torch's message for every parameter whose shape differs."""
        pairs = [(prefix + name, own, state_dict.get(prefix + name)) for name, own in self._parameters.items()]
        return [
            f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, "
            f"the shape in current model is {own.shape}."
            for key, own, given in pairs
            if own is not None and isinstance(given, Tensor) and given.shape != own.shape
        ]

    def __prepare_scriptable__(self) -> None:
        """Refuse to be compiled by `torch.jit.script`, which asks every module inside a model for this.

        Raises:
            RuntimeError: naming the ways that there are.
        """
        raise RuntimeError(
            "torch.jit.script can't compile a QuantGRU: write the quantized model with qgru.export.export_onnx, or "
            "script the float one, qgru.revert(copy.deepcopy(model))"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stand_alone()

    def _replicate_for_data_parallel(self) -> QuantizedLayer:
        replica = super()._replicate_for_data_parallel()
        replica._stand_alone()
        return replica

    def _stand_alone(self) -> None:
        """Share nothing but tensors with the layer that this one is a shallow copy of."""
        self._calibration = copy.copy(self._calibration)
        self._state_buffers = copy.copy(self._state_buffers)
        self._steps = Steps()
