"""What a refused call must do: raise one kind of error that names the thing, and leave the layer as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qgru import QuantGRU
from tests.calibrated import calibrated


def quantized(**options: object) -> QuantGRU:
    """A small calibrated layer whose grids differ in symmetry."""
    config = {"operator_config": {"gate.z_out": {"is_symmetric": False, "is_unsigned": True}}}
    return calibrated(5, 3, config, "sqnr", **{"batch_first": True, **options}).eval()


def snapshot(gru: QuantGRU) -> tuple:
    """Everything a caller can see."""
    state = {name: value.clone() for name, value in gru.state_dict().items()}
    return (
        state,
        gru.bitwidth_config,
        (gru.use_quantization, gru.calibrating, gru.is_calibrated(), gru.has_observations()),
        (gru.calibration_method, gru.percentile_value, gru.export_mode, gru.export_format),
        gru.get_quant_config(),
    )


def assert_unchanged(gru: QuantGRU, before: tuple) -> None:
    """The module is what it was when `snapshot` was taken."""
    after = snapshot(gru)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert after[1:] == before[1:]


def refused(gru: QuantGRU, act: Callable[[QuantGRU], object], kind: type[Exception], *named: str) -> None:
    """The call raises, its message holds every part named, and the module is as it was."""
    before = snapshot(gru)
    with pytest.raises(kind) as error:
        act(gru)
    for part in named:
        assert part in str(error.value), error.value
    assert_unchanged(gru, before)
