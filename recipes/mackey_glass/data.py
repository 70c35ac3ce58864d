"""Windows of Mackey-Glass series, generated."""

from __future__ import annotations

import numpy as np

from recipes.data import Baselines, RecipeData, nrmse
from recipes.forecasting import examples, windows
from recipes.mackey_glass.series import DELAY, simulate

_SERIES, _SAMPLES = 8, 400


class MackeyGlass(RecipeData):
    """Windows of a series, and the value `horizon` samples later, both normalised by the training series.

    Eight series of 400 samples to train on, eight others to test on, from random histories. They are short, and the
    same for every seed: chaos would let machines whose powers differ in the last bit drift apart on long ones, and
    runs of several seeds are to be compared on one test set.

    Args:
        window: samples that are seen; by default one delay and its two ends, from which the series follows.
        horizon: samples from the last one seen to the target.
        batch_size: of training and test.
        seed: of the order of the training examples.
    """

    def __init__(self, window: int = DELAY + 1, horizon: int = DELAY, batch_size: int = 128, seed: int = 1) -> None:
        super().__init__(batch_size, seed)
        self.window, self.horizon = window, horizon

    def load(self) -> None:
        """Set both sets to examples of x (window, 1) and y ()."""
        histories = np.random.default_rng(17).uniform(0.5, 1.3, 2 * _SERIES)
        series = simulate(histories, _SAMPLES)
        train = series[:_SERIES]
        series = (series - train.mean()) / train.std()
        self.train_set = examples(*windows(series[:_SERIES], self.window, self.horizon))
        self.test_set = examples(*windows(series[_SERIES:], self.window, self.horizon))

    def baselines(self) -> Baselines:
        """Score the last value, and the best linear forecast from the same window."""
        (x, y), (test_x, test_y) = (
            [part.double().numpy() for part in dataset.tensors] for dataset in (self.train_set, self.test_set)
        )
        x, test_x = x[..., 0], test_x[..., 0]
        (*weights, bias), *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y)
        forecasts = {"last value": test_x[:, -1], "linear AR": test_x @ weights + bias}
        return {name: {"test/nrmse": nrmse(forecast, test_y)} for name, forecast in forecasts.items()}
