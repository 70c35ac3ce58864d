"""What is known of a model while it is exported, or run as it would be exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qgru.convert import quantized_layers
from qgru.export.onnx.arguments import tensors


@dataclass(frozen=True)
class Call:
    """One call of a layer: its name, what it was given and what it returned.

    Attributes:
        layer: the layer's name.
        inputs: (time, batch, input) and, where it was given, hx (layers * directions, batch, hidden): what the layer's
            program reads, whatever an exporter does with the transpositions around it. Unbatched, as the caller's.
        outputs: (time, batch, directions * hidden) and h_n (layers * directions, batch, hidden); likewise.
        batch_first: the caller has the batch in front of the time.
    """

    layer: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch_first: bool

    @property
    def ends(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The inputs and the outputs in the caller's layout."""
        if not self.batch_first:
            return self.inputs, self.outputs
        inputs, outputs = ((ends[0].transpose(0, 1), *ends[1:]) for ends in (self.inputs, self.outputs))
        return inputs, outputs


@dataclass
class Session:
    """What `qgru.export` knows of the model while it exports it or runs it.

    Attributes:
        names: of the quantized layers, by the module's id.
        opset: of the file.
        calls: every call of a layer that quantizes, in order.
    """

    names: dict[int, str]
    opset: int | None = None
    calls: list[Call] = field(default_factory=list)

    def record(self, layer: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], batch_first: bool) -> None:
        """Note a call, in copies: what follows may overwrite its output, and an exporter is to name each of them.

        Args:
            layer: its name.
            inputs: as a `Call` has them.
            outputs: likewise.
            batch_first: likewise.
        """
        copies = (tuple(tensor.clone() for tensor in tensors) for tensors in (inputs, outputs))
        self.calls.append(Call(layer, *copies, batch_first))


SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def exporting(model: nn.Module, format: str, opset: int | None = None) -> Iterator[Session]:
    """Put a model into evaluation and its layers into ``export_mode`` for a while.

    Whatever happens inside, every switch is as before afterwards.
    """
    layers = quantized_layers(model)
    training = [(module, module.training) for module in model.modules()]
    switches = [(gru, gru.export_mode, gru.export_format) for gru in layers.values()]
    session = Session({id(gru): name or type(gru).__name__ for name, gru in layers.items()}, opset)
    token = SESSION.set(session)
    try:
        for gru in layers.values():
            gru.export_mode, gru.export_format = True, format
        model.eval()
        with torch.no_grad():
            yield session
    finally:
        SESSION.reset(token)
        for gru, mode, previous in switches:
            gru.export_mode, gru.export_format = mode, previous
        for module, was_training in training:
            module.training = was_training


@dataclass(frozen=True)
class ModuleRun:
    """What a module computed: its outputs, and its quantized layers' calls."""

    outputs: list[Tensor]
    calls: list[Call]


def run_module(model: nn.Module, args: tuple[Any, ...], format: str) -> ModuleRun:
    """Run a module as an exporter would see it."""
    with exporting(model, format) as session:
        return ModuleRun(tensors(model(*args)), session.calls)
