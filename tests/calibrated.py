"""Small calibrated layers."""

from __future__ import annotations

import torch
from torch import Tensor

from qgru import QuantGRU


def quantize(gru: QuantGRU, *inputs: Tensor) -> QuantGRU:
    """Calibrate a layer on inputs as its `forward` takes them, and switch it to quantized; returns it."""
    gru.calibrating = True
    with torch.no_grad():
        for x in inputs:
            gru(x)
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru


def calibrated(hidden: int, inputs: int, config: str | dict, method: str = "minmax", **options: object) -> QuantGRU:
    """Return a layer with grids from random data, quantized; the same for the same arguments."""
    torch.manual_seed(hidden)
    gru = QuantGRU(inputs, hidden, **options)
    gru.load_bitwidth_config(config)
    gru.calibration_method = method
    return quantize(gru, torch.randn(20, 4, inputs, dtype=gru.weight_ih_l0.dtype))
