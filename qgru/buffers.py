"""The three integer buffers of a layer: the only home of its quantization state.

`state_dict`, DDP and weights-only files carry them; Python reads them again only where they may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import uuid4

import torch
from torch import Tensor, nn

from qgru.direction import directions_of
from qgru.schema import OPERATORS, WEIGHTS, BitwidthConfig
from qgru.state import BUFFERS, CellState, QuantState, decode, encode
from qgru.torch_private import is_in_torch_dispatch_mode

_DTYPES = dict(zip(BUFFERS, (torch.uint8, torch.int64, torch.int64), strict=True))


class StateBuffers:
    """What a layer's buffers mean.

    Some writes leave no trace on a tensor: those of another process, of gloo's collectives, those through ``.data``.
    Buffers on the CPU are therefore compared with a copy at every call. On an accelerator that would wait for the
    device: there only a new tensor or version counts, and `expire` has them read again.

    Attributes:
        state: as it was read or written last.
    """

    def __init__(self, state: QuantState) -> None:
        self.state = state
        self._known: tuple[tuple[str, Tensor, int, Tensor | None], ...] = ()

    def __reduce__(self) -> tuple:
        return StateBuffers, (self.state,)  # a copy of the layer has tensors of its own

    def read(self, gru: nn.RNNBase) -> QuantState:
        """Return the state that the layer's buffers hold now.

        Raises:
            ValueError: where they hold none; the message names the buffer, the operator, its value and what was
                expected.
        """
        if torch.compiler.is_compiling() or self._is_current(gru._buffers):
            return self.state
        tensors = [gru._buffers[name] for name in BUFFERS]
        if not all(map(_has_values, tensors)):
            return self.state
        copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
        self.state = _decode(gru, dict(zip(BUFFERS, copies, strict=True)))
        self._remember(tensors, copies)
        return self.state

    def write(self, gru: nn.RNNBase, state: QuantState) -> None:
        """Write a state into the buffers, in place where torch allows it."""
        contents = encode(state, 3 * gru.hidden_size)
        fresh = [torch.tensor(contents[name], dtype=_DTYPES[name]).view(_shape(gru, name)) for name in BUFFERS]
        for name, values in zip(BUFFERS, fresh, strict=True):
            _store(gru, name, values)
        self.state = state
        self._remember([gru._buffers[name] for name in BUFFERS], fresh)

    def expire(self) -> None:
        """Have buffers on an accelerator read again at the next call."""
        self._known = tuple(
            (name, tensor, -1 if copy is None else version, copy) for name, tensor, version, copy in self._known
        )

    def have_types(self, gru: nn.RNNBase) -> bool:
        """Return False where a cast of the whole layer has made the buffers something else."""
        return all(gru._buffers[name].dtype == dtype for name, dtype in _DTYPES.items())

    def _is_current(self, buffers: Mapping[str, Tensor | None]) -> bool:
        if not self._known:
            return False
        is_watched = is_in_torch_dispatch_mode()  # by somebody who would be asked to compare: fake tensors can't be
        for name, tensor, version, copy in self._known:
            if buffers[name] is not tensor:
                return False
            if copy is None or is_watched:
                if version != _version(tensor):
                    return False
            elif not torch.equal(tensor, copy):
                return False
        return True

    def _remember(self, tensors: list[Tensor], copies: list[Tensor]) -> None:
        self._known = tuple(
            (name, tensor, _version(tensor), copy if _is_compared(tensor) else None)
            for name, tensor, copy in zip(BUFFERS, tensors, copies, strict=True)
        )


def register_buffers(gru: nn.RNNBase) -> StateBuffers:
    """Add the three buffers, uncalibrated, on the device of the parameters."""
    device = gru.weight_ih_l0.device
    for name in BUFFERS:
        gru.register_buffer(name, torch.zeros(_shape(gru, name), dtype=_DTYPES[name], device=device))
    state = QuantState(False, (CellState(BitwidthConfig()),) * len(directions_of(gru)))
    buffers = StateBuffers(state)
    buffers.write(gru, state)
    return buffers


def keeps_values(fn: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Return False where a function that a module maps over its tensors loses what they hold, as `to_empty`'s does.

    Args:
        fn: what `nn.Module._apply` is given.
        device: of the tensors.
    """
    number = uuid4().int >> 65  # memory that was freed may hold a layer's old state, but not this
    moved = fn(torch.tensor(number, device=device))
    if device.type == "meta" or not _has_values(moved):
        return not _has_values(moved)
    accelerator = torch.accelerator.current_accelerator()
    if moved.is_cpu and accelerator is not None and device.type == accelerator.type:
        torch.accelerator.synchronize(device)  # a move that does not block may still be under way
    return moved.dtype != torch.int64 or int(moved) == number


def why_not(gru: nn.RNNBase, given: Mapping[str, Tensor]) -> str | None:
    """Return why some tensors can't be the layer's buffers, or None.

    Args:
        gru: the layer.
        given: tensors by the buffers' names, one at least.
    """
    for name in BUFFERS:
        if name not in given:
            return f"{name} is missing beside {next(iter(given))}; expected all of {', '.join(BUFFERS)}"
        tensor, shape, dtype = given[name], _shape(gru, name), _DTYPES[name]
        if not isinstance(tensor, Tensor):
            return f"{name} is a {type(tensor).__name__}; expected a tensor"
        if tensor.shape != shape or tensor.dtype != dtype:
            return f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected {dtype} of shape {shape}"
    if not all(map(_has_values, given.values())):
        return None
    try:
        _decode(gru, given)
    except ValueError as error:
        return str(error)
    return None


def _decode(gru: nn.RNNBase, tensors: Mapping[str, Tensor]) -> QuantState:
    return decode({name: tensors[name].tolist() for name in BUFFERS}, directions_of(gru), gru.bias)


def _shape(gru: nn.RNNBase, name: str) -> tuple[int, ...]:
    cells = len(directions_of(gru))
    shapes = ((3,), (cells, len(OPERATORS), 5), (cells, len(WEIGHTS), 3 * gru.hidden_size))
    return shapes[BUFFERS.index(name)]


def _has_values(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not tensor.is_meta


def _is_compared(tensor: Tensor) -> bool:
    return tensor.is_cpu and _has_values(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _store(gru: nn.RNNBase, name: str, values: Tensor) -> None:
    buffer = gru._buffers[name]
    is_frozen = buffer.is_inference() and not torch.is_inference_mode_enabled()
    if is_frozen or buffer.dtype != values.dtype or buffer.shape != values.shape:
        setattr(gru, name, values.to(buffer.device, copy=True))
    else:
        buffer.copy_(values)
