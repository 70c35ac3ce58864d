"""Stage 2: from what was observed to grids."""

from __future__ import annotations

from math import isfinite

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from qgru.calibration import operator_sqnr
from qgru.callbacks.calibrate import uncalibrated_layers


def finalize(module: nn.Module) -> dict[str, float]:
    """Give every layer that was observed and not finalized its grids.

    Returns:
        The signal to quantization noise ratio in dB of every operator that was observed, by
        ``"<layer>/<operator>"``; operators past layer 0 forward carry `nn.GRU`'s suffix (``_l1``, ``_reverse``).

    Raises:
        ValueError: naming the operator, where it saw non-finite values.
    """
    metrics: dict[str, float] = {}
    for name, layer in uncalibrated_layers(module).items():
        if not layer.has_observations():
            continue
        layer.finalize_calibration()
        for (index, reverse), operators in operator_sqnr(layer).items():
            suffix = (f"_l{index}" if index else "") + ("_reverse" if reverse else "")
            metrics.update({f"{_plain(name)}/{operator}{suffix}": value for operator, value in operators.items()})
    return metrics


def _plain(name: str) -> str:
    """Return a module's name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


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
