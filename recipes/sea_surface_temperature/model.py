"""A GRU that forecasts the temperature's departure from the calendar month's mean."""

from __future__ import annotations

from torchmetrics import MeanSquaredError

from recipes.forecasting import Forecaster


class TemperatureForecaster(Forecaster):
    """Forecasts the change of the anomaly to the month after; its error is in degrees Celsius.

    Args:
        hidden_size: of the GRU.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.
    """

    metric = "test/rmse"

    def __init__(self, hidden_size: int = 32, learning_rate: float = 3e-3, epochs: int = 50) -> None:
        super().__init__(MeanSquaredError(squared=False), hidden_size, learning_rate, epochs)
        self.save_hyperparameters()
