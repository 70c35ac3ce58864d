"""When to train quantized: from the epoch on at whose start there are grids."""

from __future__ import annotations

from typing import Any

from qgru.callbacks.anneal import Annealer
from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info
from qgru.callbacks.ranks import exclude_from_broadcast, include_in_broadcast, share_rank_zeros_state
from qgru.stages import start_qat_epoch

_BEGAN = ("epoch", "step")


class QAT(Callback):
    """Train quantization-aware, from the epoch on at whose start the layers are calibrated.

    List it after `Calibrate` and `Finalize`; with modules that come calibrated it can serve alone.

    Learning rates fall from there to the fit's last step, along a cosine from what the schedule of each parameter
    group says to 1 % of it. They are multiplied while an optimizer steps: schedulers, `LearningRateMonitor` and
    checkpoints know the schedule alone; ``qat/learning_rate`` is logged (for several groups ``qat/learning_rate/0`` and
    so on). The last step is the one that `max_epochs` or `max_steps` allows; `EarlyStopping` and `max_time` may end a
    fit before. Steps that a gradient scaler skips count. A resumed fit goes on with the factors that it would have had.

    Args:
        anneal: False lets learning rates be what the schedule says.
        learning_rate_scale: of all learning rates in quantization-aware training; 3 helps at 6 bits and fewer.

    Raises:
        ValueError: naming the argument, where it is not a bool, or not a finite number above 0.
    """

    def __init__(self, anneal: bool = True, learning_rate_scale: float = 1.0) -> None:
        self._annealer = Annealer(anneal, learning_rate_scale)
        self._is_announced = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep DDP from broadcasting the quantization state before every forward; forget an earlier fit."""
        exclude_from_broadcast(pl_module)
        if stage == "fit":
            self._annealer.began = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from one quantization state on all ranks, rank zero's."""
        share_rank_zeros_state(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every fit says once from which epoch on it trains quantization-aware."""
        self._is_announced = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch."""
        self.run(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set what the learning rates are multiplied with."""
        self._annealer.before_batch(trainer, pl_module, batch_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind on the module and the optimizers."""
        include_in_broadcast(pl_module)
        self._annealer.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no `teardown` then."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the global step at which quantization-aware training began; nothing before that."""
        return {} if self._annealer.began is None else dict(zip(_BEGAN, self._annealer.began, strict=True))

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take them when a fit is resumed."""
        self._annealer.began = tuple(state_dict[key] for key in _BEGAN) if state_dict else None

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the layers for an epoch of quantization-aware training."""
        if start_qat_epoch(pl_module):
            learning_rates = self._annealer.begin(trainer)
            if not self._is_announced:
                epoch = trainer.current_epoch
                rank_zero_info(f"qgru: quantization-aware training from epoch {epoch} on{learning_rates}")
                self._is_announced = True
