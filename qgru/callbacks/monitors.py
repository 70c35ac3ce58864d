"""Scores across the stages: a float score must neither beat a quantized one nor end the fit before there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from qgru.callbacks.packages import LightningModule, Trainer, classes

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import EarlyStopping

_HOOKS = ("on_train_epoch_end", "on_validation_end")
_DIVERGED = ("NON_FINITE_METRIC", "DIVERGENCE_THRESHOLD")  # of an enumeration that each package has its own of
_MODEL_CHECKPOINT = classes("callbacks.ModelCheckpoint")


def reset_monitors(trainer: Trainer) -> None:
    """Let every `EarlyStopping` and every `ModelCheckpoint` with a monitor start over; their files stay on disk."""
    for stopping in trainer.early_stopping_callbacks:
        stopping.wait_count = stopping.stopped_epoch = 0
        stopping.best_score = torch.tensor(torch.inf if stopping.mode == "min" else -torch.inf)
        stopping.stopping_reason = type(stopping.stopping_reason)["NOT_STOPPED"]
        stopping.stopping_reason_message = None
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, _MODEL_CHECKPOINT) and checkpoint.monitor is not None:
            checkpoint.best_k_models = {}
            checkpoint.best_model_path = checkpoint.kth_best_model_path = ""
            checkpoint.best_model_score = checkpoint.current_score = None
            checkpoint.kth_value = torch.tensor(torch.inf if checkpoint.mode == "min" else -torch.inf)


class EarlyStopGate:
    """Turns an early stop of the float stage into the start of calibration.

    Lightning decides to stop right after the callbacks' last hook of an epoch, so this stands in front of the hooks
    of each `EarlyStopping` while the gate is closed.

    Attributes:
        stop_requested: True once a float stage would have ended; it goes on to calibration at the next epoch.
        has_diverged: True where a float stage was stopped for a score that is not finite, or too bad: that ends the
            fit as it would without the gate.
    """

    def __init__(self) -> None:
        self.stop_requested = self.has_diverged = False
        self._gated: list[EarlyStopping] = []

    def close(self, trainer: Trainer) -> None:
        """Hold back the early stopping callbacks of a trainer."""
        for stopping in trainer.early_stopping_callbacks:
            for hook in _HOOKS:
                setattr(stopping, hook, partial(self._held_back, stopping, getattr(stopping, hook)))
            self._gated.append(stopping)

    def open(self) -> None:
        """Let the callbacks stop the fit again."""
        for stopping in self._gated:
            for hook in _HOOKS:
                delattr(stopping, hook)
        self._gated.clear()

    def _held_back(
        self, stopping: EarlyStopping, hook: Callable[..., None], trainer: Trainer, pl_module: LightningModule
    ) -> None:
        was_stopped = trainer.should_stop
        hook(trainer, pl_module)
        if trainer.should_stop and not was_stopped:
            if stopping.stopping_reason.name in _DIVERGED:
                self.has_diverged = True
            else:
                self.stop_requested, trainer.should_stop = True, False
