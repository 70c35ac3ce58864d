"""A plain PyTorch model, without Lightning, and its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import qgru
from qgru.stages import calibrate, finalize


class Model(nn.Module):
    """Sequence to one value."""

    def __init__(self, hidden_size: int = 5, **gru: Any) -> None:
        super().__init__()
        self.gru = nn.GRU(3, hidden_size, batch_first=True, **gru)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.gru(x)[0][:, -1]))


def batches(count: int = 4) -> list[list[Tensor]]:
    """(6, 6, 3) inputs and (6, 1) targets, the same ones each time."""
    generator = torch.Generator().manual_seed(7)
    inputs = [torch.randn(6, 6, 3, generator=generator) for _ in range(count)]
    return [[x, x[:, :, :1].sum(1).tanh()] for x in inputs]


def calibrated(model: nn.Module | None = None) -> Any:
    """Return a converted model with grids."""
    model = qgru.convert(Model() if model is None else model)
    calibrate(model, batches())
    finalize(model)
    return model
