"""When to calibrate: at the start of an epoch, on the trainer's training data."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from qgru.calibration import merge_ranks
from qgru.callbacks.agreement import failing_together
from qgru.callbacks.batches import training_batches
from qgru.callbacks.calling import call_in_float
from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info
from qgru.callbacks.preflight import check_call, unreached_message
from qgru.callbacks.progress import track
from qgru.stages import calibrate
from qgru.stages.calibration import uncalibrated_layers
from qgru.stages.passes import ForwardFn, explained


class Calibrate(Callback):
    """Calibrate the layers that are not calibrated yet, at the start of an epoch.

    Under DDP every rank sees its share of the batches, and all of them end with the observations of all.

    Args:
        epoch: the epoch, counted from 0; 0 is before the first step.
        batches: the number of training batches, over all ranks.
        forward_fn: `forward_fn(module, batch)`; by default `module(batch[0])` for a tuple or list, else
            `module(batch)`.

    Raises:
        ValueError: for a negative epoch, or fewer than one batch.
    """

    def __init__(self, epoch: int = 0, batches: int = 32, forward_fn: ForwardFn | None = None) -> None:
        if epoch < 0:
            raise ValueError(f"the epoch to calibrate at is {epoch}; expected 0 or more")
        if batches < 1:
            raise ValueError(f"the number of calibration batches is {batches}; expected 1 or more")
        self.epoch, self.batches, self.forward_fn = epoch, batches, forward_fn
        self._is_tried = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every fit tries its call once."""
        self._is_tried = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate once the epoch has come."""
        if trainer.current_epoch >= self.epoch and uncalibrated_layers(pl_module):
            self.run(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step, find out whether the call that calibration will use works, and reaches every layer."""
        self.try_call(trainer, pl_module, batch)

    def try_call(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        """Try the call, once in a fit; False where it works without the module's own `forward`.

        Raises:
            RuntimeError: where it does not work; see `preflight.check_call`.
        """
        is_due = not self._is_tried and bool(uncalibrated_layers(pl_module))
        self._is_tried = True
        return not is_due or check_call(trainer, pl_module, self.forward_fn, batch, self._share(trainer))

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate now, on the trainer's training data.

        Raises:
            RuntimeError: on every rank, where the call fails on one of them, or where a layer saw no data on any.
        """
        layers = uncalibrated_layers(pl_module)
        share = self._share(trainer)
        batches = track(trainer, training_batches(trainer, pl_module, share), share, "calibrating")
        forward_fn = self.forward_fn if self._is_tried else explained(self.forward_fn)
        with failing_together():
            seen = calibrate(pl_module, batches, partial(call_in_float, trainer, forward_fn))
        merge_ranks(pl_module)
        total = torch.tensor(float(seen), device=trainer.strategy.root_device)
        total = int(trainer.strategy.reduce(total, reduce_op="sum"))
        unreached = [name for name, layer in layers.items() if not layer.has_observations()]
        if unreached:
            raise RuntimeError(unreached_message(unreached, self.forward_fn, total))
        rank_zero_info(f"qgru: calibrated {', '.join(layers)} on {total} training batches")

    def _share(self, trainer: Trainer) -> int:
        """Return the number of batches of this rank."""
        return self.batches // trainer.world_size + (trainer.global_rank < self.batches % trainer.world_size)
