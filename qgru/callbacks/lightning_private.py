"""What the callbacks use of Lightning that is not its public interface; tried on lightning 2.6.6.

``tests/callbacks/test_lightning_private.py`` names what is gone from the version that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import WeightAveraging
    from torch import nn

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def averages_buffers(callback: WeightAveraging) -> bool:
    """Tell whether a callback averages buffers besides parameters."""
    return callback._use_buffers


def averaged_model(callback: WeightAveraging) -> nn.Module | None:
    """Return the model that holds a callback's average; None where there is none yet."""
    average = callback._average_model
    return None if average is None else average.module


def data_fetcher(trainer: Trainer) -> Any:
    """Return Lightning's own iteration over the training data; None before the first epoch."""
    return trainer.fit_loop._data_fetcher


def before_batch_transfer(pl_module: LightningModule, batch: Any) -> Any:
    """Run a module's `on_before_batch_transfer` as Lightning does."""
    return pl_module._on_before_batch_transfer(batch)


def weights_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return what ``trainer.save_checkpoint(path, weights_only=True)`` writes; a collective call."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=True)


@contextmanager
def uncompiled(pl_module: LightningModule) -> Iterator[None]:
    """Have a module that was compiled as a whole run its own methods; afterwards the compiled ones again."""
    context = pl_module._compiler_ctx
    if context is None:
        yield
        return
    compiled = dict(vars(pl_module))
    vars(pl_module).update({step: context[f"original_{step}"] for step in _STEPS}, _compiler_ctx=None)
    try:
        yield
    finally:
        vars(pl_module).update({name: compiled[name] for name in (*_STEPS, "_compiler_ctx")})
