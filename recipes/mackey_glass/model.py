"""A GRU that forecasts a chaotic series."""

from __future__ import annotations

from torchmetrics import NormalizedRootMeanSquaredError

from recipes.forecasting import Forecaster


class MackeyGlassForecaster(Forecaster):
    """Forecasts a value one horizon ahead; its error is in standard deviations of the target.

    Args:
        hidden_size: of the GRU.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.
    """

    metric = "test/nrmse"

    def __init__(self, hidden_size: int = 32, learning_rate: float = 1e-2, epochs: int = 60) -> None:
        super().__init__(NormalizedRootMeanSquaredError("std"), hidden_size, learning_rate, epochs)
        self.save_hyperparameters()
