"""The ops on a GPU: tensors to pointers, and the directions of a layer side by side on two streams."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from qgru.ops.cuda.backward import Backward, Saved
from qgru.ops.cuda.compile import ensure_context
from qgru.ops.cuda.layer import Layer, Shape, layer_of
from qgru.ops.cuda.structs import CALL


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _state(h0: Tensor | None) -> Tensor | None:
    return None if h0 is None else _contiguous(h0 if h0.dtype == torch.float32 else h0.float())


_NOTHING = nullcontext()


def layers(x: Tensor, parameters: Sequence[Tensor], grids: Sequence[str], limbs: int) -> list[Layer]:
    """Return what runs every direction of a layer; raises RuntimeError where no kernel takes one."""
    time, batch, size = x.shape
    shape = Shape(time, batch, size, parameters[1].shape[1], x.dtype, x.device.index)
    found = [layer_of(text, shape, limbs) for text in grids]
    if None in found:
        raise RuntimeError("qgru::gru_layer: no kernel takes these grids and shapes; use qgru.QuantGRU, which knows")
    return found  # type: ignore[return-value]


def forward(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Tensor],
    exponents: Sequence[Tensor],
    active: Tensor | None,
    diverged: Tensor | None,
    grids: Sequence[str],
    limbs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states, the last states and the workspace that backward reads (empty without gradient)."""
    of_directions = layers(x, parameters, grids, limbs)
    time, batch, _, hidden, _, device = of_directions[0].shape
    count = len(of_directions)
    with _launching(device):
        x = x if x.stride(2) == 1 else x.contiguous()
        h0, parameters = _state(h0), [*map(_contiguous, parameters)]
        states = torch.empty((time, batch, count * hidden), dtype=torch.float32, device=x.device)
        last = torch.empty((count, batch, hidden), dtype=torch.float32, device=x.device)
        workspace = torch.empty(sum([layer.bytes for layer in of_directions]), dtype=torch.uint8, device=x.device)
        start = 0
        for i, (layer, stream) in enumerate(zip(of_directions, _fork(device, count), strict=True)):
            call = CALL.pack(
                *[parameter.data_ptr() for parameter in parameters[4 * i : 4 * i + 4]],
                exponents[i].data_ptr(),
                x.data_ptr(),
                0 if active is None else active.data_ptr(),
                0 if diverged is None else diverged.data_ptr(),
                0 if h0 is None else h0.data_ptr() + 4 * i * batch * hidden,
                states.data_ptr() + 4 * i * hidden,
                last.data_ptr() + 4 * i * batch * hidden,
                workspace.data_ptr() + start,
                *(x.stride(0), x.stride(1), count * hidden * batch, count * hidden),
                i,
            )
            layer.run(stream, call)
            start += layer.bytes
        _join(device, count)
    return states, last, workspace if limbs else workspace.new_empty(0)


def backward(
    d_states: Tensor | None,
    d_last: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Tensor],
    exponents: Sequence[Tensor],
    states: Tensor,
    workspace: Tensor,
    grids: Sequence[str],
    limbs: int,
    needs_x: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the gradients of x (empty unless needed), h0 (empty where there is none) and the parameters."""
    of_directions = layers(x, parameters, grids, limbs)
    time, batch, _, hidden, _, device = of_directions[0].shape
    gradients: list[Tensor] = []
    d_x, d_h = [], []
    with _launching(device):
        x = x if x.stride(2) == 1 else x.contiguous()
        start, parameters = _state(h0), [*map(_contiguous, parameters)]
        if d_states is not None and d_states.stride(2) != 1:
            d_states = d_states.contiguous()
        d_last = None if d_last is None else _contiguous(d_last)
        first = workspace.data_ptr()
        for i, (layer, stream) in enumerate(zip(of_directions, _fork(device, len(grids)), strict=True)):
            saved = Saved(
                x,
                None if start is None else start[i],
                parameters[4 * i : 4 * i + 4],
                exponents[i],
                first,
            )
            d_own = d_states if d_states is None or len(grids) == 1 else d_states[:, :, i * hidden : (i + 1) * hidden]
            with _on_stream(device, i):
                d_end = None if d_last is None else d_last[i]
                dx, dh, of_parameters = backward_of(layer).run(stream, saved, bool(i), d_own, d_end, needs_x)
            d_x.append(dx)
            d_h.append(dh)
            gradients += of_parameters
            first += layer.bytes
        _join(device, len(grids), [tensor for tensor in (*d_x, *d_h, *gradients) if tensor is not None])
        d_input = (d_x[0] if len(grids) == 1 else d_x[0] + d_x[1]).to(x.dtype) if needs_x else x.new_empty(0)
        d_start = x.new_empty(0) if h0 is None else torch.stack(d_h).to(h0.dtype)
    return d_input, d_start, gradients


@lru_cache(maxsize=1024)
def backward_of(layer: Layer) -> Backward:
    """Return a layer's backward."""
    return Backward(layer)


def _launching(device: int) -> AbstractContextManager[object]:
    ensure_context(device)
    return _NOTHING if torch.cuda.current_device() == device else torch.cuda.device(device)


@lru_cache(maxsize=64)
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _fork(device: int, count: int) -> Sequence[int]:
    """Return a stream for every direction: the current one, and one beside it that has waited for it."""
    if count == 1:
        return (torch._C._cuda_getCurrentRawStream(device),)  # a tenth of current_stream()'s time
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    return current.cuda_stream, side.cuda_stream


def _on_stream(device: int, direction: int) -> AbstractContextManager[object]:
    return torch.cuda.stream(_side_stream(device)) if direction else _NOTHING


def _join(device: int, count: int, tensors: Sequence[Tensor] = ()) -> None:
    """Let the current stream wait for the one beside it; it will use `tensors`, which either may have allocated."""
    if count == 1:
        return
    current = torch.cuda.current_stream(device)
    current.wait_stream(_side_stream(device))
    for tensor in tensors:
        tensor.record_stream(current)
