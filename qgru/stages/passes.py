"""Calls of a model that leave no trace: what stages do beside training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from qgru.calibration import CalibrationError
from qgru.stages.untouched import untouched

ForwardFn: TypeAlias = Callable[[Any, Any], Any]
"""``forward_fn(module, batch)``: calls the model on a training batch; what it returns is not used."""


def call_model(forward_fn: ForwardFn | None, module: nn.Module, batch: Any) -> Any:
    """Call `forward_fn(module, batch)`, by default `module(batch[0])` for a tuple or list, else `module(batch)`.

    Raises:
        RuntimeError: where the call fails; the message says what was called, and what to pass instead.
    """
    is_sequence = isinstance(batch, tuple | list)
    try:
        if forward_fn is not None:
            return forward_fn(module, batch)
        return module(batch[0] if is_sequence else batch)
    except (torch.OutOfMemoryError, CalibrationError):
        raise
    except Exception as error:
        call = _call(forward_fn, is_sequence)
        raise RuntimeError(
            f"calling {type(module).__name__} on a training batch ({type(batch).__name__}) as {call} failed with "
            f"{type(error).__name__}: {error}. {_advice(forward_fn)}"
        ) from error


def _call(forward_fn: ForwardFn | None, is_sequence: bool) -> str:
    if forward_fn is not None:
        return "forward_fn(module, batch)"
    return "module(batch[0])" if is_sequence else "module(batch)"


def _advice(forward_fn: ForwardFn | None) -> str:
    example = "lambda module, batch: module.training_step(batch, 0)"
    if forward_fn is None:
        return f"If the model takes its batch in another way, pass forward_fn(module, batch), as in {example}"
    return f"It is called in eval mode and without gradients; expected a call of the model, as in {example}"


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode; afterwards every submodule has its own mode back."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


@contextmanager
def isolated_random_states() -> Iterator[None]:
    """Leave the random states of torch (CPU and CUDA), numpy and Python as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)


@contextmanager
def extra_pass(module: nn.Module) -> Iterator[None]:
    """Call a module without a trace: in eval mode, uncompiled, without gradients, and from isolated random states.

    Besides, the module has its buffers and attributes back afterwards.
    """
    eager = torch.compiler.set_stance("force_eager")
    with untouched(module), eval_mode(module), isolated_random_states(), torch.no_grad(), eager:
        yield
