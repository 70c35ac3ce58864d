"""Stage 1: observe the float model on training data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from qgru.convert import quantized_layers
from qgru.gru import QuantGRU
from qgru.stages.passes import ForwardFn, call_model, extra_pass


def uncalibrated_layers(module: nn.Module) -> dict[str, QuantGRU]:
    """Return the layers of a module that hold no grids yet, by qualified name."""
    return {name: layer for name, layer in quantized_layers(module).items() if not layer.is_calibrated()}


def calibrate(module: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None) -> int:
    """Run the float model over batches while its uncalibrated layers observe their values.

    The module is in eval mode meanwhile; every submodule gets its own mode back, and torch's, numpy's and Python's
    random states are left as they were. Layers that are calibrated are left alone.

    Args:
        module: a converted module.
        batches: what `forward_fn` takes, on the module's device.
        forward_fn: `forward_fn(module, batch)` calls the module; by default `module(batch[0])` for a tuple or list,
            else `module(batch)`.

    Returns:
        The number of batches seen.

    Raises:
        RuntimeError: where the default call does not fit the module.
        ValueError: naming the operator that holds a value that is not finite.
    """
    layers, seen = uncalibrated_layers(module).values(), 0
    with extra_pass(module), _observing(layers):
        for batch in batches:
            call_model(forward_fn, module, batch)
            seen += 1
    return seen


@contextmanager
def _observing(layers: Collection[QuantGRU]) -> Iterator[None]:
    for layer in layers:
        layer.reset_calibration()
        layer.calibrating = True
    try:
        yield
    finally:
        for layer in layers:
            layer.calibrating = False
