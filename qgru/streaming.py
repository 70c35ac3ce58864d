"""One time step at a time, on weights that are prepared once.

Where no gradient is wanted, a backend that gains by it prepares a quantized layer's weights at its first step, and
again once they or the grids have changed, by whatever means: a step compares addresses, and digests of what is in
memory. Writes that torch does not count (through ``.data``, by another process) are thus seen at the next step where
there are up to 200,000 weights; where there are n times as many, within n steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from qgru.direction import directions_of, parameter_name
from qgru.ops import backends
from qgru.ops.backends import Stepper
from qgru.ops.call import LayerShape
from qgru.schema import BIASES, WEIGHTS
from qgru.torch_private import is_dispatch_traced

if TYPE_CHECKING:
    from qgru.gru import QuantGRU


class Steps:
    """What a layer keeps for its steps; a copy of the layer has none of it."""

    def __init__(self) -> None:
        self.prepared: _Prepared | None = None

    def __reduce__(self) -> tuple:
        return Steps, ()


def step(gru: QuantGRU, x_t: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run one time step; see `QuantGRU.step`."""
    if not isinstance(x_t, Tensor):
        raise TypeError(f"step: x_t is a {type(x_t).__name__}; expected a tensor")
    if not torch.compiler.is_compiling() and _is_unobserved(gru, x_t, state):
        prepared = gru._steps.prepared
        if prepared is None or not prepared.is_of(gru):
            prepared = gru._steps.prepared = _prepare(gru)
        if prepared is not None and prepared.takes(x_t, state):
            result = prepared.run(x_t, state)
            if result is not None:
                return result
            gru._steps.prepared = None
    return _through_forward(gru, x_t, state)


def _is_unobserved(gru: QuantGRU, x: Tensor, state: Tensor | None) -> bool:
    """Tell whether nothing but the integers is asked for: no gradient, statistics, trace, hook or dropout."""
    if gru.calibrating or gru.export_mode or gru._calibration.is_stale or (gru.training and gru.dropout):
        return False
    if gru._forward_hooks or gru._forward_pre_hooks or is_dispatch_traced(x) or torch.jit.is_tracing():
        return False
    if state is not None and type(state) is not Tensor:
        return False
    if not torch.is_grad_enabled():
        return True
    tensors = (x, *gru._parameters.values()) if state is None else (x, state, *gru._parameters.values())
    return not any([tensor.requires_grad for tensor in tensors])


@dataclass(frozen=True)
class _Prepared:
    """Prepared weights, and what tells that they are the layer's.

    Attributes:
        stepper: runs a step.
        sizes: layers, hidden and input.
        addresses: of all parameters and buffers; 0 where elements don't follow each other.
        versions: of the parameters, where the stepper does not look at all that is in them; else None.
        choice: of the backend.
    """

    stepper: Stepper
    sizes: tuple[int, int, int]
    addresses: list[int]
    versions: list[int] | None
    choice: int

    def is_of(self, gru: QuantGRU) -> bool:
        """Tell whether the layer still has the tensors that the weights were prepared from."""
        parameters = gru._parameters.values()
        if _addresses((*parameters, *gru._buffers.values())) != self.addresses or backends.choice() != self.choice:
            return False
        return self.versions is None or [_version(tensor) for tensor in parameters] == self.versions

    def takes(self, x: Tensor, state: Tensor | None) -> bool:
        """Tell whether the arguments are what the stepper takes, but for their layout."""
        layers, hidden, inputs = self.sizes
        given = x.shape
        if x.dtype != torch.float32 or not x.is_cpu or not 1 <= len(given) <= 2 or given[-1] != inputs:
            return False
        if state is None:
            return True
        wanted = (layers, given[0], hidden) if len(given) == 2 else (layers, hidden)
        return state.dtype == torch.float32 and state.is_cpu and state.shape == wanted

    def run(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run one time step; None where the weights or grids have changed."""
        if x.dim() == 2:
            return self.stepper(x.contiguous(), None if state is None else state.contiguous())
        result = self.stepper(x.unsqueeze(0).contiguous(), None if state is None else state.unsqueeze(1).contiguous())
        return result and (result[0].squeeze(0), result[1].squeeze(1))


def _prepare(gru: QuantGRU) -> _Prepared | None:
    """Prepare a layer's weights for steps, where it is quantized and its backend gains by that."""
    known, parameters = gru._quant_state(), gru._parameters
    is_quantized = known.use_quantization and not known.disable_quantization and known.is_calibrated
    wanted = [parameter_name(name, d) for d in directions_of(gru) for name in WEIGHTS if gru.bias or name not in BIASES]
    tensors = [*parameters.values(), *gru._buffers.values()]
    is_plain = not gru.bidirectional and list(parameters) == wanted  # a parametrized weight is worked out at every call
    if not is_quantized or not is_plain or any(type(t) not in (Tensor, Parameter) for t in tensors):
        return None
    weights, cells = gru._cells(), known.prepared
    flat = [tensor for own in weights for tensor in own]
    shape = LayerShape(
        1, 1, gru.input_size, gru.hidden_size, torch.float32, tuple(t.dtype for t in flat), flat[0].device, False
    )
    backend = backends.serving(shape, [cell.plan for cell in cells], 1)
    addresses = _addresses(tensors)
    versions = [_version(tensor) for tensor in parameters.values()]
    stepper = backend.stepper(weights, cells, list(gru._buffers.values()))
    if stepper is None:
        return None
    sizes = (gru.num_layers, gru.hidden_size, gru.input_size)
    return _Prepared(stepper, sizes, addresses, None if stepper.sees_all else versions, backends.choice())


def _through_forward(gru: QuantGRU, x_t: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if gru.bidirectional:
        raise ValueError(
            "step: the layer is bidirectional; expected one direction, for the other one begins at the end"
        )
    if x_t.dim() not in (1, 2):
        raise ValueError(f"step: x_t has {x_t.dim()} dimensions; expected (batch, input) or (input,), one time step")
    axis = 1 if gru.batch_first and x_t.dim() == 2 else 0
    output, h_n = gru(x_t.unsqueeze(axis), state)
    return output.squeeze(axis), h_n


def _addresses(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() if tensor.is_contiguous() else 0 for tensor in tensors]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
