"""Small models that have observed data, and what they are compared on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import qgru
from qgru.schema import BitwidthConfig
from qgru.search.sensitivity import SEARCHED, config_of
from qgru.stages import calibrate


class Classifier(nn.Module):
    """Two recurrent layers, the second a stack in both directions, a dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 4, batch_first=True)
        self.second = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.dropout(self.second(self.first(x)[0])[0][:, -1]))


class Structured(nn.Module):
    """Returns a mapping of all sorts of things."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        lengths = torch.arange(x.shape[1], 0, -1).clamp(max=len(x))
        states, last = self.gru(pack_padded_sequence(x, lengths))
        return {"states": states, "rest": (last, [lengths, "text", None])}


def batches(count: int = 2, rows: int = 5, time: int = 6, inputs: int = 3) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(rows, time, inputs, generator=generator), None) for _ in range(count)]


def observed(module: nn.Module, data: list[Any] | None = None, **options: Any) -> nn.Module:
    """Convert a module and let it see data, which is `batches()` where none is given."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    calibrate(qgru.convert(module), batches() if data is None else data, **options)
    return module


def uniform(width: int, **widths: int) -> BitwidthConfig:
    """One width for all, and others, with `__` for a dot."""
    return config_of(dict.fromkeys(SEARCHED, width) | {n.replace("__", "."): w for n, w in widths.items()})


def flat(output: Any) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output
