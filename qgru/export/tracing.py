"""What `QuantGRU.forward` does while `torch.onnx.export` looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import _disable_current_modes

from qgru.export import quantized, standard
from qgru.export.arithmetic import Target
from qgru.export.program import Program
from qgru.gru import QuantGRU
from qgru.state import BUFFERS

_DYNAMO_DEFAULT_OPSET = 20
_BIASES = ("weight.bw", "weight.br")


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


@dataclass(frozen=True)
class Call:
    """One call of a layer: its name, what it was given and what it returned."""

    layer: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


def export_forward(gru: QuantGRU, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
    """Run a layer whose ``export_mode`` is on.

    Inside of an export, or of `export_onnx`, the layer computes what its ``export_format`` says, whatever its other
    switches; anywhere else it runs as if ``export_mode`` were off.

    Args:
        gru: the layer.
        input: what `nn.GRU.forward` takes.
        hx: likewise.

    Returns:
        output and h_n, laid out as `nn.GRU` does.

    Raises:
        TypeError: where `input` is packed, which ONNX has no form of.
        RuntimeError: where the layer is to be quantized and not calibrated.
        ValueError: where the exact arithmetic of an operator has no form in ONNX; the message names it.
    """
    session, is_exporting = SESSION.get(), torch.onnx.is_in_onnx_export()
    if not (session or is_exporting):
        return _as_ever(gru, input, hx)
    name = session.names[id(gru)] if session else type(gru).__name__
    if isinstance(input, PackedSequence):
        raise TypeError(f"{name}: its input is a PackedSequence, which ONNX can't hold; export with unpacked input")
    is_quantized = gru.export_format == "qdq" and not gru.bitwidth_config.disable_quantization
    with _named(name):
        if is_exporting:
            output, h_n = _symbolic(gru, input, hx, is_quantized)
        elif is_quantized:
            output, h_n = gru._quantized_forward(input, hx, gru.ensure_calibrated())
        else:
            output, h_n = nn.GRU.forward(gru, input, hx)
    if session and is_quantized:
        session.calls.append(Call(name, (input,) if hx is None else (input, hx), (output, h_n)))
    return output, h_n


def _as_ever(gru: QuantGRU, input: Tensor | PackedSequence, hx: Tensor | None) -> tuple[Any, Tensor]:
    gru.export_mode = False
    try:
        return QuantGRU.forward(gru, input, hx)
    finally:
        gru.export_mode = True


def _symbolic(gru: QuantGRU, input: Tensor, hx: Tensor | None, is_quantized: bool) -> tuple[Tensor, Tensor]:
    inputs = [_time_first(gru, input)]
    if hx is not None:
        inputs.append(hx if input.dim() == 3 else hx.unsqueeze(1))
    is_traced = torch.jit.is_tracing()
    with nullcontext() if is_traced else _real_tensors(gru), _unseen():
        if is_quantized:
            target = Target(_opset(is_traced), has_uint16=not is_traced)
            program = _quantized_program(gru, input.dtype, hx is not None, target)
        else:
            program = _float_program(gru, hx is not None)
    output, h_n = _replay(program, inputs, is_traced)
    if input.dim() == 2:
        return output.squeeze(1), h_n.squeeze(1)
    return output.transpose(0, 1) if gru.batch_first else output, h_n


def _time_first(gru: nn.GRU, input: Tensor) -> Tensor:
    if input.dim() == 2:
        return input.unsqueeze(1)
    return input.transpose(0, 1) if gru.batch_first else input


def _replay(program: Program, inputs: list[Tensor], is_traced: bool) -> tuple[Tensor, ...]:
    if is_traced:
        from qgru.export import legacy

        return legacy.Replay.apply(program, *inputs)
    from qgru.export import dynamo

    return dynamo.replay(program, *inputs)


def cell_positions(gru: nn.GRU) -> list[tuple[int, bool]]:
    """Return (layer, reverse) of every layer and direction, in `nn.GRU`'s order."""
    directions = (False, True) if gru.bidirectional else (False,)
    return [(layer, reverse) for layer in range(gru.num_layers) for reverse in directions]


def _quantized_program(gru: QuantGRU, dtype: torch.dtype, has_hx: bool, target: Target) -> Program:
    cells = []
    for layer, reverse in cell_positions(gru):
        weights = gru.quantized_weights(layer, reverse)
        if not gru.bias:
            weights = {key: value for key, value in weights.items() if key not in _BIASES}
        where = f"layer {layer}{', reverse' if reverse else ''}"
        cells.append(quantized.Cell(where, gru.grids(layer, reverse), weights, reverse))
    return quantized.gru_program(_by_layer(gru, cells), str(dtype).removeprefix("torch."), has_hx, target)


def _float_program(gru: QuantGRU, has_hx: bool) -> Program:
    cells = [[parameter.detach().cpu().numpy() for parameter in cell] for cell in gru.all_weights]
    return standard.gru_program(_by_layer(gru, cells), has_hx)


def _by_layer(gru: nn.GRU, cells: list[Any]) -> list[list[Any]]:
    directions = len(cells) // gru.num_layers
    return [cells[start : start + directions] for start in range(0, len(cells), directions)]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the layer's name in front of an error about it."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if type(error) not in (RuntimeError, ValueError):
            raise
        raise type(error)(f"{name}: {error}") from error


def _opset(is_traced: bool) -> int:
    """Return the opset that is being exported, as far as the exporter tells."""
    session = SESSION.get()
    if session and session.opset:
        return session.opset
    if not is_traced:
        return _DYNAMO_DEFAULT_OPSET
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    return GLOBALS.export_onnx_opset_version


@contextmanager
def _unseen() -> Iterator[None]:
    """Compute without the exporter recording it."""
    tracer = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            yield
    finally:
        torch._C._set_tracing_state(tracer)


@contextmanager
def _real_tensors(gru: QuantGRU) -> Iterator[None]:
    """Give the layer its parameters and buffers back, where `torch.export` has put symbolic ones.

    `torch.export` replaces what the module has registered; the references that `nn.GRU` and `QuantGRU` keep for their
    own use still lead to the real tensors.

    Raises:
        RuntimeError: where they lead elsewhere, as they do after `torch.func.functional_call`.
    """
    parameters = dict(zip(gru._flat_weights_names, gru._flat_weights, strict=True))
    buffers = {name: tensor for name, (tensor, _) in zip(BUFFERS, gru._read, strict=True)}
    seen = detect_fake_mode().fake_tensor_converter
    if any(seen._get_memo(tensor) is None for tensor in (*parameters.values(), *buffers.values())):
        raise RuntimeError("its parameters are not those it last ran with; export with qgru.export.export_onnx")
    homes = ((gru._parameters, parameters), (gru._buffers, buffers))
    symbolic = [{name: home[name] for name in real} for home, real in homes]
    for home, real in homes:
        home.update(real)
    try:
        yield
    finally:
        for (home, _), tensors in zip(homes, symbolic, strict=True):
            home.update(tensors)
