"""Stage 3: train the quantized model."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from qgru.convert import quantized_layers


def start_qat_epoch(module: nn.Module) -> bool:
    """Switch every calibrated layer to its quantized forward, with weight grids that fit the current weights.

    Weights move in training; derived anew each epoch, their grids never hold them back.

    Returns:
        True where there is a calibrated layer.
    """
    layers = [layer for layer in quantized_layers(module).values() if layer.is_calibrated()]
    for layer in layers:
        layer.use_quantization = True
        layer.refresh_weight_grids()
    return bool(layers)


class QAT(Callback):
    """Train quantization-aware, from the epoch on at whose start the layers are calibrated.

    List it after `Calibrate` and `Finalize`; with modules that come calibrated it can serve alone.
    """

    def __init__(self) -> None:
        self._is_announced = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every fit says once from which epoch on it trains quantization-aware."""
        self._is_announced = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch."""
        self.run(trainer, pl_module)

    def run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the layers for an epoch of quantization-aware training."""
        if start_qat_epoch(pl_module) and not self._is_announced:
            rank_zero_info(f"qgru: quantization-aware training from epoch {trainer.current_epoch} on")
            self._is_announced = True
