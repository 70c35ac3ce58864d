"""Stage 3: train the quantized model."""

from __future__ import annotations

from torch import nn

from qgru.convert import quantized_layers


def start_qat_epoch(module: nn.Module) -> bool:
    """Switch every calibrated layer to its quantized forward, with weight grids that fit the current weights.

    Weights move in training; derived anew each epoch, their grids never hold them back.

    Args:
        module: a converted module, after `finalize`.

    Returns:
        True where there is a calibrated layer.

    Raises:
        ValueError: naming the operator, where a parameter is not finite.
    """
    layers = [layer for layer in quantized_layers(module).values() if layer.is_calibrated()]
    for layer in layers:
        layer.use_quantization = True
        layer.refresh_weight_grids()
    return bool(layers)
