"""Calls of a trainer's module outside of its steps, as calibration needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qgru.callbacks.packages import LightningModule, Trainer
from qgru.stages.passes import ForwardFn, call_model


def call_in_float(trainer: Trainer, forward_fn: ForwardFn | None, pl_module: LightningModule, batch: Any) -> Any:
    """Call the model outside autocast, but with the default dtype of a `-true` precision; nothing is logged.

    Raises:
        RuntimeError: where the call fails; see `call_model`.
    """
    device = trainer.strategy.root_device.type
    with unlogged(pl_module), trainer.precision_plugin.forward_context(), torch.autocast(device, enabled=False):
        return call_model(forward_fn, pl_module, batch)


def outputs_in_float(trainer: Trainer, forward_fn: ForwardFn | None, pl_module: LightningModule, batch: Any) -> Any:
    """Call the model as `call_in_float`; return what its own `forward` does in that, else what the call returns."""
    outputs: list[Any] = []
    handle = pl_module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        returned = call_in_float(trainer, forward_fn, pl_module, batch)
    finally:
        handle.remove()
    return outputs or returned


@contextmanager
def unlogged(pl_module: LightningModule) -> Iterator[None]:
    """Have `self.log` do nothing: a `training_step` serves to feed the layers here, in hooks that allow no log."""
    own = vars(pl_module).get("log")
    vars(pl_module)["log"] = lambda *_, **__: None
    try:
        yield
    finally:
        if own is None:
            del vars(pl_module)["log"]
        else:
            vars(pl_module)["log"] = own
