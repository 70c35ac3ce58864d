"""The error of a bit-width configuration, measured: how far a module's outputs are from its float outputs.

No label is needed. Grids are kept by operator, width and what else they depend on, so that a configuration costs one
forward; its integers are those that `QuantGRU.load_bitwidth_config` and `finalize_calibration` would give.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qgru.calibration.cell import activation_grid, bias_limits, weight_grid
from qgru.direction import Direction, directions_of
from qgru.grid import Grid
from qgru.gru import QuantGRU
from qgru.ops import backends
from qgru.ops.cuda.backend import Cuda
from qgru.schema import OPERATORS, WEIGHTS, BitwidthConfig
from qgru.search.cost import layers_of
from qgru.search.difference import Difference, tensors_of
from qgru.stages.passes import ForwardFn, call_model, explained, extra_pass
from qgru.state import CellState, QuantState

_KERNELS = Cuda(shares_tables=False)  # else every sum of table sizes would be a kernel to compile

Place = tuple[str, Direction]
"""One direction of one layer: the layer's qualified name (empty where the module is the layer), and which."""


class Evaluator:
    """Measures configurations on a module that has observed data; the module stays as it is.

    Args:
        module: its every quantized layer has observations.
        batches: what `forward_fn` takes, on the module's device.
        forward_fn: `forward_fn(module, batch)` returns what the module makes of a batch: a tensor, or tuples, lists
            and mappings of tensors; by default it is `module(batch[0])` for a tuple or list, else `module(batch)`.
        logits: the outputs are logits, classes last: the error is the Kullback-Leibler divergence in nats from the
            float outputs' distribution, else the mean squared error relative to the float outputs' variance.

    Raises:
        ValueError: where there is no quantized layer, one has no observations, `batches` is empty, or a float output
            is not finite.
    """

    def __init__(
        self, module: nn.Module, batches: Sequence[Any], forward_fn: ForwardFn | None = None, logits: bool = False
    ) -> None:
        self._layers = {name: _Grids(layer) for name, layer in _observed(module).items()}
        if not len(batches):
            raise ValueError("batches is empty; expected one batch at least, to compare outputs on")
        self._module, self._batches, self._forward_fn = module, list(batches), explained(forward_fn)
        self.evaluations = 0
        with self._lent({name: grids.float_state for name, grids in self._layers.items()}):
            self._difference = Difference(list(self._outputs()), logits)

    @property
    def places(self) -> list[Place]:
        """Every direction of every layer."""
        return [(name, direction) for name, grids in self._layers.items() for direction in grids.directions]

    def error_of(self, states: Mapping[str, QuantState]) -> float:
        """Measure quantization states that are given, by the layers' names; see `error`."""
        self.evaluations += 1
        with self._lent(states):
            return self._difference.of(self._outputs())

    def has_bias(self, name: str) -> bool:
        """Tell whether a layer has biases."""
        return self._layers[name].layer.bias

    def error(self, config: BitwidthConfig, places: Mapping[Place, BitwidthConfig] | None = None) -> float:
        """Measure a configuration of all layers and directions.

        Args:
            config: bit widths.
            places: other bit widths for some directions; both directions of a layer have one width of ``input.x``.

        Returns:
            The error, 0 or more.

        Raises:
            ValueError: where an output is not finite.
        """
        chosen = places or {}
        configs = {
            name: [chosen.get((name, direction), config) for direction in grids.directions]
            for name, grids in self._layers.items()
        }
        return self.error_of({name: self._layers[name].state(of_cells) for name, of_cells in configs.items()})

    def _outputs(self) -> Iterator[list[Tensor]]:
        for index, batch in enumerate(self._batches):
            _seed(index)
            yield tensors_of(call_model(self._forward_fn, self._module, batch))

    @contextmanager
    def _lent(self, states: Mapping[str, QuantState]) -> Iterator[None]:
        """Give the layers other states for a while, and the module no way to keep anything of it."""
        with extra_pass(self._module), self._serving():
            kept = {name: _Kept(grids.layer) for name, grids in self._layers.items()}
            try:
                for name, state in states.items():
                    kept[name].lend(state)
                yield
            finally:
                for of_layer in kept.values():
                    of_layer.restore()

    def _serving(self) -> AbstractContextManager[None]:
        on_gpu = any(grids.layer.weight_ih_l0.is_cuda for grids in self._layers.values())
        return backends.forced(_KERNELS, *backends.registered()) if on_gpu else nullcontext()


def _observed(module: nn.Module) -> dict[str, QuantGRU]:
    layers = layers_of(module)
    for name, layer in layers.items():
        if not layer.has_observations():
            where = f"the layer {name!r}" if name else "the layer"
            raise ValueError(f"{where} has observed no data; run qgru.stages.calibrate(module, batches) first")
    return layers


def _seed(number: int) -> None:
    """Start every pass over a batch from the same random states, so that outputs differ by the widths alone."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    np.random.seed(number)
    random.seed(number)


class _Kept:
    """A layer's own state, while it has another."""

    def __init__(self, layer: QuantGRU) -> None:
        self._layer, self._state = layer, layer._quant_state()
        self._switches = layer.calibrating, layer.export_mode, layer._calibration.is_stale

    def lend(self, state: QuantState) -> None:
        self._layer.calibrating = self._layer.export_mode = self._layer._calibration.is_stale = False
        self._layer._write(state)

    def restore(self) -> None:
        self._layer._write(self._state)
        self._layer.calibrating, self._layer.export_mode, self._layer._calibration.is_stale = self._switches


class _Grids:
    """The grids of one layer for any configuration, each made once."""

    def __init__(self, layer: QuantGRU) -> None:
        self.layer, self.directions = layer, directions_of(layer)
        self._parameters, self._known = layer._cells(), {}
        self._seen = list(layer.observations)
        for index, direction in enumerate(self.directions):
            if direction.reverse:  # both directions share the input's grid
                self._seen[index] = {"input.x": self._seen[index - 1]["input.x"], **self._seen[index]}

    @property
    def float_state(self) -> QuantState:
        return QuantState(False, tuple(CellState(BitwidthConfig()) for _ in self.directions))

    def state(self, configs: Sequence[BitwidthConfig]) -> QuantState:
        """Return the calibrated state of a configuration for each direction."""
        cells = (CellState(config, self._of_cell(index, config)) for index, config in enumerate(configs))
        return QuantState(True, tuple(cells))

    def _of_cell(self, index: int, config: BitwidthConfig) -> dict[str, Grid]:
        activations = [name for name in config.operators if not OPERATORS[name].is_weight]
        grids = {name: self._activation(index, name, config) for name in activations}
        return grids | {name: self._weight(index, name, config, grids) for name in WEIGHTS}

    def _activation(self, index: int, name: str, config: BitwidthConfig) -> Grid:
        key = (index, name, config.operators[name], name == "matmul.Rh" and "op.Rh_add_br" in config.operators)
        if key not in self._known:
            layer = self.layer
            grid = activation_grid(name, config, self._seen[index], layer.calibration_method, layer.percentile_value)
            self._known[key] = grid
        return self._known[key]

    def _weight(self, index: int, name: str, config: BitwidthConfig, activations: Mapping[str, Grid]) -> Grid:
        limits, layer = bias_limits(name, activations), self.layer
        key = (index, name, config.operators[name], limits)
        if key not in self._known:
            parameter = self._parameters[index][WEIGHTS.index(name)]
            method, percentile = layer.calibration_method, layer.percentile_value
            self._known[key] = weight_grid(name, config, limits, parameter, layer.bias, method, percentile)
        return self._known[key]
