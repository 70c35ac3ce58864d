"""Training batches for an extra pass over the data, outside Lightning's own iteration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from qgru.callbacks import lightning_private
from qgru.callbacks.packages import CombinedLoader, LightningModule, Trainer
from qgru.stages.passes import isolated_random_states

_FEW = 4  # the model is called on them some hundred times


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
            batch = lightning_private.before_batch_transfer(pl_module, batch)
            yield trainer.strategy.batch_to_device(batch)
    finally:
        loader.reset()


def first_batches(trainer: Trainer, pl_module: LightningModule) -> list[Any]:
    """Return the first few batches that calibration sees, which starts from the same random states."""
    with isolated_random_states():
        return list(training_batches(trainer, pl_module, _FEW))


def _with_own_iterator(iterable: Any) -> Any:
    """A loader with persistent workers keeps one iterator and rewinds it: leave that one to Lightning."""
    if not isinstance(iterable, DataLoader):
        return iterable
    view = copy.copy(iterable)
    view._iterator = None
    return view


def rewind(trainer: Trainer) -> None:
    """Start Lightning's own iteration over the training data anew, as it does itself at the start of an epoch."""
    fetcher = lightning_private.data_fetcher(trainer)
    if fetcher is not None:
        iter(fetcher)
