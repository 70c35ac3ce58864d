"""The CUDA kernels as a backend: tensors to pointers, and the directions of a layer side by side on two streams."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from qgru.ops.backends import Backend
from qgru.ops.call import Gradient, LayerCall, LayerShape
from qgru.ops.cuda.backward import Backward, Saved
from qgru.ops.cuda.compile import ensure_context, is_available
from qgru.ops.cuda.layer import INPUT_DTYPES, LEAST_CAPABILITY, Layer, Shape, layer_of, processor
from qgru.ops.cuda.structs import CALL
from qgru.ops.plan import Plan
from qgru.torch_private import current_stream

_LIMBS = {Gradient.NONE: 0, Gradient.TF32: 2, Gradient.FLOAT32: 3}
"""8-bit limbs of the recurrent gradient."""

_NOTHING = nullcontext()


class Cuda(Backend):
    """The kernels of this folder, compiled at first use.

    Args:
        shares_tables: keep activation tables in shared memory; without, they are slower, and far fewer kernels serve
            many grids.
    """

    name = "cuda"

    def __init__(self, shares_tables: bool = True) -> None:
        self._shares_tables = shares_tables

    def why_unavailable(self) -> str | None:
        """Say so where they can't be compiled."""
        return None if is_available() else "cuda-core is missing; pip install qgru[cuda]"

    def describe(self) -> str:
        """Say that they are compiled when they are wanted."""
        in_use = "compiled at first use" if torch.cuda.is_available() else "no GPU to compile for"
        return self.why_unavailable() or in_use

    def serves(self, device: torch.device) -> bool:
        """Serve NVIDIA's GPUs."""
        return device.type == "cuda"

    def why_not(self, shape: LayerShape, plans: Sequence[Plan]) -> str | None:
        """Refuse old GPUs, other types, and widths and sizes that no kernel is written for."""
        capability = processor(shape.device.index).capability
        if capability < LEAST_CAPABILITY:
            return "the GPU has compute capability {}.{}, less than 8.0".format(*capability)
        if shape.dtype not in INPUT_DTYPES:
            return f"the input is {shape.dtype}, not one of {', '.join(map(str, INPUT_DTYPES))}"
        if set(shape.parameter_dtypes) != {torch.float32}:
            return f"the parameters are {', '.join(sorted(map(str, set(shape.parameter_dtypes))))}, not torch.float32"
        for plan in plans:
            if plan.carrier(shape.input, shape.hidden) is None:
                return "its sums and products fit none of their types; operands may have up to 16 bits"
            if self._layer(plan, _shape(shape), Gradient.FLOAT32) is None:
                return f"hidden size {shape.hidden} fits no layout on this GPU"
        return None

    def state_dtype(self, plans: Sequence[Plan]) -> torch.dtype:
        """Return float32: what has up to 16 bits fits."""
        return torch.float32

    def workspace_bytes(self, shape: LayerShape, plans: Sequence[Plan], gradient: int) -> int | None:
        """Return the bytes of every direction's sections and of the states."""
        is_fixed = all(type(n) is int for n in shape[:4]) and shape.device.type == "cuda"
        if not is_fixed or not torch.cuda.is_available():
            return None
        return _bytes([self._layer(plan, _shape(shape), gradient) for plan in plans])

    def forward(self, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer; see `Backend.forward`."""
        layers = self._layers(call)
        time, batch, _, hidden, _, device = layers[0].shape
        count, x = len(layers), call.x
        with _launching(device):
            x = x if x.stride(2) == 1 else x.contiguous()
            h0, parameters = _state(call.h0), [*map(_contiguous, call.parameters)]
            states = torch.empty((time, batch, count * hidden), dtype=torch.float32, device=x.device)
            last = torch.empty((count, batch, hidden), dtype=torch.float32, device=x.device)
            workspace = torch.empty(_bytes(layers), dtype=torch.uint8, device=x.device)
            start = 0
            for i, (layer, stream) in enumerate(zip(layers, _fork(device, count), strict=True)):
                packed = CALL.pack(
                    *[parameter.data_ptr() for parameter in parameters[4 * i : 4 * i + 4]],
                    call.exponents[i].data_ptr(),
                    x.data_ptr(),
                    0 if call.active is None else call.active.data_ptr(),
                    0 if call.diverged is None else call.diverged.data_ptr(),
                    0 if h0 is None else h0.data_ptr() + 4 * i * batch * hidden,
                    states.data_ptr() + 4 * i * hidden,
                    last.data_ptr() + 4 * i * batch * hidden,
                    workspace.data_ptr() + start,
                    *(x.stride(0), x.stride(1), count * hidden * batch, count * hidden),
                    i,
                )
                layer.run(stream, packed)
                start += layer.bytes
            _join(device, count)
        return states, last, workspace if call.gradient else workspace.new_empty(0)

    def backward(
        self, call: LayerCall, workspace: Tensor, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the gradients; see `Backend.backward`."""
        layers, x, h0 = self._layers(call), call.x, call.h0
        time, batch, _, hidden, _, device = layers[0].shape
        count, gradients, d_x, d_h = len(layers), [], [], []
        with _launching(device):
            x = x if x.stride(2) == 1 else x.contiguous()
            start, parameters = _state(h0), [*map(_contiguous, call.parameters)]
            if d_states is not None and d_states.stride(2) != 1:
                d_states = d_states.contiguous()
            d_last = None if d_last is None else _contiguous(d_last)
            first = workspace.data_ptr()
            for i, (layer, stream) in enumerate(zip(layers, _fork(device, count), strict=True)):
                saved = Saved(
                    x,
                    None if start is None else start[i],
                    parameters[4 * i : 4 * i + 4],
                    call.exponents[i],
                    first,
                )
                d_own = d_states if d_states is None or count == 1 else d_states[:, :, i * hidden : (i + 1) * hidden]
                with _on_stream(device, i):
                    d_end = None if d_last is None else d_last[i]
                    dx, dh, of_parameters = backward_of(layer).run(stream, saved, bool(i), d_own, d_end, needs_x)
                d_x.append(dx)
                d_h.append(dh)
                gradients += of_parameters
                first += layer.bytes
            _join(device, count, [tensor for tensor in (*d_x, *d_h, *gradients) if tensor is not None])
            d_input = (d_x[0] if count == 1 else d_x[0] + d_x[1]).to(x.dtype) if needs_x else x.new_empty(0)
            d_start = x.new_empty(0) if h0 is None else torch.stack(d_h).to(h0.dtype)
        return d_input, d_start, gradients

    def _layers(self, call: LayerCall) -> list[Layer]:
        """Return what runs every direction of a layer; raises RuntimeError where no kernel takes one."""
        shape = Shape(*call.sizes, call.x.dtype, call.x.device.index)
        found = [self._layer(plan, shape, call.gradient) for plan in call.plans]
        if None in found:
            raise RuntimeError(
                "qgru::gru_layer: no kernel takes these grids and shapes; use qgru.QuantGRU, which knows"
            )
        return found  # type: ignore[return-value]

    def _layer(self, plan: Plan, shape: Shape, gradient: int) -> Layer | None:
        return layer_of(plan, shape, _LIMBS[gradient], self._shares_tables)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _state(h0: Tensor | None) -> Tensor | None:
    return None if h0 is None else _contiguous(h0 if h0.dtype == torch.float32 else h0.float())


def _shape(shape: LayerShape) -> Shape:
    return Shape(shape.time, shape.batch, shape.input, shape.hidden, shape.dtype, shape.device.index)


def _bytes(layers: Sequence[Layer]) -> int:
    return sum([layer.bytes for layer in layers])


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
        return (current_stream(device),)
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
