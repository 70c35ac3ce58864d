"""El Nino: 732 monthly sea-surface temperatures of the region Nino 1+2, bundled with statsmodels."""

from __future__ import annotations

import numpy as np

from recipes.data import Baselines, RecipeData
from recipes.forecasting import examples, windows

_YEAR = 12


class ElNino(RecipeData):
    """Windows of monthly anomalies, and the change of the anomaly to the month after.

    An anomaly is a temperature less the training months' mean of its calendar month. Inputs are in standard
    deviations of the training anomalies, targets in degrees Celsius. As the last anomaly and the climatology are
    known, the error of the change is the error of the temperature. The last 20 % of the months are the test set's
    targets; their windows may reach back into the training months, as a forecaster's would.

    Args:
        window: months that are seen.
        batch_size: of training and test.
        seed: of the order of the training examples.
    """

    def __init__(self, window: int = 24, batch_size: int = 64, seed: int = 1) -> None:
        super().__init__(batch_size, seed)
        self.window = window

    def load(self) -> None:
        """Set both sets to examples of x (window, 1) and y ()."""
        self.temperatures = load_temperatures()
        self.train_months = len(self.temperatures) * 4 // 5
        self.anomalies = self.temperatures - climatology(self.temperatures, self.train_months)
        inputs, targets = windows(self.anomalies, self.window, horizon=1)
        changes = targets - inputs[:, -1]
        inputs = inputs / self.anomalies[: self.train_months].std()
        split = self.train_months - self.window
        self.train_set = examples(inputs[:split], changes[:split])
        self.test_set = examples(inputs[split:], changes[split:])

    def baselines(self) -> Baselines:
        """Score climatology + AR(1): the anomaly decays by a factor a month, fitted by least squares."""
        before, after = self.anomalies[:-1], self.anomalies[1:]
        split = self.train_months - 1
        factor = before[:split] @ after[:split] / (before[:split] @ before[:split])
        errors = after[split:] - factor * before[split:]
        return {"climatology + AR(1)": {"test/rmse": float(np.sqrt(np.mean(errors**2)))}}


def load_temperatures() -> np.ndarray:
    """Read January 1950 to December 2010, in degrees Celsius: (732,) float64."""
    from statsmodels.api import datasets  # half a second that only those who train should wait

    return datasets.elnino.load_pandas().data.drop(columns="YEAR").to_numpy().reshape(-1)


def climatology(temperatures: np.ndarray, months: int) -> np.ndarray:
    """Return each month's expected temperature: the mean of its calendar month over the first `months`.

    Args:
        temperatures: (time,), monthly.
        months: from the start, that the means are taken over; at least a year.

    Returns:
        (time,).
    """
    means = np.array([temperatures[month:months:_YEAR].mean() for month in range(_YEAR)])
    return means[np.arange(len(temperatures)) % _YEAR]
