"""What `QuantGRU.forward` does while `torch.onnx.export` looks at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru import torch_private
from qgru.direction import directions_of
from qgru.export.formats import UntraceableInputError
from qgru.export.onnx import quantized, standard
from qgru.export.onnx.arithmetic import Target
from qgru.export.onnx.program import Program
from qgru.export.onnx.session import SESSION
from qgru.layout import Layout
from qgru.schema import BIASES

if TYPE_CHECKING:
    from qgru.gru import QuantGRU

_DYNAMO_DEFAULT_OPSET = 20
_TYPES = (torch.float16, torch.float32, torch.float64)


def traced_forward(
    gru: QuantGRU, input: Tensor | PackedSequence, hx: Tensor | None = None
) -> tuple[Any, Tensor] | None:
    """Run a layer whose ``export_mode`` is on.

    Inside of an export, or of `export_onnx`, the layer computes what its ``export_format`` says, whatever its other
    switches.

    Args:
        gru: the layer.
        input: what `nn.GRU.forward` takes.
        hx: likewise.

    Returns:
        output and h_n, laid out as `nn.GRU` does; None outside of an export.

    Raises:
        UntraceableInputError: where `input` is packed, which ONNX has no form of.
        RuntimeError: where the layer is to be quantized and not calibrated.
        ValueError: where the exact arithmetic of an operator has no form in ONNX, or the layer is in bfloat16; the
            message names it.
    """
    session, is_exporting = SESSION.get(), torch.onnx.is_in_onnx_export()
    if not (session or is_exporting):
        return None
    name = session.names[id(gru)] if session else type(gru).__name__
    if isinstance(input, PackedSequence):
        raise UntraceableInputError(
            f"{name}: its input is a PackedSequence, which ONNX can't hold; export with unpacked input"
        )
    is_quantized = gru.export_format == "qdq" and not gru.bitwidth_config.disable_quantization
    layout = Layout(gru.batch_first, input.dim() == 3)
    with _named(name):
        _check_type(gru)
        inputs = _time_first(layout, input, hx)
        if is_exporting:
            outputs = _symbolic(gru, inputs, is_quantized)
            result = layout.output(outputs[0]), layout.hidden(outputs[1])
        else:
            if is_quantized:
                result = gru._quantized_forward(input, hx, gru.ensure_calibrated())
            else:
                result = nn.GRU.forward(gru, input, hx)
            outputs = _time_first(layout, *result)
    if session and is_quantized:
        if not layout.is_batched:
            inputs, outputs = [input] if hx is None else [input, hx], result
        session.record(name, inputs, outputs, layout.is_batched and layout.batch_first)
    return result


def _check_type(gru: QuantGRU) -> None:
    dtype = gru.weight_ih_l0.dtype
    if dtype not in _TYPES:  # numpy, and so ONNX Runtime's Python side, has no such tensors
        raise ValueError(f"its parameters are {dtype}; expected float16, float32 or float64: call float() on the model")


def _symbolic(gru: QuantGRU, inputs: Sequence[Tensor], is_quantized: bool) -> tuple[Tensor, ...]:
    is_traced = torch.jit.is_tracing()
    with nullcontext() if is_traced else _real_tensors(gru), _unseen():
        if is_quantized:
            target = Target(_opset(is_traced), has_uint16=not is_traced)
            program = _quantized_program(gru, inputs[0].dtype, len(inputs) > 1, target)
        else:
            program = _float_program(gru, len(inputs) > 1)
    return _replay(program, inputs, is_traced)


def _time_first(layout: Layout, sequence: Tensor, states: Tensor | None) -> list[Tensor]:
    """Lay an input and hx, or an output and h_n, out as a layer's program has them."""
    found = [sequence] if states is None else [sequence, states]
    if not layout.is_batched:
        return [tensor.unsqueeze(1) for tensor in found]
    return [sequence.transpose(0, 1) if layout.batch_first else sequence, *found[1:]]


def _replay(program: Program, inputs: Sequence[Tensor], is_traced: bool) -> tuple[Tensor, ...]:
    if is_traced:
        from qgru.export.onnx import legacy

        return legacy.Replay.apply(program, *inputs)
    from qgru.export.onnx import dynamo

    return dynamo.replay(program, *inputs)


def _quantized_program(gru: QuantGRU, dtype: torch.dtype, has_hx: bool, target: Target) -> Program:
    cells = []
    for direction in directions_of(gru):
        weights = gru.quantized_weights(*direction)
        if not gru.bias:
            weights = {key: value for key, value in weights.items() if key not in BIASES}
        cells.append(quantized.Cell(str(direction), gru.grids(*direction), weights, direction.reverse))
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
    return torch_private.GLOBALS.export_onnx_opset_version if is_traced else _DYNAMO_DEFAULT_OPSET


@contextmanager
def _unseen() -> Iterator[None]:
    """Compute without the exporter recording it."""
    tracer = torch_private.get_tracing_state()
    torch_private.set_tracing_state(None)
    try:
        with torch_private.disable_current_modes(), torch_private.DisableTorchFunction(), torch.no_grad():
            yield
    finally:
        torch_private.set_tracing_state(tracer)


@contextmanager
def _real_tensors(gru: QuantGRU) -> Iterator[None]:
    """Give the layer its parameters and buffers back, where `torch.export` has put symbolic ones.

    Raises:
        RuntimeError: where nothing stands behind a symbolic one; names it.
    """
    homes = [home for module in gru.modules() for home in (module._parameters, module._buffers)]
    places = [(home, name) for home in homes for name, tensor in home.items() if tensor is not None]
    symbolic = [home[name] for home, name in places]
    real = torch_private.tensors_behind(symbolic)
    for (_, name), tensor in zip(places, real, strict=True):
        if tensor is None:
            raise RuntimeError(f"nothing but its shape is known of its {name!r} here; export with dynamo=False")
    _put(places, real)
    try:
        yield
    finally:
        _put(places, symbolic)


def _put(places: list[tuple[dict[str, Any], str]], tensors: list[Tensor]) -> None:
    for (home, name), tensor in zip(places, tensors, strict=True):
        home[name] = tensor
