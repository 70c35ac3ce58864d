"""A small project for the report: a GRU that tells whether a noisy sequence's mean is positive."""

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class ToyData(lightning.LightningDataModule):
    def _loader(self, seed: int, rows: int, shuffle: bool = False) -> DataLoader:
        x = torch.randn(rows, 7, 3, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(x, (x.mean((1, 2)) > 0).long()), batch_size=16, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(1, 96, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return self._loader(2, 40)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"majority": {"test/accuracy": 0.5}}


class ToyModel(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)
