"""What the lifecycle can't work with, refused before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import nn

from qgru.callbacks import lightning_private
from qgru.callbacks.packages import Callback, MisconfigurationException, Trainer, classes
from qgru.exclusion import excluded
from qgru.gru import QuantGRU

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import WeightAveraging

_SHARDING = tuple(
    strategy
    for name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
    for strategy in classes(f"strategies.{name}")
)
_AVERAGING = classes("callbacks.WeightAveraging")
_AVERAGING_AT_THE_END = (*_AVERAGING, *classes("callbacks.StochasticWeightAveraging"))


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that shard parameters: grids are derived from whole tensors.

    Raises:
        MisconfigurationException: naming the strategy and what to use.
    """
    if isinstance(trainer.strategy, _SHARDING):
        raise MisconfigurationException(
            f"{type(trainer.strategy).__name__} shards the parameters, and quantization grids are derived from whole "
            "tensors; expected a strategy that keeps them whole, e.g. Trainer(strategy='ddp')"
        )


def check_averaging(trainer: Trainer, exclude: Sequence[str] = ()) -> None:
    """Refuse weight averaging that would average the integer state, or that holds a model without it.

    Args:
        trainer: whose callbacks are looked at.
        exclude: names of the layers that stay in float; see `qgru.convert`.

    Raises:
        MisconfigurationException: naming the fix.
    """
    for callback in averaging_callbacks(trainer):
        name = type(callback).__name__
        if lightning_private.averages_buffers(callback):
            raise MisconfigurationException(
                f"{name}(use_buffers=True) averages the buffers that hold the quantization grids, which are integers; "
                f"expected {name}(use_buffers=False)"
            )
        copied = lightning_private.averaged_model(callback)
        if copied is not None and holds_float_gru(copied, exclude):
            raise MisconfigurationException(
                f"{name} copied the model before its nn.GRU layers were converted; list the quantization callback "
                f"before {name} in Trainer(callbacks=[...])"
            )


def averaging_callbacks(trainer: Trainer) -> list[WeightAveraging]:
    """Return the trainer's weight averaging callbacks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, _AVERAGING)]


def check_export_order(trainer: Trainer, callback: Callback) -> None:
    """Refuse an export as training ends of weights that another callback then replaces.

    Raises:
        MisconfigurationException: naming the order that works.
    """
    for other in _averaging_after(trainer, callback):
        name = type(other).__name__
        raise MisconfigurationException(
            f"{name} replaces the weights when training ends, after {type(callback).__name__} has exported them; "
            f"list {type(callback).__name__} after {name} in Trainer(callbacks=[...])"
        )


def averages_later(trainer: Trainer, callback: Callback) -> bool:
    """Tell whether a callback listed after this one puts averaged weights into the module when training ends."""
    return bool(_averaging_after(trainer, callback))


def _averaging_after(trainer: Trainer, callback: Callback) -> list[Callback]:
    later = takewhile(lambda other: other is not callback, reversed(trainer.callbacks))
    return [other for other in later if isinstance(other, _AVERAGING_AT_THE_END)]


def holds_float_gru(module: nn.Module, exclude: Sequence[str] = ()) -> bool:
    """Tell whether some `nn.GRU` in a module is not converted, though not excluded."""
    floats = {child for child in module.modules() if isinstance(child, nn.GRU) and not isinstance(child, QuantGRU)}
    return bool(floats - excluded(module, exclude))
