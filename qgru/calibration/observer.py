"""What was seen of a module: a histogram for every operator, layer and direction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from qgru.calibration.cell import CalibrationError, naming
from qgru.calibration.device import DeviceHistogram, count, counts
from qgru.calibration.histogram import Histogram
from qgru.calibration.inner import inner_values
from qgru.direction import Direction, parameter_name
from qgru.ops.call import Parameters
from qgru.schema import WEIGHTS

Observations = list[dict[str, Histogram]]
"""For every layer and direction, canonical operator name to histogram. Never changed in place."""

Pending = list[dict[str, Histogram | DeviceHistogram]]
"""The same, while some of it may still be on a GPU."""


@torch.no_grad()
def observe(
    x: Tensor, h0: Tensor, parameters: Sequence[Parameters], bidirectional: bool, active: Tensor | None
) -> Pending:
    """Count every inner value of one float forward; the arguments are `inner_values`'s.

    It runs in float32 (float64 for a float64 module), outside autocast, and without dropout.

    Raises:
        CalibrationError: naming the operator in which a value is NaN or infinite, and for a weight the parameter, or
            saying that there was no value.
    """
    dtype = torch.promote_types(parameters[0][0].dtype, torch.float32)
    cast = [tuple(p.detach().to(dtype) for p in cell) for cell in parameters]
    if not x.shape[1] or (active is not None and not active.any()):
        raise CalibrationError(f"calibration: the input of shape {tuple(x.shape)} holds no values")
    for index, cell in enumerate(cast):
        direction = Direction(index // 2, index % 2 == 1) if bidirectional else Direction(index)
        for name, parameter in zip(WEIGHTS, cell, strict=True):
            with naming(name):
                _check_finite(parameter_name(name, direction), parameter)
    with torch.autocast(x.device.type, enabled=False):
        layers = inner_values(x.detach().to(dtype), h0.detach().to(dtype), cast, bidirectional, active)
        return [_count_all(values) for values in layers]


def _check_finite(name: str, parameter: Tensor) -> None:
    if not parameter.isfinite().all():
        raise ValueError(f"the parameter {name} holds NaN or infinity; expected finite numbers")


def _count_all(values: dict[str, list[Tensor]]) -> dict[str, Histogram | DeviceHistogram]:
    if all(counts(tensor) for tensors in values.values() for tensor in tensors):
        return dict(count(values))
    return {name: _count(name, tensors) for name, tensors in values.items()}


def _count(name: str, tensors: list[Tensor]) -> Histogram:
    with naming(name):
        histogram = Histogram.of(tensors[0])
        for tensor in tensors[1:]:
            histogram = histogram + Histogram.of(tensor)
    return histogram


def merge(a: Pending | None, b: Pending | None) -> Pending | None:
    """Return what was seen in both; the order does not matter."""
    if not a or not b:
        return a or b
    return [{name: _sum(one[name], other[name]) for name in one} for one, other in zip(a, b, strict=True)]


def _sum(a: Histogram | DeviceHistogram, b: Histogram | DeviceHistogram) -> Histogram | DeviceHistogram:
    if isinstance(a, DeviceHistogram) and isinstance(b, DeviceHistogram) and a.table.device == b.table.device:
        return a + b
    return _on_host(a) + _on_host(b)


def _on_host(histogram: Histogram | DeviceHistogram) -> Histogram:
    return histogram.to_host() if isinstance(histogram, DeviceHistogram) else histogram


def on_host(seen: Pending | None) -> Observations | None:
    """Return what was seen, all of it on the CPU."""
    if seen is None:
        return None
    return [{name: _on_host(histogram) for name, histogram in cell.items()} for cell in seen]


def merge_ranks(module: nn.Module) -> None:
    """Give every rank what all ranks of the default process group observed, in every `QuantGRU` of `module`.

    All ranks must call it. Without a process group it does nothing.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    layers = [layer for layer in module.modules() if hasattr(layer, "observations")]
    gathered: list[list[Observations | None]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, [layer.observations for layer in layers])
    for layer, of_all_ranks in zip(layers, zip(*gathered, strict=True), strict=True):
        layer.observations = reduce(merge, of_all_ranks)
