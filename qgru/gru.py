"""`QuantGRU`: `nn.GRU`'s surface and parameters, with a quantization state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru import adjust, integers, quant_params, streaming
from qgru.configs import load_config
from qgru.direction import Direction, directions_of, index_of
from qgru.export import formats
from qgru.grid import Grid
from qgru.layer import QuantizedLayer
from qgru.layout import standardize
from qgru.ops.stack import quantized_gru
from qgru.schema import WEIGHTS, BitwidthConfig, canonical_name
from qgru.state import CellState, QuantState


class QuantGRU(QuantizedLayer, nn.GRU):
    """A drop-in for `nn.GRU` whose every operator can be quantized.

    In float mode it *is* `nn.GRU`. With ``calibrating`` on, a forward returns the float result and records what it
    saw. With ``use_quantization`` on, it computes the integers of the definition, differentiably.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: `nn.GRU`'s.
        use_quantization: the switch's initial value.

    Attributes:
        calibrating: record what float forwards see; wins over ``use_quantization``.
        export_mode: make `forward` traceable by `torch.onnx.export`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        use_quantization: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )
        self._attach()
        self.use_quantization = use_quantization

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run the layer; arguments, layouts and results are `nn.GRU`'s.

        Raises:
            RuntimeError: where quantization is on and no data was seen to calibrate from, or in `torch.jit.trace`.
            ValueError: where ``calibrating`` is on and a value is not finite (the message names the operator), or where
                the buffers hold no valid state.
        """
        if self.export_mode:
            traced = formats.traced_forward(self, input, hx)
            if traced is not None:
                return traced
        if self.calibrating:
            self._observe(input, hx)
            return super().forward(input, hx)
        known = self._quant_state()
        if known.use_quantization and not known.disable_quantization:
            ready = known.is_calibrated and not self._calibration.is_stale
            return self._quantized_forward(input, hx, known if ready else self.ensure_calibrated())
        return super().forward(input, hx)

    def _quantized_forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None, known: QuantState
    ) -> tuple[Any, Tensor]:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "torch.jit.trace can't record a quantized layer: write it with qgru.export.export_onnx, or switch "
                "export_mode on for torch.onnx.export, or use_quantization off to trace the float layer"
            )
        x, h0, layout = standardize(self, input, hx)
        dropout = self.dropout if self.training else 0.0
        autocast = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
            result = quantized_gru(x, h0, self._cells(), known.prepared, self.bidirectional, layout.active, dropout)
        output, h_n = (tensor.to(self.weight_ih_l0.dtype) for tensor in result)
        return layout.output(output), layout.hidden(h_n)

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run one time step of a stream, as `forward` on a sequence of one.

        Steps that follow each other give what `forward` gives on the whole sequence, to the last bit as long as the
        layer's type holds the integers of ``output.h`` (24 bits in float32); `forward_integers` has no such limit.
        `qgru.streaming` says how weights are prepared for that, once.

        Args:
            x_t: (batch, input) or (input,), whatever ``batch_first`` is.
            state: (layers, batch, hidden) or (layers, hidden); None for zeros.

        Returns:
            The output (batch, hidden) or (hidden,), and the next state.

        Raises:
            ValueError: where the layer is bidirectional or `x_t` is not one time step; otherwise as `forward`.
            RuntimeError: as `forward`.
        """
        return streaming.step(self, x_t, state)

    def forward_integers(
        self, x_q: Tensor | PackedSequence, hx_q: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the quantized layer on integers, whatever ``use_quantization`` says; without dropout and gradients.

        Args:
            x_q: integers of any type on `input_grid`, laid out as `forward`'s input.
            hx_q: (layers * directions, batch, hidden) integers, each on its own ``grids(layer, reverse)["output.h"]``;
                None for a state of zeros, the real number.

        Returns:
            The output on `output_grid`, the last states on the grids of `hx_q`; int32, or int64 for unsigned 32 bits.

        Raises:
            TypeError: where a tensor does not hold integers.
            ValueError: where an integer is off its grid, or a parameter is NaN.
            RuntimeError: where the layer is not calibrated, or a shape or device does not fit.
        """
        return integers.forward_integers(self, self._cells(), self.ensure_calibrated().prepared, x_q, hx_q)

    @property
    def input_grid(self) -> Grid:
        """The first layer's ``input.x``, of `forward_integers`'s input."""
        return self.grids()["input.x"]

    @property
    def output_grid(self) -> Grid | tuple[Grid, ...]:
        """The last layer's ``output.h``, of `forward_integers`'s output; with two directions a tuple of both."""
        last = [direction for direction in directions_of(self) if direction.layer == self.num_layers - 1]
        return integers.output_grid([self.grids(*direction)["output.h"] for direction in last])

    def __dir__(self) -> list[str]:
        absent = () if self.is_calibrated() else ("input_grid", "output_grid")
        return [name for name in super().__dir__() if name not in absent]  # tracers get everything that is listed

    @property
    def export_format(self) -> str:
        """``"qdq"`` or ``"float"``: what `torch.onnx.export` writes while ``export_mode`` is on."""
        return self._export_format

    @export_format.setter
    def export_format(self, value: str) -> None:
        self._export_format = formats.find_traced(value, "export_format").name

    @property
    def bitwidth_config(self) -> BitwidthConfig:
        """The bit widths of the first layer, which are those of all unless `adjust_quant_config` named one."""
        return self._quant_state().cells[0].config

    def load_bitwidth_config(self, config: str | Path | Mapping[str, Any], verbose: bool = False) -> None:
        """Set the bit widths of every layer and direction.

        Args:
            config: a preset's name, the path of a JSON file, or a mapping.
            verbose: print the operators.

        Raises:
            ValueError, FileNotFoundError: where `config` is not a configuration.
            RuntimeError: where the layer is calibrated and holds no observations to make new grids from.
        """
        self._reconfigure([load_config(config)] * len(self._quant_state().cells), verbose)

    def set_all_bitwidth(self, bitwidth: int, is_symmetric: bool = True, verbose: bool = False) -> None:
        """Give every configured operator a width, and every activation a symmetry; weights stay symmetric.

        Raises:
            ValueError: where `bitwidth` is not an integer from 1 to 32.
            RuntimeError: as `load_bitwidth_config`.
        """
        cells = self._quant_state().cells
        self._reconfigure([adjust.with_width(cell.config, bitwidth, is_symmetric) for cell in cells], verbose)

    def _reconfigure(self, configs: list[BitwidthConfig], verbose: bool) -> None:
        if self.is_calibrated() and not self.observations:
            raise RuntimeError(
                "the layer is calibrated and what it observed is gone; call reset_calibration(), set the bit widths, "
                "and calibrate again, or change single operators with adjust_quant_config()"
            )
        cells = tuple(CellState(config) for config in configs)
        self._write(replace(self._quant_state(), cells=cells))
        if verbose:
            print(quant_params.summary(self, self._quant_state().cells))

    def adjust_quant_config(
        self,
        op: str,
        bitwidth: int | None = None,
        is_symmetric: bool | None = None,
        exp2_inv: int | list[int] | None = None,
        zero_point: int | None = None,
        layer: int = 0,
        reverse: bool = False,
    ) -> None:
        """Give one operator of one layer a wider or narrower grid over the same range.

        Args:
            op: full or short name.
            bitwidth: new width; the range stays.
            is_symmetric: new symmetry; minmax on the old grid's range.
            exp2_inv: new exponent as given (a list with one for each channel for a weight).
            zero_point: new zero point as given.
            layer: which layer.
            reverse: which direction; ``x`` is set for both, which share it.

        Raises:
            ValueError: for an unknown operator, or a value off its range or grid.
            RuntimeError: where an exponent or zero point is given before calibration.
        """
        if self._calibration.is_stale:
            self.ensure_calibrated()
        changed = adjust.Change(canonical_name(op), bitwidth, is_symmetric, exp2_inv, zero_point)
        indices = {index_of(self, Direction(layer, reverse))}
        if changed.op == "input.x":
            indices |= {index_of(self, Direction(layer, other)) for other in (False, self.bidirectional)}
        cells = list(self._quant_state().cells)
        for index in indices:
            cells[index] = adjust.adjusted(cells[index], changed)
        self._write(replace(self._quant_state(), cells=tuple(cells)))

    def get_quant_config(self, op: str | None = None, layer: int = 0, reverse: bool = False) -> dict[str, Any]:
        """Return ``bitwidth, is_symmetric, is_unsigned, exp2_inv, zero_point, scale`` of an operator.

        Args:
            op: full or short name; None for a dict of all configured operators by canonical name.
            layer: which layer.
            reverse: which direction.

        Returns:
            The last three values are None before calibration, and `exp2_inv` and `scale` are lists for a weight.
        """
        cell = self._quant_state().cells[index_of(self, Direction(layer, reverse))]
        if op is None:
            return {name: quant_params.describe(cell, name) for name in cell.config.operators}
        return quant_params.describe(cell, canonical_name(op))

    def grids(self, layer: int = 0, reverse: bool = False) -> dict[str, Grid]:
        """Return every operator's grid by canonical name, ``op.Rh_add_br`` included.

        Raises:
            RuntimeError: where the layer is not calibrated.
        """
        return self.ensure_calibrated().cells[index_of(self, Direction(layer, reverse))].resolved()

    def quantized_weights(self, layer: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the integers of the four parameters by canonical name, int64, gates in the order r, z, n.

        Raises:
            RuntimeError: where the layer is not calibrated.
        """
        grids = self.grids(layer, reverse)
        parameters = zip(WEIGHTS, self._cells()[index_of(self, Direction(layer, reverse))], strict=True)
        return {name: grids[name].quantize(parameter.detach()) for name, parameter in parameters}

    def export_quant_params(self, path: str | Path, include_weights: bool = False, verbose: bool = False) -> None:
        """Write ``quant_params.json``.

        Raises:
            RuntimeError: where the layer is not calibrated.
        """
        weights = [self.quantized_weights(*direction) for direction in directions_of(self)] if include_weights else None
        quant_params.save(self, self.ensure_calibrated().cells, path, weights)
        if verbose:
            print(f"wrote {path}\n{quant_params.summary(self, self._quant_state().cells)}")

    def load_quant_params(self, path: str | Path, verbose: bool = False) -> None:
        """Take the grids of a ``quant_params.json``; the parameters stay.

        Raises:
            ValueError: where the file is not one or does not fit the module; nothing is changed then.
        """
        cells = quant_params.load(self, self._quant_state().cells, path)
        self._calibration.forget()
        self._write(replace(self._quant_state(), cells=cells))
        if verbose:
            print(f"loaded {path}\n{quant_params.summary(self, self._quant_state().cells)}")
