"""Training batches for an extra pass over the data, outside Lightning's own iteration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

ForwardFn: TypeAlias = Callable[[Any, Any], Any]
"""``forward_fn(module, batch)``: calls the model on a training batch; what it returns is not used."""


def training_batches(trainer: Trainer, pl_module: LightningModule, count: int) -> Iterator[Any]:
    """Yield up to `count` batches of an epoch, on the module's device, ready for its `forward`.

    Lightning's live iterator stays where it is; `limit_train_batches` and the module's batch transfer hooks apply.
    """
    if trainer.train_dataloader is None:
        return
    loader = CombinedLoader(trainer.train_dataloader, "max_size_cycle")
    loader.flattened = [_with_own_iterator(iterable) for iterable in loader.flattened]
    try:
        for batch, _, _ in islice(iter(loader), int(min(count, trainer.num_training_batches))):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch)
            yield trainer.strategy.batch_to_device(batch)
    finally:
        loader.reset()


def _with_own_iterator(iterable: Any) -> Any:
    """A loader with persistent workers keeps one iterator and rewinds it: leave that one to Lightning."""
    if not isinstance(iterable, DataLoader):
        return iterable
    view = copy.copy(iterable)
    view._iterator = None
    return view


def call_model(forward_fn: ForwardFn | None, module: nn.Module, batch: Any) -> Any:
    """Call `forward_fn(module, batch)`, by default `module(batch[0])` for a tuple or list, else `module(batch)`.

    Raises:
        RuntimeError: where the default does not fit the model; the message asks for a `forward_fn`.
    """
    if forward_fn is not None:
        return forward_fn(module, batch)
    is_sequence = isinstance(batch, tuple | list)
    try:
        return module(batch[0] if is_sequence else batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        call = "module(batch[0])" if is_sequence else "module(batch)"
        raise RuntimeError(
            f"calling {type(module).__name__} on a training batch ({type(batch).__name__}) as {call} failed with "
            f"{type(error).__name__}: {error}. If the model takes its batch in another way, pass "
            "forward_fn(module, batch)"
        ) from error


def rewind(trainer: Trainer) -> None:
    """Start Lightning's own iteration over the training data anew, as it does itself at the start of an epoch."""
    if trainer.fit_loop._data_fetcher is not None:
        iter(trainer.fit_loop._data_fetcher)
