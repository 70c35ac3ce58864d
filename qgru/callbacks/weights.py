"""Which weights a fit exports: the best quantized checkpoint's, else the averaged ones, else the last ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qgru.callbacks import lightning_private
from qgru.callbacks.compatibility import averaging_callbacks
from qgru.callbacks.packages import LightningModule, Trainer, classes, rank_zero_warn
from qgru.convert import quantized_layers
from qgru.stages.calibration import uncalibrated_layers
from qgru.state import BUFFERS

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ModelCheckpoint

_MODEL_CHECKPOINT = classes("callbacks.ModelCheckpoint")


@contextmanager
def exported_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[str]:
    """Load the weights to export into a module; afterwards it has its own again.

    Only rank zero writes files, so only rank zero changes anything.

    Yields:
        Where the weights are from, in words.
    """
    if not trainer.is_global_zero:
        yield "the weights of rank zero"
        return
    own = copy.deepcopy(pl_module.state_dict())
    observations = {layer: layer.observations for layer in quantized_layers(pl_module).values()}
    try:
        yield _load_best(trainer, pl_module, own) or _load_averaged(trainer, pl_module) or "the last weights"
    finally:
        pl_module.load_state_dict(own)
        for layer, seen in observations.items():  # loading drops them, and they are still those of these grids
            layer.observations = seen


def _load_best(trainer: Trainer, pl_module: LightningModule, own: Mapping[str, Tensor]) -> str | None:
    best = _monitoring_checkpoint(trainer)
    if best is None:
        return None
    path = best.best_model_path
    try:
        weights = _read_weights(trainer, pl_module, path)
        pl_module.load_state_dict(weights, strict=pl_module.strict_loading)
        if uncalibrated_layers(pl_module):
            raise ValueError("it holds a float model")
    except Exception as error:
        rank_zero_warn(f"qgru: exporting the last weights; the best checkpoint {path} can't serve: {error}")
        pl_module.load_state_dict(own)
        return None
    return f"the best checkpoint {path}"


def _read_weights(trainer: Trainer, pl_module: LightningModule, path: str) -> Mapping[str, Tensor]:
    """Read a checkpoint's weights and run no code of it, for a resumed checkpoint may have named any file.

    A checkpoint may hold objects that only their code can make, such as hyperparameters. There are stand-ins for them
    then, which the module's own `on_load_checkpoint` is not shown.

    Raises:
        ValueError: naming the objects' types, where the weights can't be read past them.
    """
    try:
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    except UnpicklingError:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not unknown:
            raise
        with torch.serialization.safe_globals([(_stand_in(), name) for name in unknown]):
            try:
                return trainer.strategy.load_checkpoint(path, weights_only=True)["state_dict"]
            except Exception as error:
                raise ValueError(f"it holds {', '.join(sorted(unknown))}, which is not read: that runs code") from error
    pl_module.on_load_checkpoint(checkpoint)
    return checkpoint["state_dict"]


def _stand_in() -> type:
    """Return a class for an object that is not made: it takes any arguments and any state, and keeps none."""

    class StandIn:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__new__(cls)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            pass

    return StandIn


def _monitoring_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the first `ModelCheckpoint` that has a monitor and a best file."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, _MODEL_CHECKPOINT) and checkpoint.monitor is not None and checkpoint.best_model_path:
            return checkpoint
    return None


def _load_averaged(trainer: Trainer, pl_module: LightningModule) -> str | None:
    for callback in averaging_callbacks(trainer):
        average = lightning_private.averaged_model(callback)
        if average is not None:
            own, state = pl_module.state_dict(), average.state_dict()
            grids = {key: own[key] for key in state if key.rpartition(".")[2] in BUFFERS}
            pl_module.load_state_dict({**state, **grids})  # a fit that ended in float has calibrated its own alone
            return f"the weights averaged by {type(callback).__name__}"
    return None


def share_quantization_state(trainer: Trainer, pl_module: LightningModule) -> None:
    """Give averaged copies of a module its grids at once, so that they are never scored in float or on old grids."""
    for callback in averaging_callbacks(trainer):
        average = lightning_private.averaged_model(callback)
        if average is not None:
            copies = quantized_layers(average)
            for name, layer in quantized_layers(pl_module).items():
                for buffer in BUFFERS:
                    getattr(copies[name], buffer).copy_(getattr(layer, buffer))
