"""A GRU that reads one sensor and stands in for another."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics import NormalizedRootMeanSquaredError

from recipes.module import RecipeModule


class LevelSensor(RecipeModule):
    """A GRU reads the voltage sample by sample, a linear layer turns each state into a level.

    Args:
        hidden_size: of the GRU.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.
        num_layers: of the GRU.
        bidirectional: True smooths: a level may depend on voltages after its sample.
    """

    metric = "test/nrmse"
    higher_is_better = False

    def __init__(
        self,
        hidden_size: int = 32,
        learning_rate: float = 2e-2,
        epochs: int = 150,
        num_layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(nn.functional.mse_loss, NormalizedRootMeanSquaredError("std"), learning_rate, epochs)
        self.save_hyperparameters()
        self.gru = nn.GRU(1, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden_size * (1 + bidirectional), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Estimate the level at every sample.

        Args:
            x: (batch, time, 1).

        Returns:
            (batch, time).
        """
        output, _ = self.gru(x)
        return self.head(output)[..., 0]
