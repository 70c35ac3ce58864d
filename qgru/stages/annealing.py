"""Let learning rates fall while a quantized model trains, whatever the optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cos, isfinite, pi
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FLOOR = 0.01
"""What is left of a learning rate at the end."""


def cosine_factor(progress: float) -> float:
    """Return the factor of a learning rate: half a cosine from 1 to `FLOOR` (Loshchilov & Hutter 2017, equation 5).

    Step t of T has progress t / T, as in `torch.optim.lr_scheduler.CosineAnnealingLR(T_max=T)`.

    Args:
        progress: 0 at the start, 1 at the end and after it.
    """
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + cos(pi * min(progress, 1.0)))


def check_scale(name: str, scale: float) -> float:
    """Return a factor of learning rates.

    Raises:
        ValueError: naming it, where it is not a finite number above 0.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not isfinite(scale) or scale <= 0:
        raise ValueError(f"{name} is {scale!r}; expected a finite number above 0")
    return scale


class ScaledSteps:
    """Has an optimizer take its steps at its learning rates times a factor.

    The rates are multiplied as a step begins and put back, to the bit, as it ends and while it calls its closure: so
    schedulers, monitors, checkpoints and the training step read and write what they would without the factor.

    A step that fails leaves them multiplied until the next step, or `remove`.

    Args:
        optimizer: with any parameter groups; rates may be numbers or tensors. A group without ``"lr"`` is left alone.
        factor: `factor(steps)`, of the number of steps taken since.

    Raises:
        TypeError: naming the optimizer, where it has no hooks around its steps.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer, self._factor, self._steps = optimizer, factor, 0
        self._own: list[tuple[dict[str, Any], Any, Tensor | None]] = []
        try:
            before = optimizer.register_step_pre_hook(self._before)
            self._handles = before, optimizer.register_step_post_hook(self._after)
        except AttributeError as error:
            raise TypeError(
                f"{type(optimizer).__name__} has no hooks around its steps; expected a torch.optim.Optimizer that "
                "calls super().__init__"
            ) from error

    def learning_rates(self) -> list[float | Tensor]:
        """Return the rates of the coming step, in the order of the groups that have one."""
        factor = self._factor(self._steps)
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        return [rate * factor for rate in rates if rate is not None]

    def remove(self) -> None:
        """Let the optimizer step as it did."""
        self._restore()
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> ScaledSteps:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple | None:
        self._scale()
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": partial(self._unscaled, kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], partial(self._unscaled, args[1]), *args[2:]), kwargs
        return None

    def _after(self, *_: Any) -> None:
        self._steps += bool(self._own)  # a step made of its base class's step comes by twice
        self._restore()

    def _unscaled(self, closure: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._restore()
        result = closure(*args, **kwargs)
        self._scale()
        return result

    @torch.no_grad()
    def _scale(self) -> None:
        self._restore()
        factor, seen = self._factor(self._steps), set()
        for group in self._optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, Tensor):  # in place, for it may be part of a CUDA graph; groups may share it
                if id(rate) not in seen:
                    self._own.append((group, rate, rate.clone()))
                    rate.mul_(factor)
                seen.add(id(rate))
            elif rate is not None:
                self._own.append((group, rate, None))
                group["lr"] = rate * factor

    @torch.no_grad()
    def _restore(self) -> None:
        for group, rate, value in self._own:
            if value is None:
                group["lr"] = rate
            else:
                rate.copy_(value)
        self._own.clear()


def anneal(optimizer: Optimizer, total_steps: int, start: int = 0, scale: float = 1.0) -> ScaledSteps:
    """Let an optimizer's learning rates fall along a cosine, to `FLOOR` of what its own schedule says.

    Args:
        optimizer: any; its schedulers, if there are some, go on as they would.
        total_steps: the number of its steps.
        start: how many of them are taken already, in a run that is resumed.
        scale: of all learning rates.

    Returns:
        What ends it: a context manager, or call ``remove()``.

    Raises:
        ValueError: naming the argument that is out of its range.
        TypeError: see `ScaledSteps`.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; expected 1 or more")
    if start < 0:
        raise ValueError(f"start is {start}; expected 0 or more")
    check_scale("scale", scale)
    return ScaledSteps(optimizer, lambda steps: scale * cosine_factor((start + steps) / total_steps))
