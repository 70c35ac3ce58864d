"""Whole models as people write them around a GRU, small.

What stands beside the GRUs computes without rounding, so that a file's outputs are the module's to the last bit: its
weights and its inputs are multiples of 1/8.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

import qgru
from qgru.stages import calibrate, finalize
from tests.export.models import ONLY_8_BITS, random_config


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
        self.first, self.second = nn.GRU(3, 5, batch_first=batch_first), nn.GRU(5, 4, batch_first=batch_first)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(*((batch, time) if self.first.batch_first else (time, batch)), 3),)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


class TwoInARowBatchFirst(TwoInARow):
    """The same, where an exporter cancels what transposes the one's output for the other."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)


class DualPath(nn.Module):
    """As in speech enhancement, (batch, channel, time, frequency): over frequency in both directions, then over time.

    In front, a GRU over time that weighs the channels.
    """

    axes = {"x": [0, 2]}

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attention_head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.intra, self.intra_head = nn.GRU(3, 2, batch_first=True, bidirectional=True), nn.Linear(4, 3)
        self.inter, self.inter_head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, 3, time, 4),)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.attention_head(self.attention(x.mean(-1).transpose(1, 2))[0]).transpose(1, 2)
        x = (x * weights.unsqueeze(-1)).permute(0, 2, 3, 1)
        batch, time, freq, channels = x.shape
        y = self.intra_head(self.intra(x.reshape(batch * time, freq, channels))[0])
        x = (x + y.view(batch, -1, freq, channels)).permute(0, 2, 1, 3)
        state = torch.zeros(1, batch * freq, self.inter.hidden_size)
        y = self.inter_head(self.inter(x.reshape(batch * freq, time, channels), state)[0])
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
    """The encoder's last state is the decoder's first; its output is not used."""

    axes = {"source": [0, 1], "target": [0, 1]}

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(3, 4, batch_first=True), nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return grid_noise(batch, time, 3), grid_noise(batch, time + 2, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.decoder(target, self.encoder(source)[1])[0])


class TwiceLastStep(nn.Module):
    """One GRU called twice, the second time on its own output; of that the last step alone."""

    axes = {"x": [0, 1]}

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

    def inputs(self, batch: int, time: int) -> tuple[Tensor, ...]:
        return (grid_noise(batch, time, 4),)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.gru(x)[0])[0][:, -1])


def grid_noise(*shape: int) -> Tensor:
    """Normal noise in steps of 1/8."""
    return (torch.randn(*shape) * 8).round() / 8


def quantized(model: nn.Module, seed: int) -> nn.Module:
    """Convert a model of this file, with 8-bit grids at random and its other weights in eighths, and calibrate it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    qgru.convert(model.eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.rpartition(".")[2].endswith(("_l0", "_l1", "_l0_reverse")):
                parameter.copy_((parameter * 8).round() / 8)
    for gru in qgru.quantized_layers(model).values():
        gru.load_bitwidth_config(random_config(rng, ONLY_8_BITS))
    calibrate(model, [model.inputs(8, 9)], lambda module, batch: module(*batch))
    finalize(model)
    for gru in qgru.quantized_layers(model).values():
        gru.use_quantization = True
    return model


MODELS = (ConvFrontEnd, TwoInARow, TwoInARowBatchFirst, DualPath, SqueezeFrontEnd, EncoderDecoder, TwiceLastStep)
