"""Stage 2: from what was observed to grids."""

from __future__ import annotations

from torch import nn

from qgru.calibration import operator_sqnr
from qgru.direction import Direction
from qgru.stages.calibration import uncalibrated_layers


def finalize(module: nn.Module) -> dict[str, float]:
    """Give every layer that was observed and not finalized its grids.

    Args:
        module: a converted module, after `calibrate`.

    Returns:
        The signal to quantization noise ratio in dB of every operator that was observed, by
        ``"<layer>/<operator>"``; operators past layer 0 forward carry `nn.GRU`'s suffix (``_l1``, ``_reverse``).

    Raises:
        ValueError: naming the operator, where it saw non-finite values.
    """
    metrics: dict[str, float] = {}
    for name, layer in uncalibrated_layers(module).items():
        if not layer.has_observations():
            continue
        layer.finalize_calibration()
        for direction, operators in operator_sqnr(layer).items():
            suffix = Direction(*direction).short_suffix
            metrics.update({f"{_plain(name)}/{operator}{suffix}": value for operator, value in operators.items()})
    return metrics


def _plain(name: str) -> str:
    """Return a module's name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")
