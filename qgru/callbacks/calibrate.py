"""When to calibrate: at the start of an epoch, on the trainer's training data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qgru.calibration import merge_ranks
from qgru.callbacks.batches import training_batches
from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info
from qgru.callbacks.progress import track
from qgru.stages import calibrate
from qgru.stages.calibration import uncalibrated_layers
from qgru.stages.passes import ForwardFn, call_model


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

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate once the epoch has come."""
        if trainer.current_epoch >= self.epoch and uncalibrated_layers(pl_module):
            self.run(trainer, pl_module)

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate now, on the trainer's training data.

        Raises:
            RuntimeError: where a layer saw no data on any rank.
        """
        layers = uncalibrated_layers(pl_module)
        share = self.batches // trainer.world_size + (trainer.global_rank < self.batches % trainer.world_size)
        batches = track(trainer, training_batches(trainer, pl_module, share), share, "calibrating")
        seen = calibrate(pl_module, batches, lambda module, batch: self._forward(trainer, module, batch))
        merge_ranks(pl_module)
        total = torch.tensor(float(seen), device=trainer.strategy.root_device)
        total = int(trainer.strategy.reduce(total, reduce_op="sum"))
        unreached = [name for name, layer in layers.items() if not layer.has_observations()]
        if unreached:
            why = "no training batch (limit_train_batches, or an empty loader)" if not total else "another forward_fn"
            expected = "expected at least one" if not total else f"the call on {total} batches did not reach it"
            raise RuntimeError(f"calibration of layer {unreached[0]!r} saw no data: {why}; {expected}")
        rank_zero_info(f"qgru: calibrated {', '.join(layers)} on {total} training batches")

    def _forward(self, trainer: Trainer, module: nn.Module, batch: Any) -> None:
        """Call the model in float: outside autocast, but with the default dtype of a `-true` precision."""
        device = trainer.strategy.root_device.type
        with trainer.precision_plugin.forward_context(), torch.autocast(device, enabled=False):
            call_model(self.forward_fn, module, batch)
