"""What `QuantGRU.forward` does while `torch.onnx.export` looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from qgru import torch_private
from qgru.direction import directions_of
from qgru.export.onnx import quantized, standard
from qgru.export.onnx.arithmetic import Target
from qgru.export.onnx.program import Program
from qgru.export.onnx.session import SESSION
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
        TypeError: where `input` is packed, which ONNX has no form of.
        RuntimeError: where the layer is to be quantized and not calibrated.
        ValueError: where the exact arithmetic of an operator has no form in ONNX, or the layer is in bfloat16; the
            message names it.
    """
    session, is_exporting = SESSION.get(), torch.onnx.is_in_onnx_export()
    if not (session or is_exporting):
        return None
    name = session.names[id(gru)] if session else type(gru).__name__
    if isinstance(input, PackedSequence):
        raise TypeError(f"{name}: its input is a PackedSequence, which ONNX can't hold; export with unpacked input")
    is_quantized = gru.export_format == "qdq" and not gru.bitwidth_config.disable_quantization
    with _named(name):
        _check_type(gru)
        if is_exporting:
            output, h_n = _symbolic(gru, input, hx, is_quantized)
        elif is_quantized:
            output, h_n = gru._quantized_forward(input, hx, gru.ensure_calibrated())
        else:
            output, h_n = nn.GRU.forward(gru, input, hx)
    if session and is_quantized:
        session.record(name, (input,) if hx is None else (input, hx), (output, h_n))
    return output, h_n


def _check_type(gru: QuantGRU) -> None:
    dtype = gru.weight_ih_l0.dtype
    if dtype not in _TYPES:  # numpy, and so ONNX Runtime's Python side, has no such tensors
        raise ValueError(f"its parameters are {dtype}; expected float16, float32 or float64: call float() on the model")


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
