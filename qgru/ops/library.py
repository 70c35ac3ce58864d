"""The `torch.library` ops through which a backend runs a layer, and their gradient.

``qgru::gru_layer`` runs one layer, in one or both directions, and ``qgru::gru_layer_backward`` is its gradient. Both
are opaque to tracers, for which grids travel as text, so that a traced graph carries its own. Where nobody traces, the
backend is called directly: the dispatcher would take longer than the launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qgru.ops import backends
from qgru.ops.backends import Backend
from qgru.ops.call import Gradient, LayerCall
from qgru.ops.plan import plan_from
from qgru.torch_private import is_dispatch_traced

_LIBRARY = torch.library.Library("qgru", "DEF")
_LIBRARY.define(
    "gru_layer(Tensor x, Tensor? h0, Tensor[] parameters, Tensor[] exponents, Tensor? active, Tensor? diverged, "
    "str[] plans, int gradient, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)
_LIBRARY.define(
    "gru_layer_backward(Tensor? d_states, Tensor? d_last, Tensor workspace, bool needs_x, Tensor x, Tensor? h0, "
    "Tensor[] parameters, Tensor[] exponents, Tensor? active, Tensor? diverged, str[] plans, int gradient, "
    "str backend) -> (Tensor, Tensor, Tensor[])",
    tags=(torch.Tag.needs_fixed_stride_order,),
)


def gru_layer(backend: Backend, call: LayerCall) -> tuple[Tensor, Tensor]:
    """Run one layer on a backend.

    Args:
        backend: one that takes the layer.
        call: the layer; its `gradient` is set here.

    Returns:
        states (time, batch, directions * hidden) and the last states (directions, batch, hidden), exact, of the
        backend's `state_dtype`; a gradient flows to x, h0 and the parameters.
    """
    tensors = (call.x, call.h0, *call.parameters)
    is_trained = torch.is_grad_enabled() and any([t.requires_grad for t in tensors if t is not None])
    if is_trained:
        call = call._replace(gradient=Gradient.TF32 if torch.backends.cudnn.allow_tf32 else Gradient.FLOAT32)
    if torch.compiler.is_compiling() or is_dispatch_traced(call.x):
        return torch.ops.qgru.gru_layer(*_arguments(call), backend.name)[:2]
    if is_trained and not backend.is_differentiable:
        return _EagerLayer.apply(backend, call, call.x, call.h0, *call.parameters)
    return backend.forward(call)[:2]


def _arguments(call: LayerCall) -> tuple[Any, ...]:
    """Return a call as the ops take it."""
    return (*call[:6], [plan.text for plan in call.plans], int(call.gradient))


def _call(*arguments: Any) -> LayerCall:
    *tensors, texts, gradient = arguments
    return LayerCall(*tensors, [plan_from(text) for text in texts], gradient)


@torch.library.impl(_LIBRARY, "gru_layer", "CompositeExplicitAutograd")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return backends.named(arguments[-1]).forward(_call(*arguments[:-1]))


@torch.library.impl(_LIBRARY, "gru_layer_backward", "CompositeExplicitAutograd")
def _backward(
    d_states: Tensor | None, d_last: Tensor | None, workspace: Tensor, needs_x: bool, *arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    call = _call(*arguments[:-1])
    return backends.named(arguments[-1]).backward(call, workspace, d_states, d_last, needs_x)


@torch.library.register_fake("qgru::gru_layer", lib=_LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, call = backends.named(arguments[-1]), _call(*arguments[:-1])
    time, batch, _, hidden = call.sizes
    directions, dtype = len(call.plans), backend.state_dtype(call.plans)
    states = call.x.new_empty((time, batch, directions * hidden), dtype=dtype)
    last = call.x.new_empty((directions, batch, hidden), dtype=dtype)
    size = backend.workspace_bytes(call.shape, call.plans, call.gradient) if call.gradient else 0
    if size is None:
        size = torch.library.get_ctx().new_dynamic_size()
    return states, last, call.x.new_empty((size,), dtype=torch.uint8)


@torch.library.register_fake("qgru::gru_layer_backward", lib=_LIBRARY)
def _(
    d_states: Any, d_last: Any, workspace: Any, needs_x: bool, x: Tensor, h0: Tensor | None, parameters: Any, *_: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_x else x.new_empty(0)
    dh = x.new_empty(0) if h0 is None else h0.new_empty(h0.shape)
    return dx, dh, [parameter.new_empty(parameter.shape) for parameter in parameters]


def _save(ctx: Any, call: LayerCall, workspace: Tensor) -> None:
    ctx.plans, ctx.gradient, ctx.count = call.plans, call.gradient, len(call.parameters)
    ctx.save_for_backward(workspace, call.x, call.h0, call.active, call.diverged, *call.parameters, *call.exponents)
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[LayerCall, Tensor]:
    workspace, x, h0, active, diverged, *rest = ctx.saved_tensors  # once: under checkpointing every access computes
    parameters, exponents = rest[: ctx.count], rest[ctx.count :]
    return LayerCall(x, h0, parameters, exponents, active, diverged, ctx.plans, ctx.gradient), workspace


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.backend = inputs[-1]
    _save(ctx, _call(*inputs[:-1]), output[2])


def _differentiate(ctx: Any, d_states: Tensor | None, d_last: Tensor | None, _: Any) -> tuple:
    others: Sequence[Any] = ([None] * len(ctx.plans), *(None,) * 5)
    if d_states is None and d_last is None:
        return None, None, [None] * ctx.count, *others
    call, workspace = _saved(ctx)
    needs_x = ctx.needs_input_grad[0]
    given = (d_states, d_last, workspace, needs_x, *_arguments(call), ctx.backend)
    dx, dh, gradients = torch.ops.qgru.gru_layer_backward(*given)
    return dx if needs_x else None, None if call.h0 is None else dh, gradients, *others


torch.library.register_autograd("qgru::gru_layer", _differentiate, setup_context=_setup, lib=_LIBRARY)


class _EagerLayer(torch.autograd.Function):
    """A backend's forward and backward without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, call: LayerCall, *_: Tensor | None) -> tuple[Tensor, Tensor]:
        states, last, workspace = backend.forward(call)
        ctx.backend = backend
        _save(ctx, call, workspace)
        return states, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor | None, d_last: Tensor | None) -> tuple:
        if d_states is None and d_last is None:
            return (None,) * (4 + ctx.count)
        call, workspace = _saved(ctx)
        needs_x = ctx.needs_input_grad[2]
        dx, dh, gradients = ctx.backend.backward(call, workspace, d_states, d_last, needs_x)
        return None, None, dx if needs_x else None, None if call.h0 is None else dh, *gradients
