"""The quantization state of a module: three integer buffers of fixed shape, and the same thing read into Python.

The buffers are the only home, so that `state_dict`, DDP and weights-only files carry it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from qgru.calibration.observer import Observations, Pending, settled
from qgru.grid import Grid
from qgru.ops.call import CellGrids
from qgru.schema import OPERATORS, OPTIONAL, BitwidthConfig, OperatorConfig

BUFFERS = ("quant_flags", "quant_grids", "quant_weight_exp2_inv")
WEIGHTS = tuple(name for name, operator in OPERATORS.items() if operator.is_weight)
_BIASES = ("weight.bw", "weight.br")


@dataclass(frozen=True)
class CellState:
    """What is known of one layer and direction.

    Attributes:
        config: the bit widths.
        grids: canonical operator name to grid, only configured operators; None before calibration.
    """

    config: BitwidthConfig
    grids: Mapping[str, Grid] | None = None

    def resolved(self) -> Mapping[str, Grid]:
        """Return the grids with ``op.Rh_add_br``, which is ``matmul.Rh``'s where it is not configured."""
        return self._resolved

    @cached_property
    def prepared(self) -> CellGrids:
        """The grids as backends take them."""
        return CellGrids(self._resolved)

    @cached_property
    def _resolved(self) -> Mapping[str, Grid]:
        assert self.grids is not None
        return {**self.grids, OPTIONAL: self.grids.get(OPTIONAL, self.grids["matmul.Rh"])}


@dataclass(frozen=True)
class QuantState:
    """The whole state of a module, read from its buffers.

    Attributes:
        use_quantization: the user's switch.
        cells: for every layer and direction, in `nn.GRU`'s order.
    """

    use_quantization: bool
    cells: tuple[CellState, ...]

    @cached_property
    def is_calibrated(self) -> bool:
        """True where every cell has grids."""
        return all(cell.grids is not None for cell in self.cells)

    @property
    def disable_quantization(self) -> bool:
        """True where the configuration keeps the module in float."""
        return self.cells[0].config.disable_quantization

    def without_grids(self) -> QuantState:
        """Return the state before calibration."""
        return replace(self, cells=tuple(replace(cell, grids=None) for cell in self.cells))


class StatefulGRU(nn.GRU):
    """An `nn.GRU` with the three buffers; it knows how to read, write, load and pickle them."""

    _observed: Pending | None = None
    _stale: bool = False  # observations arrived after the grids were made
    _read: tuple[tuple[Tensor, int], ...] | None = None
    _state: QuantState

    @property
    def observations(self) -> Observations | None:
        """What was seen since the last reset, for every layer and direction by operator; None where nothing was."""
        self._observed = settled(self._observed)
        return self._observed

    @observations.setter
    def observations(self, value: Observations | None) -> None:
        self._observed = value

    @property
    def use_quantization(self) -> bool:
        """Compute the integers of the definition instead of the float layer."""
        return self._quant_state().use_quantization

    @use_quantization.setter
    def use_quantization(self, value: bool) -> None:
        self._write(replace(self._quant_state(), use_quantization=bool(value)))

    def _quant_state(self) -> QuantState:
        """Return the buffers' meaning; they are read again only where one was changed or replaced."""
        if torch.compiler.is_compiling():  # the buffers have no values then
            return self._state
        current = self._buffer_versions()
        known = self._read
        if known is None or any(a[0] is not b[0] or a[1] != b[1] for a, b in zip(current, known, strict=True)):
            self._state, self._read = read(self), current
        return self._state

    def _buffer_versions(self) -> tuple[tuple[Tensor, int], ...]:
        buffers = map(self._buffers.__getitem__, BUFFERS)  # on the path of every call, where getattr takes its time
        return tuple([(buffer, 0 if buffer.is_inference() else buffer._version) for buffer in buffers])

    def _write(self, state: QuantState) -> None:
        write(self, state)
        self._state, self._read = state, self._buffer_versions()

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing_keys: list, *rest: list
    ) -> None:
        """Load as torch does; the state dict of an `nn.GRU` leaves the layer uncalibrated."""
        own = [prefix + name for name in BUFFERS]
        is_float = prefix + "weight_ih_l0" in state_dict and not any(key in state_dict for key in own)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if is_float:
            missing_keys[:] = [key for key in missing_keys if key not in own]
            self._write(self._state.without_grids())  # after `to_empty` the buffers hold anything
        if is_float or own[0] in state_dict:
            self.observations, self._stale = None, False
            self._quant_state()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key not in ("_read", "_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._state, self._read = read(self), self._buffer_versions()


def register_buffers(gru: StatefulGRU) -> None:
    """Add the three buffers, uncalibrated, on the device of the parameters."""
    cells, device = gru.num_layers * (2 if gru.bidirectional else 1), gru.weight_ih_l0.device
    shapes = {
        "quant_flags": ((3,), torch.uint8),
        "quant_grids": ((cells, len(OPERATORS), 5), torch.int64),
        "quant_weight_exp2_inv": ((cells, len(WEIGHTS), 3 * gru.hidden_size), torch.int64),
    }
    for name, (shape, dtype) in shapes.items():
        gru.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
    gru._write(QuantState(False, (CellState(BitwidthConfig()),) * cells))


def read(gru: nn.GRU) -> QuantState:
    """Read the buffers."""
    use, disabled, calibrated = gru.quant_flags.tolist()
    rows, exponents = gru.quant_grids.tolist(), gru.quant_weight_exp2_inv.tolist()
    cells = []
    for cell_rows, cell_exponents in zip(rows, exponents, strict=True):
        fields = {name: row for name, row in zip(OPERATORS, cell_rows, strict=True) if row[0]}
        configs = {name: OperatorConfig(row[0], bool(row[1]), bool(row[2])) for name, row in fields.items()}
        grids = None
        if calibrated:
            per_channel = dict(zip(WEIGHTS, map(tuple, cell_exponents), strict=True))
            if not gru.bias:
                per_channel.update(dict.fromkeys(_BIASES, 0))
            grids = {
                name: Grid(row[0], bool(row[1]), bool(row[2]), per_channel.get(name, row[3]), row[4])
                for name, row in fields.items()
            }
        cells.append(CellState(BitwidthConfig(configs, bool(disabled)), grids))
    return QuantState(bool(use), tuple(cells))


def write(gru: nn.GRU, state: QuantState) -> None:
    """Write a state into the buffers, in place where torch allows it."""
    flags = [state.use_quantization, state.disable_quantization, state.is_calibrated]
    channels = 3 * gru.hidden_size
    _store(gru, "quant_flags", [int(flag) for flag in flags])
    _store(gru, "quant_grids", [_rows(cell) for cell in state.cells])
    _store(gru, "quant_weight_exp2_inv", [_exponents(cell, channels) for cell in state.cells])


def _rows(cell: CellState) -> list[list[int]]:
    rows = []
    for name in OPERATORS:
        config = cell.config.operators.get(name)
        grid = cell.grids.get(name) if cell.grids else None
        head = [config.bitwidth, int(config.is_symmetric), int(config.is_unsigned)] if config else [0, 0, 0]
        per_tensor = grid is not None and not grid.is_per_channel
        rows.append([*head, grid.exp2_inv if per_tensor else 0, grid.zero_point if grid else 0])
    return rows


def _exponents(cell: CellState, channels: int) -> list[Sequence[int]]:
    grids = [cell.grids[name] if cell.grids else None for name in WEIGHTS]
    return [grid.exponents if grid is not None and grid.is_per_channel else [0] * channels for grid in grids]


def _store(gru: nn.GRU, name: str, values: list) -> None:
    buffer: Tensor = getattr(gru, name)
    fresh = torch.tensor(values, dtype=buffer.dtype, device=buffer.device).view(buffer.shape)
    if buffer.is_inference() and not torch.is_inference_mode_enabled():
        setattr(gru, name, fresh)
    else:
        buffer.copy_(fresh)
