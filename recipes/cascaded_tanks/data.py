"""Voltages of a pump and the levels that follow, simulated."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from recipes.cascaded_tanks.plant import simulate, voltages
from recipes.data import Baselines, RecipeData, nrmse

_TRAIN, _TEST, _SAMPLES = 256, 128, 128


class CascadedTanks(RecipeData):
    """The pump's voltage and the lower tank's level at every sample, both normalised by the training series.

    256 series of 128 samples to train on, 128 others to test on, the same for every seed.

    Args:
        batch_size: of training and test.
        seed: of the order of the training series.
    """

    def __init__(self, batch_size: int = 16, seed: int = 1) -> None:
        super().__init__(batch_size, seed)

    def load(self) -> None:
        """Set both sets to examples of x (128, 1) and y (128,)."""
        voltage = voltages(np.random.default_rng(17), _TRAIN + _TEST, _SAMPLES)
        x, y = (
            torch.from_numpy(((values - values[:_TRAIN].mean()) / values[:_TRAIN].std()).astype(np.float32))
            for values in (voltage, simulate(voltage))
        )
        self.train_set = TensorDataset(x[:_TRAIN, :, None], y[:_TRAIN])
        self.test_set = TensorDataset(x[_TRAIN:, :, None], y[_TRAIN:])

    def baselines(self) -> Baselines:
        """Score the best linear filter of the last 32 voltages, by least squares."""
        (x, y), (test_x, test_y) = (
            (_lagged(dataset.tensors[0][..., 0].double().numpy()), dataset.tensors[1].double().numpy().reshape(-1))
            for dataset in (self.train_set, self.test_set)
        )
        weights, *_ = np.linalg.lstsq(x, y)
        return {"linear FIR": {"test/nrmse": nrmse(test_x @ weights, test_y)}}


def _lagged(x: np.ndarray, lags: int = 32) -> np.ndarray:
    """Return a row a sample: the last voltages (zeros before the first), and 1.

    Args:
        x: (series, samples).
        lags: columns.

    Returns:
        (series * samples, lags + 1).
    """
    padded = np.pad(x, ((0, 0), (lags - 1, 0)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, lags, axis=1).reshape(-1, lags)
    return np.column_stack([rows, np.ones(len(rows))])
