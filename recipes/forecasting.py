"""Forecasting one value from a window of a series: what the two forecasting recipes share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import Metric

from recipes.module import RecipeModule


class Forecaster(RecipeModule):
    """A GRU reads the window, a linear layer turns its last state into the forecast.

    Args:
        score: the test metric.
        hidden_size: of the GRU.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.
    """

    higher_is_better = False

    def __init__(self, score: Metric, hidden_size: int, learning_rate: float, epochs: int) -> None:
        super().__init__(nn.functional.mse_loss, score, learning_rate, epochs)
        self.gru = nn.GRU(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast the value that follows each window.

        Args:
            x: (batch, time, 1).

        Returns:
            (batch,).
        """
        _, state = self.gru(x)
        return self.head(state[-1])[:, 0]


def windows(series: np.ndarray, window: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut series into every window and the value `horizon` samples after its end.

    Args:
        series: (..., time).
        window: samples that are seen.
        horizon: samples from the last one seen to the target, at least 1.

    Returns:
        Inputs (..., time - window - horizon + 1, window), targets (..., time - window - horizon + 1).
    """
    spans = np.lib.stride_tricks.sliding_window_view(series, window + horizon, axis=-1)
    return spans[..., :window], spans[..., -1]


def examples(inputs: np.ndarray, targets: np.ndarray) -> TensorDataset:
    """Make float32 examples ``(x, y)`` for a `Forecaster`.

    Args:
        inputs: (..., window).
        targets: (...).

    Returns:
        Examples of x (window, 1) and y ().
    """
    x = torch.from_numpy(inputs.reshape(-1, inputs.shape[-1], 1).astype(np.float32))
    return TensorDataset(x, torch.from_numpy(targets.reshape(-1).astype(np.float32)))
