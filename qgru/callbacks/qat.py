"""When to train quantized: from the epoch on at whose start there are grids."""

from __future__ import annotations

from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info
from qgru.callbacks.ranks import exclude_from_broadcast, include_in_broadcast, share_rank_zeros_state
from qgru.stages import start_qat_epoch


class QAT(Callback):
    """Train quantization-aware, from the epoch on at whose start the layers are calibrated.

    List it after `Calibrate` and `Finalize`; with modules that come calibrated it can serve alone.
    """

    def __init__(self) -> None:
        self._is_announced = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep DDP from broadcasting the quantization state before every forward."""
        exclude_from_broadcast(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from one quantization state on all ranks, rank zero's."""
        share_rank_zeros_state(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every fit says once from which epoch on it trains quantization-aware."""
        self._is_announced = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch."""
        self.run(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind on the module."""
        include_in_broadcast(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no `teardown` then."""
        include_in_broadcast(pl_module)

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the layers for an epoch of quantization-aware training."""
        if start_qat_epoch(pl_module) and not self._is_announced:
            rank_zero_info(f"qgru: quantization-aware training from epoch {trainer.current_epoch} on")
            self._is_announced = True
