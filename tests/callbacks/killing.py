"""A process that ends in the middle of a fit."""

from __future__ import annotations

from typing import Any

from qgru.callbacks.packages import Callback


class Killed(Exception):
    """What ends the process."""


class Kill(Callback):
    """Ends the process, as it were, after a batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed
