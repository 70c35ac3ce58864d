"""Whether a metric that a sweep is to optimize exists, before hours of training."""

from __future__ import annotations

from lightning import LightningDataModule, LightningModule, Trainer

from qgru.stages.passes import isolated_random_states


def check_metric(trainer: Trainer, model: LightningModule, datamodule: LightningDataModule, name: str) -> None:
    """Find out, from one batch of the test set, whether testing a model logs a metric.

    Random states are left as they were; no callback and no logger hears of it.

    Args:
        trainer: the one that is to train.
        model: as it is to be trained.
        datamodule: gives the test set.
        name: the metric's.

    Raises:
        ValueError: where it does not; lists those that there are.
    """
    found: set[str] = set()
    kept = trainer.callbacks, trainer.loggers, trainer.limit_test_batches
    trainer.callbacks, trainer.loggers, trainer.limit_test_batches = [], [], int(trainer.limit_test_batches > 0)
    try:
        with isolated_random_states():
            found.update(*trainer.test(model, datamodule=datamodule, verbose=False))
    finally:
        trainer.callbacks, trainer.loggers, trainer.limit_test_batches = kept
    if name not in found:
        names = ", ".join(map(repr, sorted(found))) or "none"
        raise ValueError(f"optimized_metric is {name!r}; expected what {type(model).__name__}'s test logs: {names}")
