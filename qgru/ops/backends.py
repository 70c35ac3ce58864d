"""What a backend must answer, which ones there are, and which of them serves a call.

A backend is a class that derives from `Backend` and one instance of it that `register` was given; nothing else knows
its name. `tests/ops/conformance.py` holds every registered one to the reference, integer for integer.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qgru.ops.call import CellGrids, LayerCall, LayerShape, Parameters
from qgru.ops.plan import Plan


class Stepper(ABC):
    """A stack of one-directional layers, its weights prepared, for one time step a call and no gradient.

    Attributes:
        sees_all: every call looks at all weights; otherwise it is for the caller to look at tensors' versions.
    """

    sees_all: bool

    @abstractmethod
    def __call__(self, x: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run one time step as `Backend.forward` would.

        Args:
            x: (batch, input), contiguous float32.
            h0: (layers, batch, hidden), likewise; None for zeros.

        Returns:
            The last layer's states (batch, hidden) and the last states (layers, batch, hidden), float32; None where
            the weights or the grids no longer hold what they did.
        """


class Backend(ABC):
    """Runs one layer of a quantized GRU, in one or both directions, exactly as docs/numerics.md defines it.

    Attributes:
        name: what a traced graph, a warning and `forced` call it.
        is_differentiable: `forward` is made of torch's own operators, so that autograd can go through it.
    """

    name: str
    is_differentiable: bool = False

    def why_unavailable(self) -> str | None:
        """Say why it can't serve anything on this machine, and what would change that; None where it can."""
        return None

    def describe(self) -> str:
        """Say in a few words what is in use."""
        return self.why_unavailable() or "in use"

    @abstractmethod
    def serves(self, device: torch.device) -> bool:
        """Tell whether it is meant for a device's tensors at all."""

    @abstractmethod
    def why_not(self, shape: LayerShape, plans: Sequence[Plan]) -> str | None:
        """Say why it can't run a layer to the last bit; None where it can."""

    @abstractmethod
    def forward(self, call: LayerCall) -> tuple[Tensor, Tensor, Tensor]:
        """Run a layer.

        Returns:
            states (time, batch, directions * hidden) and the last states (directions, batch, hidden), exact, both of
            `state_dtype`; and a workspace of bytes, all that `backward` needs of this call (empty without gradient).
            A NaN in a row's input or state makes that row NaN from there on, in each direction's own order; a NaN
            parameter makes everything NaN.
        """

    def stepper(
        self, parameters: Sequence[Parameters], cells: Sequence[CellGrids], state: Sequence[Tensor]
    ) -> Stepper | None:
        """Prepare a stack's weights for time steps one at a time; None where `forward` does as well.

        Args:
            parameters: of every layer, whose addresses the caller sees to.
            cells: likewise, the grids.
            state: the tensors that the grids were read from; likewise.
        """
        return None

    @abstractmethod
    def backward(
        self, call: LayerCall, workspace: Tensor, d_states: Tensor | None, d_last: Tensor | None, needs_x: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the gradients of x (empty unless needed), h0 (empty where None) and the parameters.

        Args:
            call: the forward's, with the parameters as they were.
            workspace: the forward's.
            d_states: gradient of the states, or None for zeros.
            d_last: gradient of the last states, or None for zeros.
            needs_x: the input's gradient is wanted.
        """

    @abstractmethod
    def state_dtype(self, plans: Sequence[Plan]) -> torch.dtype:
        """Return the type of the states: one that holds them exactly."""

    @abstractmethod
    def workspace_bytes(self, shape: LayerShape, plans: Sequence[Plan], gradient: int) -> Any:
        """Return the workspace's length, a number or a symbol; None where only a forward can tell."""


_registered: list[Backend] = []
_only: Sequence[Backend] = ()
_served: dict[tuple, Backend] = {}
_KEPT = 1024
_said: set[str] = set()
_choice = 0


def register(backend: Backend) -> None:
    """Make a backend known; it comes before those that were registered earlier."""
    _registered.insert(0, backend)
    _choose_anew()


def registered() -> tuple[Backend, ...]:
    """Return all backends, the most wanted first."""
    return tuple(_registered)


def named(name: str) -> Backend:
    """Return the backend of that name, a forced or a registered one.

    Raises:
        ValueError: where there is none.
    """
    for backend in (*_only, *_registered):
        if backend.name == name:
            return backend
    raise ValueError(f"backend is {name!r}; expected one of {', '.join(b.name for b in _registered)}")


@contextmanager
def forced(*wanted: str | Backend) -> Iterator[None]:
    """Have only these backends serve, in the whole process: for tests and benchmarks.

    A call that none of them takes is a RuntimeError that says why.

    Args:
        *wanted: names of registered ones, or backends that need not be registered.
    """
    global _only
    before, _only = _only, [named(backend) if isinstance(backend, str) else backend for backend in wanted]
    _choose_anew()
    try:
        yield
    finally:
        _only = before
        _choose_anew()


def choice() -> int:
    """Return a number that stays as long as what `serving` answers does."""
    return _choice


def _choose_anew() -> None:
    global _choice
    _served.clear()
    _choice += 1


def serving(shape: LayerShape, plans: Sequence[Plan], directions: int) -> Backend:
    """Return the backend that runs a stack of layers: one for all of them.

    Where a backend for the device is passed over, a warning says why, once for each reason.

    Args:
        shape: of the first layer.
        plans: of every layer and direction, in `nn.GRU`'s order.
        directions: 1 or 2.

    Raises:
        RuntimeError: where `forced` names only backends that don't take it.
    """
    key = (shape, directions, *plans)
    known = _served.get(key)
    if known is None:
        known = _choose(shape, plans, directions)
        if len(_served) >= _KEPT:
            _served.clear()
        _served[key] = known
    return known


def _choose(shape: LayerShape, plans: Sequence[Plan], directions: int) -> Backend:
    reasons: list[str] = []
    for backend in _only or _registered:
        if not backend.serves(shape.device):
            continue
        reason = backend.why_unavailable() or _why_not_a_layer(backend, shape, plans, directions)
        if reason is None:
            _say_once(f"{backend.name} runs quantized GRUs on {shape.device.type}, slowly", reasons)
            return backend
        reasons.append(f"the {backend.name} kernels can't: {reason}")
    raise RuntimeError(f"no backend runs this layer on {shape.device}: {'; '.join(reasons) or 'none is for it'}")


def _why_not_a_layer(backend: Backend, shape: LayerShape, plans: Sequence[Plan], directions: int) -> str | None:
    dtype, size = shape.dtype, shape.input
    for first in range(0, len(plans), directions):
        of_layer = plans[first : first + directions]
        reason = backend.why_not(shape._replace(dtype=dtype, input=size), of_layer)
        if reason is not None:
            return reason if len(plans) == directions else f"layer {first // directions}: {reason}"
        dtype, size = backend.state_dtype(of_layer), directions * shape.hidden
    return None


def _say_once(what: str, reasons: Sequence[str]) -> None:
    for reason in reasons:
        if reason not in _said:
            _said.add(reason)
            warnings.warn(f"the {what}; {reason}", stacklevel=9)
