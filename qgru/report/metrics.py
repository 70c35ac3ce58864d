"""Whether the metrics that a sweep is to optimize exist, before hours of training."""

from __future__ import annotations

from collections.abc import Sequence

from qgru.callbacks.packages import LightningDataModule, LightningModule, Trainer
from qgru.stages.passes import isolated_random_states

_OWN = "weight_bytes"  # which a comparison counts for every model


def check_metrics(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule, names: str | Sequence[str]
) -> None:
    """Find out, from one batch of the test set, whether testing a model logs metrics.

    Random states are left as they were; no callback and no logger hears of it.

    Args:
        trainer: the one that is to train.
        model: as it is to be trained.
        datamodule: gives the test set.
        names: one, or several.

    Raises:
        ValueError: where it does not log one of them; lists those that there are.
    """
    found = {_OWN}
    kept = trainer.callbacks, trainer.loggers, trainer.limit_test_batches
    trainer.callbacks, trainer.loggers, trainer.limit_test_batches = [], [], int(trainer.limit_test_batches > 0)
    try:
        with isolated_random_states():
            found.update(*trainer.test(model, datamodule=datamodule, verbose=False))
    finally:
        trainer.callbacks, trainer.loggers, trainer.limit_test_batches = kept
    for name in [names] if isinstance(names, str) else names:
        if name not in found:
            known = ", ".join(map(repr, sorted(found)))
            raise ValueError(f"optimized_metric is {name!r}; expected what {type(model).__name__}'s test logs: {known}")
