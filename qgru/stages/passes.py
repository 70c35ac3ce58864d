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

EXAMPLE = "lambda module, batch: module.training_step(batch, 0)"


def call_model(forward_fn: ForwardFn | None, module: nn.Module, batch: Any) -> Any:
    """Call `forward_fn(module, batch)`, by default `module(batch[0])` for a tuple or list, else `module(batch)`.

    Raises:
        RuntimeError: where the default does not fit the model; the message asks for a `forward_fn`.
    """
    if forward_fn is not None:
        return forward_fn(module, batch)
    is_sequence = isinstance(batch, tuple | list)
    try:
        return module(batch[0] if is_sequence else batch)
    except (torch.OutOfMemoryError, CalibrationError):
        raise
    except Exception as error:
        call = "module(batch[0])" if is_sequence else "module(batch)"
        advice = f"If the model takes its batch in another way, pass forward_fn(module, batch), as in {EXAMPLE}"
        raise _failed(module, batch, call, error, advice) from error


def explained(forward_fn: ForwardFn | None) -> ForwardFn | None:
    """Have a `forward_fn` that fails say what it was given; for the first call in a run."""
    if forward_fn is None:
        return None

    def call(module: nn.Module, batch: Any) -> Any:
        try:
            return forward_fn(module, batch)
        except (torch.OutOfMemoryError, CalibrationError):
            raise
        except Exception as error:
            advice = f"It runs in eval mode and without gradients; expected a call of the model, as in {EXAMPLE}"
            raise _failed(module, batch, "forward_fn(module, batch)", error, advice) from error

    return call


def _failed(module: nn.Module, batch: Any, call: str, error: Exception, advice: str) -> RuntimeError:
    """Return the error of a call of a module that failed."""
    return RuntimeError(
        f"calling {type(module).__name__} on a training batch ({type(batch).__name__}) as {call} failed with "
        f"{type(error).__name__}: {error}. {advice}"
    )


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
