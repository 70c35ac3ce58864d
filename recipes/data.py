"""What every recipe loads by: batches whose order depends on the seed and the epoch, and on nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Baselines = dict[str, dict[str, float]]


class RecipeData(LightningDataModule, ABC):
    """Makes the loaders from `train_set` and `test_set`, which `load` fills in; no validation set is held out.

    Args:
        batch_size: of training and test.
        seed: of the order of the training examples.

    Attributes:
        train_set, test_set: examples ``(x, y)``.
        collate: turns a list of training examples into a batch; None stacks them.
    """

    train_set: Dataset[Any] | None = None
    test_set: Dataset[Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def load(self) -> None:
        """Set `train_set` and `test_set`."""

    @abstractmethod
    def baselines(self) -> Baselines:
        """Return ``{baseline: {metric: value}}`` on the test set, fitted on the training set."""

    def setup(self, stage: str | None = None) -> None:
        """Load once; every stage needs both sets, as the training set normalises the test set."""
        if self.train_set is None:
            self.load()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffle by seed and epoch, so that a resumed run meets the batches that it would have met.

        A `RandomSampler` draws from torch's global stream instead, where a resumed run stands elsewhere. Lightning
        tells a `DistributedSampler` the epoch, and takes it as it is where there are several processes.
        """
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = DistributedSampler(self.train_set, replicas, rank, shuffle=True, seed=self.seed)
        return DataLoader(self.train_set, self.batch_size, sampler=sampler, collate_fn=self.collate)

    def test_dataloader(self) -> DataLoader[Any]:
        """Go through the test set in its order."""
        return DataLoader(self.test_set, self.batch_size)


def nrmse(forecast: np.ndarray, target: np.ndarray) -> float:
    """Return the root of the mean squared error, in standard deviations of the target."""
    return float(np.sqrt(np.mean((forecast - target) ** 2)) / target.std())
