"""Models for the export tests, and ONNX Runtime as a function."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from qgru import QuantGRU
from qgru.direction import directions_of
from qgru.schema import OPERATORS, OPTIONAL
from tests.calibrated import quantize

ONLY_8_BITS = range(8, 9)
UP_TO_16_BITS = range(2, 17)


def random_config(rng: random.Random, widths: range) -> dict:
    """Widths, signedness and symmetry of every operator at random; signed weights."""
    operators = {}
    for name, operator in OPERATORS.items():
        if name == OPTIONAL and rng.random() < 0.5:
            continue
        entry: dict[str, Any] = {"bitwidth": rng.choice(widths)}
        if not operator.is_weight:
            entry["is_symmetric"] = rng.random() < 0.4
            entry["is_unsigned"] = rng.random() < 0.4 and (not entry["is_symmetric"] or name[-4:] == "_out")
        operators[name] = entry
    return {"operator_config": operators}


def calibrated(seed: int, widths: range = UP_TO_16_BITS, **options: Any) -> QuantGRU:
    """A QuantGRU with a random configuration, calibrated on noise and switched to its integers.

    Drawn anew while its outputs take fewer than three values: such a layer would test nothing.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    settings = {"input_size": rng.choice((1, 3, 5)), "hidden_size": rng.choice((1, 3, 7)), **options}
    while True:
        gru = QuantGRU(**settings).eval()
        gru.load_bitwidth_config(random_config(rng, widths))
        quantize(gru, torch.randn(9, 8, gru.input_size))
        if len(gru(noise(gru, 20, 3))[0].unique()) > 2:
            return gru


class Tagger(nn.Module):
    """Linear, a two-layer bidirectional GRU with the batch first, Linear."""

    def __init__(self, seed: int, widths: range = UP_TO_16_BITS) -> None:
        super().__init__()
        self.rnn = calibrated(seed, widths, input_size=5, num_layers=2, bidirectional=True, batch_first=True)
        self.embed = nn.Linear(3, 5)
        self.head = nn.Linear(2 * self.rnn.hidden_size, 4)

    def forward(self, features: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(self.embed(features), hx)
        return self.head(output), h_n


def noise(gru: QuantGRU, time: int, batch: int) -> Tensor:
    """An input of the layer's layout, wide enough that some of it saturates."""
    shape = (batch, time) if gru.batch_first else (time, batch)
    return 2 * torch.randn(*shape, gru.input_size, dtype=gru.weight_ih_l0.dtype)


def run(path: Path | str, *inputs: Tensor, plain: bool = False) -> list[np.ndarray]:
    """Run a file in ONNX Runtime, with its default options or without its fusion of quantized operators."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", str(int(plain)))
    session = onnxruntime.InferenceSession(path, options)
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


def assert_same_integers(gru: QuantGRU, path: Path | str, *inputs: Tensor) -> None:
    """Compare output and h_n as integers of the grids of the directions that they belong to."""
    gru.export_mode = False
    with torch.no_grad():
        expected = gru(*inputs)
    for plain in (False, True):
        found = [torch.from_numpy(array) for array in run(path, *inputs, plain=plain)]
        for ours, theirs in zip(_integers(gru, *expected), _integers(gru, *found), strict=True):
            assert ours.shape == theirs.shape
            assert torch.equal(ours, theirs), f"{(ours != theirs).sum()} of {ours.numel()} integers differ"
        assert all(torch.equal(a.double(), b.double()) for a, b in zip(expected, found, strict=True))


def _integers(gru: QuantGRU, output: Tensor, h_n: Tensor) -> Iterator[Tensor]:
    directions = directions_of(gru)
    last = directions[-len(directions) // gru.num_layers :]
    for direction, half in zip(last, output.chunk(len(last), -1), strict=True):
        yield gru.grids(*direction)["output.h"].quantize(half)
    for direction, h in zip(directions, h_n, strict=True):
        yield gru.grids(*direction)["output.h"].quantize(h)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of everything inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def operators(path: Path | str) -> set[str]:
    """The types of all operators in a file."""
    return {node.op_type for node in all_nodes(onnx.load(path).graph)}
