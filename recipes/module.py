"""What every recipe trains by: one loss, one metric, one optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric

_DECAY, _FLOOR = 0.7, 0.1


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """Fall along half a cosine from 1 to a tenth over the first 70 % of the epochs, and stay there.

    The last 30 % are what a quantized model fine-tunes in, falling on from there (see `qgru.callbacks.QAT`); a schedule
    that ended at zero would leave it no step.
    """
    progress = min(1.0, epoch / (_DECAY * epochs))
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


class RecipeModule(LightningModule):
    """Trains ``self(x)`` towards ``y`` on batches ``(x, y)``.

    Args:
        loss: of a prediction and its target.
        score: the test metric.
        learning_rate: of AdamW, at the start.
        epochs: that training takes, for the schedule.

    Attributes:
        metric: the name that the test metric is logged under.
        higher_is_better: of that metric.
    """

    metric: str
    higher_is_better: bool

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], score: Metric, learning_rate: float, epochs: int
    ) -> None:
        super().__init__()
        self.loss, self.score = loss, score
        self.learning_rate, self.epochs = learning_rate, epochs

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        return loss

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add a batch to the test metric."""
        x, y = batch
        self.score(self(x), y)
        self.log(self.metric, self.score, batch_size=len(y))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under `learning_rate_factor`, epoch by epoch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, self.epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
