"""When to finalize: right after calibration; the loggers hear how good the grids are."""

from __future__ import annotations

from math import isfinite

from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info
from qgru.stages import finalize
from qgru.stages.calibration import uncalibrated_layers


class Finalize(Callback):
    """Finalize layers at the start of the epoch at which they were calibrated; list it after `Calibrate`.

    Logs ``sqnr/<layer>/<operator>`` to every logger of the trainer; an operator whose grid holds every value it saw
    is left out.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize where there is something to."""
        if any(layer.has_observations() for layer in uncalibrated_layers(pl_module).values()):
            self.run(trainer, pl_module)

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize now."""
        sqnr = {key: value for key, value in finalize(pl_module).items() if isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics({f"sqnr/{key}": value for key, value in sqnr.items()}, step=trainer.global_step)
        if sqnr:
            worst = min(sqnr, key=sqnr.__getitem__)
            mean = sum(sqnr.values()) / len(sqnr)
            rank_zero_info(f"qgru: finalized; SQNR {mean:.1f} dB on average, least at {worst} ({sqnr[worst]:.1f} dB)")
