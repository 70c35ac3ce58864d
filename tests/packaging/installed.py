"""Run on an installed qgru: its kernels are there, and they give the reference's integers."""

from __future__ import annotations

import torch

import qgru
from qgru.ops import backends


def main() -> None:
    torch.manual_seed(0)
    gru, x = qgru.QuantGRU(5, 70, num_layers=2, bidirectional=True), torch.randn(20, 4, 5)
    gru.load_bitwidth_config("int8_mixed")
    gru.calibrating = True
    gru(x)
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    with torch.no_grad():
        with backends.forced("cpu"):
            output = gru(x)[0]
        with backends.forced("reference"):
            assert torch.equal(gru(x)[0], output)
    assert len(output.unique()) > 10
    print(qgru.__file__, backends.named("cpu").describe())


if __name__ == "__main__":
    main()
