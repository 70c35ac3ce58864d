"""A small calibrated layer."""

from __future__ import annotations

import torch

from qgru import QuantGRU


def calibrated(hidden: int, inputs: int, config: str | dict, method: str = "minmax", **options: object) -> QuantGRU:
    """Return a layer with grids from random data, quantized; the same for the same arguments."""
    torch.manual_seed(hidden)
    gru = QuantGRU(inputs, hidden, **options)
    gru.load_bitwidth_config(config)
    gru.calibration_method = method
    gru.calibrating = True
    with torch.no_grad():
        gru(torch.randn(20, 4, inputs))
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru
