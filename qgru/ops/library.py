"""The `torch.library` ops of the fast backends, and which backend serves a call.

``qgru::gru_layer`` runs one layer and direction on a GPU and ``qgru::gru_layer_backward`` is its gradient. Both are
opaque to tracers; grids travel as plain integers, so that a compiled graph carries its own.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.cuda import compile as nvrtc
from qgru.ops.cuda.gradient import Backward, Saved
from qgru.ops.cuda.layer import Shape, layer_of
from qgru.ops.cuda.plan import WEIGHTS, flatten

_LIBRARY = torch.library.Library("qgru", "DEF")
_LIBRARY.define(
    "gru_layer(Tensor x, Tensor h0, Tensor W, Tensor R, Tensor bw, Tensor br, Tensor exponents, Tensor? active, "
    "Tensor? diverged, str grids, bool reverse, int limbs) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_LIBRARY.define(
    "gru_layer_backward(Tensor? d_states, Tensor? d_last, Tensor x, Tensor h0, Tensor W, Tensor R, Tensor bw, "
    "Tensor br, Tensor exponents, Tensor states, Tensor workspace, str grids, bool reverse, int limbs, bool needs_x)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_KEPT = 256


class Kernels(NamedTuple):
    """One layer's and direction's grids, as the ops take them.

    Attributes:
        grids: as text.
        exponents: (4, 3 * hidden) int32 on the device, of the four weight operators.
    """

    grids: str
    exponents: Tensor


_kept: OrderedDict[tuple, tuple[list[Kernels] | None, object]] = OrderedDict()


def kernels_for(
    x: Tensor, parameters: Sequence[Sequence[Tensor]], grids: Sequence[Mapping[str, Grid]]
) -> list[Kernels] | None:
    """Return what the CUDA kernels need of the grids; None where they don't take a layer and the reference runs.

    Args:
        x: (time, batch, input).
        parameters: for every layer and direction, the four tensors.
        grids: for every layer and direction, canonical operator name to grid.
    """
    if not x.is_cuda:
        return None
    if not nvrtc.is_available():
        _warn_once()
        return None
    # Grids are immutable, and held here as long as their ids are keys: hashing them would cost more than a call.
    objects = tuple(tuple(cell.values()) for cell in grids)
    dtypes = tuple(parameter.dtype for cell in parameters for parameter in cell)
    key = (tuple(x.shape), x.dtype, x.device, dtypes, *(tuple(map(id, cell)) for cell in objects))
    if key not in _kept:
        _kept[key] = _kernels_for(x, parameters, grids), objects
        if len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return _kept[key][0]


def _kernels_for(
    x: Tensor, parameters: Sequence[Sequence[Tensor]], grids: Sequence[Mapping[str, Grid]]
) -> list[Kernels] | None:
    time, batch, _ = x.shape
    kernels, dtype = [], x.dtype
    for cell, cell_grids in zip(parameters, grids, strict=True):
        text = flatten(cell_grids)
        shape = Shape(time, batch, cell[0].shape[1], cell[1].shape[1], dtype, x.device.index)
        if any(parameter.dtype != torch.float32 for parameter in cell) or layer_of(text, shape, 3) is None:
            return None
        kernels.append(Kernels(text, _exponents(cell_grids, len(cell[0])).to(x.device)))
        dtype = torch.float32
    return kernels


def _exponents(grids: Mapping[str, Grid], channels: int) -> Tensor:
    of = [grids[name] for name in WEIGHTS]
    return torch.tensor([g.exponents if g.is_per_channel else g.exponents * channels for g in of], dtype=torch.int32)


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "quantized GRUs run on the GPU through the slow reference: cuda-core is missing; pip install qgru[cuda]",
            stacklevel=6,
        )


def gru_layer(
    x: Tensor,
    h0: Tensor,
    parameters: Sequence[Tensor],
    kernels: Kernels,
    active: Tensor | None = None,
    diverged: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one layer and direction on the CUDA kernels.

    Args:
        x: (time, batch, input), float32, bfloat16 or float16, real; NaN makes a row NaN from there on.
        h0: (batch, hidden), real.
        parameters: weight_ih, weight_hh, bias_ih, bias_hh, float32.
        kernels: from `kernels_for`.
        active: (time, batch) bool, False on padding.
        diverged: (1,) bool on the device, True where a parameter anywhere in the module is NaN.
        reverse: walk from the last time step to the first.

    Returns:
        states (time, batch, hidden) and the last state (batch, hidden), float32, exact.
    """
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h0, *parameters))
    limbs = (2 if torch.backends.cudnn.allow_tf32 else 3) if train else 0
    grids, exponents = kernels
    arguments = (x, h0, *parameters, exponents, active, diverged, grids, reverse, limbs)
    if _is_traced(x):
        states, last, _ = torch.ops.qgru.gru_layer(*arguments)
    elif train:
        states, last = _EagerLayer.apply(*arguments)
    else:
        states, last, _ = _forward(*arguments)
    return states, last


def _is_traced(tensor: Tensor) -> bool:
    """Return True where somebody has to see the op itself, and the dispatcher's time is well spent."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or type(tensor) is not Tensor


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _shape(x: Tensor, R: Tensor) -> Shape:
    time, batch, size = x.shape
    return Shape(time, batch, size, R.shape[1], x.dtype, x.device.index)


def _forward(
    x: Tensor,
    h0: Tensor,
    W: Tensor,
    R: Tensor,
    bw: Tensor,
    br: Tensor,
    exponents: Tensor,
    active: Tensor | None,
    diverged: Tensor | None,
    grids: str,
    reverse: bool,
    limbs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _shape(x, R)
    layer = layer_of(grids, shape, limbs)
    if layer is None:
        raise RuntimeError("qgru::gru_layer: no kernel takes these grids and shapes; use qgru.QuantGRU, which knows")
    with torch.cuda.device(shape.device):
        nvrtc.ensure_context(shape.device)
        stream = torch._C._cuda_getCurrentRawStream(shape.device)  # a tenth of current_stream()'s time
        x = x if x.stride(2) == 1 else x.contiguous()
        h0 = _contiguous(h0 if h0.dtype == torch.float32 else h0.float())
        parameters = tuple(map(_contiguous, (W, R, bw, br)))
        states = h0.new_empty(shape.time, shape.batch, shape.hidden)
        last = torch.empty_like(h0)
        workspace = torch.empty(layer.bytes, dtype=torch.uint8, device=x.device)
        layer.run(stream, x, h0, parameters, exponents, active, diverged, reverse, states, last, workspace)
    return states, last, workspace if limbs else workspace.new_empty(0)


def _backward(
    d_states: Tensor | None,
    d_last: Tensor | None,
    x: Tensor,
    h0: Tensor,
    W: Tensor,
    R: Tensor,
    bw: Tensor,
    br: Tensor,
    exponents: Tensor,
    states: Tensor,
    workspace: Tensor,
    grids: str,
    reverse: bool,
    limbs: int,
    needs_x: bool,
) -> tuple[Tensor, ...]:
    shape = _shape(x, R)
    layer = layer_of(grids, shape, limbs)
    assert layer is not None
    with torch.cuda.device(shape.device):
        nvrtc.ensure_context(shape.device)
        stream = torch._C._cuda_getCurrentRawStream(shape.device)
        dtype = h0.dtype
        x = x if x.stride(2) == 1 else x.contiguous()
        h0 = _contiguous(h0.float())
        parameters = tuple(map(_contiguous, (W, R, bw, br)))
        if d_states is not None and d_states.stride(2) != 1:
            d_states = d_states.contiguous()
        saved = Saved(x, h0, parameters, exponents, states, workspace)
        dx, dh, *rest = Backward(layer, stream, saved, reverse).run(d_states, d_last, needs_x)
        dx = x.new_empty(0) if dx is None else dx.to(x.dtype)
    return dx, dh.to(dtype), *rest


_LIBRARY.impl("gru_layer", _forward, "CUDA")
_LIBRARY.impl("gru_layer_backward", _backward, "CUDA")


@torch.library.register_fake("qgru::gru_layer", lib=_LIBRARY)
def _(x: Tensor, h0: Tensor, W: Tensor, R: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    grids, limbs = rest[5], rest[7]
    time, batch, _ = x.shape
    hidden = R.shape[1]
    states = h0.new_empty((time, batch, hidden), dtype=torch.float32)
    last = h0.new_empty((batch, hidden), dtype=torch.float32)
    size: Any = 0
    if limbs:
        fixed = all(type(n) is int for n in (time, batch, *W.shape, *R.shape)) and x.device.type == "cuda"
        layer = layer_of(grids, _shape(x, R), limbs) if fixed and torch.cuda.is_available() else None
        size = layer.bytes if layer is not None else torch.library.get_ctx().new_dynamic_size()
    return states, last, x.new_empty((size,), dtype=torch.uint8)


@torch.library.register_fake("qgru::gru_layer_backward", lib=_LIBRARY)
def _(d_states: Any, d_last: Any, x: Tensor, h0: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if rest[-1] else x.new_empty(0)
    return dx, h0.new_empty(h0.shape), *(p.new_empty(p.shape) for p in rest[:4])


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, h0, W, R, bw, br, exponents, _, _, grids, reverse, limbs = inputs
    states, _, workspace = output
    ctx.save_for_backward(x, h0, W, R, bw, br, exponents, states, workspace)
    ctx.grids, ctx.reverse, ctx.limbs = grids, reverse, limbs
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_states: Tensor | None, d_last: Tensor | None, _: Any) -> tuple:
    if d_states is None and d_last is None:
        return (None,) * 12
    needs_x = ctx.needs_input_grad[0]
    saved = ctx.saved_tensors  # once: under checkpointing every access computes
    backward = torch.ops.qgru.gru_layer_backward if _is_traced(saved[0]) else _backward
    gradients = backward(d_states, d_last, *saved, ctx.grids, ctx.reverse, ctx.limbs, needs_x)
    return gradients[0] if needs_x else None, *gradients[1:], *(None,) * 6


torch.library.register_autograd("qgru::gru_layer", _differentiate, setup_context=_setup, lib=_LIBRARY)


class _EagerLayer(torch.autograd.Function):
    """The op and its gradient without the dispatcher, which would take longer than the launches."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor | None, d_last: Tensor | None) -> tuple:
        return _differentiate(ctx, d_states, d_last, None)
