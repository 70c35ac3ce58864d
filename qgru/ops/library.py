"""The `torch.library` ops of the fast backends, and which backend serves a call.

``qgru::gru_layer`` runs one layer, in one or both directions, and ``qgru::gru_layer_backward`` is its gradient. Both
are opaque to tracers; grids travel as plain integers, so that a compiled graph carries its own.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgru.grid import Grid
from qgru.ops.cpu import backend as cpu
from qgru.ops.cuda import compile as nvrtc
from qgru.ops.cuda import run as cuda
from qgru.ops.cuda.layer import Shape, layer_of
from qgru.ops.cuda.plan import WEIGHTS, flatten

_LIBRARY = torch.library.Library("qgru", "DEF")
_LIBRARY.define(
    "gru_layer(Tensor x, Tensor? h0, Tensor[] parameters, Tensor[] exponents, Tensor? active, Tensor? diverged, "
    "str[] grids, int limbs) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_LIBRARY.define(
    "gru_layer_backward(Tensor? d_states, Tensor? d_last, Tensor x, Tensor? h0, Tensor[] parameters, "
    "Tensor[] exponents, Tensor states, Tensor workspace, str[] grids, int limbs, bool needs_x) "
    "-> (Tensor, Tensor, Tensor[])",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_KEPT = 256
_BACKENDS: dict[str, Any] = {"cpu": cpu, "cuda": nvrtc}


class Kernels(NamedTuple):
    """One layer's grids, as the ops take them.

    Attributes:
        grids: of every direction, as text.
        exponents: of every direction, (4, 3 * hidden) int32 on the device, of the four weight operators.
    """

    grids: list[str]
    exponents: list[Tensor]


_kept: OrderedDict[tuple, tuple[list[Kernels] | None, object]] = OrderedDict()


def kernels_for(
    x: Tensor, parameters: Sequence[Sequence[Tensor]], grids: Sequence[Mapping[str, Grid]], directions: int
) -> list[Kernels] | None:
    """Return what the kernels need of every layer's grids; None where they don't take one and the reference runs.

    Args:
        x: (time, batch, input).
        parameters: for every layer and direction, the four tensors.
        grids: for every layer and direction, canonical operator name to grid; never changed.
        directions: 1 or 2.
    """
    if x.device.type not in _BACKENDS:
        return None
    if not _BACKENDS[x.device.type].is_available():
        _warn_once(x.device.type)
        return None
    # The mappings are held here as long as their ids are keys: hashing grids would cost more than a call.
    dtypes = [parameter.dtype for cell in parameters for parameter in cell]
    train = torch.is_grad_enabled()
    key = (x.shape, x.dtype, x.device, directions, train, *dtypes, *map(id, grids))
    kept = _kept.get(key)
    if kept is None:
        kept = _kept[key] = _kernels_for(x, parameters, grids, directions, train), grids
        if len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return kept[0]


def _kernels_for(
    x: Tensor, parameters: Sequence[Sequence[Tensor]], grids: Sequence[Mapping[str, Grid]], directions: int, train: bool
) -> list[Kernels] | None:
    kernels, dtype = [], x.dtype
    for first in range(0, len(grids), directions):
        layer = Kernels([], [])
        for index in range(first, first + directions):
            cell, text = parameters[index], flatten(grids[index])
            if not (_cuda_takes(x, dtype, cell, text) if x.is_cuda else _cpu_takes(x, cell, grids[index], train)):
                return None
            layer.grids.append(text)
            layer.exponents.append(_exponents(grids[index], len(cell[0])).to(x.device))
        kernels.append(layer)
        dtype = torch.float32
    return kernels


def _cuda_takes(x: Tensor, dtype: torch.dtype, cell: Sequence[Tensor], text: str) -> bool:
    shape = Shape(*x.shape[:2], cell[0].shape[1], cell[1].shape[1], dtype, x.device.index)
    return all(parameter.dtype == torch.float32 for parameter in cell) and layer_of(text, shape, 3) is not None


def _cpu_takes(x: Tensor, cell: Sequence[Tensor], grids: Mapping[str, Grid], train: bool) -> bool:
    is_double = train and any(tensor.dtype == torch.float64 for tensor in (x, *cell))
    return cpu.takes(grids, cell[0].shape[1], cell[1].shape[1], is_double)


def _exponents(grids: Mapping[str, Grid], channels: int) -> Tensor:
    of = [grids[name] for name in WEIGHTS]
    return torch.tensor([g.exponents if g.is_per_channel else g.exponents * channels for g in of], dtype=torch.int32)


_MISSING = {
    "cuda": "on the GPU through the slow reference: cuda-core is missing; pip install qgru[cuda]",
    "cpu": "on the CPU through the slow reference: its kernels were not built; with torch and a C++ compiler in place, "
    "pip install --no-build-isolation qgru",
}
_warned: set[str] = set()


def _warn_once(device: str) -> None:
    if device not in _warned:
        _warned.add(device)
        warnings.warn(f"quantized GRUs run {_MISSING[device]}", stacklevel=6)


def gru_layer(
    x: Tensor,
    h0: Tensor | None,
    parameters: Sequence[Tensor],
    kernels: Kernels,
    active: Tensor | None = None,
    diverged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one layer on the kernels.

    Args:
        x: (time, batch, input), real; NaN makes a row NaN from there on.
        h0: (directions, batch, hidden), real; None for zeros.
        parameters: weight_ih, weight_hh, bias_ih, bias_hh of every direction, float32.
        kernels: from `kernels_for`.
        active: (time, batch) bool, False on padding.
        diverged: (1,) bool on the device, True where a parameter anywhere in the module is NaN.

    Returns:
        states (time, batch, directions * hidden) and the last states (directions, batch, hidden), exact; float32, or
        float64 on a CPU where output.h needs it.
    """
    train = torch.is_grad_enabled() and any([t.requires_grad for t in (x, h0, *parameters) if t is not None])
    limbs = (2 if torch.backends.cudnn.allow_tf32 else 3) if train else 0
    grids, exponents = kernels
    if _is_traced(x):
        return torch.ops.qgru.gru_layer(x, h0, parameters, exponents, active, diverged, grids, limbs)[:2]
    if train:
        return _EagerLayer.apply(x, h0, exponents, active, diverged, grids, limbs, *parameters)
    run = cuda if x.is_cuda else cpu
    return run.forward(x, h0, parameters, exponents, active, diverged, grids, limbs)[:2]


def _is_traced(tensor: Tensor) -> bool:
    """Return True where somebody has to see the op itself, and the dispatcher's time is well spent."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or type(tensor) is not Tensor


_LIBRARY.impl("gru_layer", cuda.forward, "CUDA")
_LIBRARY.impl("gru_layer_backward", cuda.backward, "CUDA")
_LIBRARY.impl("gru_layer", cpu.forward, "CPU")
_LIBRARY.impl("gru_layer_backward", cpu.backward, "CPU")


@torch.library.register_fake("qgru::gru_layer", lib=_LIBRARY)
def _(x: Tensor, h0: Tensor | None, parameters: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    grids, limbs = rest[3], rest[4]
    time, batch, _ = x.shape
    hidden = parameters[1].shape[1]
    dtype = cpu.state_dtype(grids) if x.device.type == "cpu" else torch.float32
    states = x.new_empty((time, batch, len(grids) * hidden), dtype=dtype)
    last = x.new_empty((len(grids), batch, hidden), dtype=dtype)
    size: Any = 0
    if limbs and x.device.type == "cpu":
        size = cpu.workspace_bytes(time, batch, hidden, len(grids))
    elif limbs:
        fixed = all(type(n) is int for n in (*x.shape, hidden)) and x.device.type == "cuda"
        known = fixed and torch.cuda.is_available()
        size = sum(layer.bytes for layer in cuda.layers(x, parameters, grids, limbs)) if known else _any_size()
    return states, last, x.new_empty((size,), dtype=torch.uint8)


def _any_size() -> Any:
    return torch.library.get_ctx().new_dynamic_size()


@torch.library.register_fake("qgru::gru_layer_backward", lib=_LIBRARY)
def _(
    d_states: Any, d_last: Any, x: Tensor, h0: Tensor | None, parameters: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if rest[-1] else x.new_empty(0)
    dh = x.new_empty(0) if h0 is None else h0.new_empty(h0.shape)
    return dx, dh, [p.new_empty(p.shape) for p in parameters]


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, h0, parameters, exponents, _, _, ctx.grids, ctx.limbs = inputs
    states, _, workspace = output
    ctx.save_for_backward(x, h0, states, workspace, *parameters, *exponents)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_states: Tensor | None, d_last: Tensor | None, _: Any) -> tuple:
    count = 4 * len(ctx.grids)
    others = ([None] * len(ctx.grids), *(None,) * 4)
    if d_states is None and d_last is None:
        return None, None, [None] * count, *others
    needs_x = ctx.needs_input_grad[0]
    x, h0, states, workspace, *rest = ctx.saved_tensors  # once: under checkpointing every access computes
    eager = cuda.backward if x.is_cuda else cpu.backward
    backward = torch.ops.qgru.gru_layer_backward if _is_traced(x) else eager
    tensors = (d_states, d_last, x, h0, rest[:count], rest[count:], states, workspace)
    dx, dh, gradients = backward(*tensors, ctx.grids, ctx.limbs, needs_x)
    return dx if needs_x else None, None if h0 is None else dh, gradients, *others


torch.library.register_autograd("qgru::gru_layer", _differentiate, setup_context=_setup, lib=_LIBRARY)


class _EagerLayer(torch.autograd.Function):
    """The op and its gradient without the dispatcher, which would take longer than the launches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        exponents, active, diverged, grids, limbs, *parameters = rest
        inputs = (x, h0, parameters, exponents, active, diverged, grids, limbs)
        output = (cuda if x.is_cuda else cpu).forward(*inputs)
        _setup(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor | None, d_last: Tensor | None) -> tuple:
        dx, dh, gradients, *_ = _differentiate(ctx, d_states, d_last, None)
        return dx, dh, *(None,) * 5, *gradients
