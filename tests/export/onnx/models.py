"""Whole models as people write them around a GRU, small.

What stands beside the GRUs computes without rounding, so that a file's outputs are the module's to the last bit: weights
and inputs are multiples of 1/8.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

import qgru
from qgru.stages import calibrate, finalize
from tests.export.models import random_config


class ConvFrontEnd(nn.Module):
    """Conv1d, transposed for a GRU with the batch first, Linear."""

    axes = {"x": [0, 2]}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru, self.head = nn.Conv1d(3, 4, 3, padding=1), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, 3, time),)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.conv(x).transpose(1, 2))[0])


class TwoInARow(nn.Module):
    """Two GRUs, nothing between them."""

    axes = {"x": [0, 1]}

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.first = nn.GRU(3, 5, bidirectional=True, batch_first=batch_first)
        self.second = nn.GRU(10, 4, batch_first=batch_first)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(*((batch, time) if self.first.batch_first else (time, batch)), 3),)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


class TwoInARowBatchFirst(TwoInARow):
    """The same, and torch's exporter cancels what transposes the one's output for the other."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)


class GroupedGRU(nn.Module):
    """Two GRUs side by side on the halves of the features, with their initial states."""

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = False) -> None:
        super().__init__()
        options = {"batch_first": True, "bidirectional": bidirectional}
        self.low = nn.GRU(input_size // 2, hidden_size // 2, **options)
        self.high = nn.GRU(input_size // 2, hidden_size // 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1 + self.low.bidirectional, x.shape[0], 2 * self.low.hidden_size)
        parts = zip((self.low, self.high), x.chunk(2, -1), h.chunk(2, -1), strict=True)
        return torch.cat([gru(part, state.contiguous())[0] for gru, part, state in parts], -1)


class DualPath(nn.Module):
    """Over the frequencies in both directions, then over time, as in speech enhancement: (batch, channel, time, freq)."""

    axes = {"x": [0, 2]}

    def __init__(self) -> None:
        super().__init__()
        self.intra, self.intra_head = GroupedGRU(4, 4, bidirectional=True), nn.Linear(8, 4)
        self.inter, self.inter_head = GroupedGRU(4, 6), nn.Linear(6, 4)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, 4, time, 5),)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        batch, time, freq, channels = x.shape
        y = self.intra_head(self.intra(x.reshape(batch * time, freq, channels)))
        x = (x + y.view(batch, -1, freq, channels)).permute(0, 2, 1, 3)
        y = self.inter_head(self.inter(x.reshape(batch * freq, time, channels)))
        return (x + y.view(batch, freq, -1, channels)).permute(0, 3, 2, 1)


class SqueezeFrontEnd(nn.Module):
    """An image of one channel, (batch, 1, time, feature)."""

    axes = {"x": [0, 2]}

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, 1, time, 4),)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.squeeze(1))[0])


class EncoderDecoder(nn.Module):
    """The encoder's last state is the decoder's first."""

    axes = {"source": [0, 1], "target": [0, 1]}

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4, num_layers=2, batch_first=True)
        self.decoder = nn.GRU(2, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return grid_noise(batch, time, 3), grid_noise(batch, time + 2, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.decoder(target, self.encoder(source)[1])[0])


class LastStep(nn.Module):
    """The output of the last step alone."""

    axes = {"x": [0, 1]}

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 5, bidirectional=True, batch_first=True), nn.Linear(10, 2)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, time, 3),)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class LastState(LastStep):
    """h_n alone, both directions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[1].transpose(0, 1).flatten(1))


class Twice(nn.Module):
    """One GRU called twice, on its own output."""

    axes = {"x": [0, 1]}

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, time, 4),)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.gru(x)[0])[0]


def grid_noise(*shape: int) -> Tensor:
    """Normal noise in steps of 1/8."""
    return (torch.randn(*shape) * 8).round() / 8


def quantized(model: nn.Module, seed: int) -> nn.Module:
    """Convert a model of this file, with random widths to 8 bits and weights on the grid, and calibrate it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    qgru.convert(model.eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.rpartition(".")[2].endswith(("_l0", "_l1", "_l0_reverse")):
                parameter.copy_((parameter * 8).round() / 8)
    for gru in qgru.quantized_layers(model).values():
        gru.load_bitwidth_config(random_config(rng, range(6, 9)))
    calibrate(model, [model.inputs(8, 9)], lambda module, batch: module(*batch))
    finalize(model)
    for gru in qgru.quantized_layers(model).values():
        gru.use_quantization = True
    return model
