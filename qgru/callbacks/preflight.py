"""What would go wrong later, found in the first second of a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qgru import torch_private
from qgru.calibration import CalibrationError
from qgru.callbacks.agreement import failing_together, from_all_ranks
from qgru.callbacks.batches import training_batches
from qgru.callbacks.calling import call_in_float
from qgru.callbacks.packages import LightningModule, Trainer, rank_zero_info, rank_zero_warn
from qgru.convert import quantized_layers
from qgru.exclusion import staying_float
from qgru.export import formats
from qgru.ops import backends
from qgru.stages import calibrate
from qgru.stages.calibration import uncalibrated_layers
from qgru.stages.passes import ForwardFn, explained, isolated_random_states


def check_packages(trainer: Trainer, names: Sequence[str]) -> None:
    """Find out whether rank zero has the packages that the formats need.

    Raises:
        ImportError: on every rank, naming the format, what is missing and how to get it or do without.
    """
    missing = [(name, formats.find(name).why_unavailable()) for name in names] if trainer.is_global_zero else []
    problem = next((f"export format {name!r} {why}" for name, why in missing if why), None)
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise ImportError(f"{problem}; or export no model, with export_formats=()")


def check_call(
    trainer: Trainer, pl_module: LightningModule, forward_fn: ForwardFn | None, batch: Any, count: int
) -> bool:
    """Find out whether calibration could call the model, and would reach every layer; a collective call.

    The model is called on a copy of the batch that Lightning is about to train on, so that no data loader, sampler or
    random state moves, and the module is what it was afterwards. Only where a layer is not reached by it, further
    batches are drawn, as calibration would.

    Args:
        trainer: about to take its first step.
        pl_module: converted.
        forward_fn: the call; None for the default one.
        batch: the first one, on the module's device; None where the training step draws its batches itself.
        count: on how many batches this rank will calibrate.

    Returns:
        True where the call goes through the module's own `forward`.

    Raises:
        RuntimeError: on every rank, where the call fails on one of them, or where no rank reaches a layer.
    """
    layers, reached, tried = uncalibrated_layers(pl_module), set(), 0
    with failing_together(), isolated_random_states(), _recorded_calls(pl_module) as calls:
        for item in _batches(trainer, pl_module, batch, count):
            reached |= _reached(trainer, pl_module, forward_fn, item)
            tried += 1
            if reached == set(layers):
                break
    results = from_all_ranks((sorted(reached), tried))
    unreached = [name for name in layers if not any(name in seen for seen, _ in results)]
    if unreached:
        raise RuntimeError(unreached_message(unreached, forward_fn, sum(number for _, number in results)))
    return bool(calls)


def unreached_message(names: Sequence[str], forward_fn: ForwardFn | None, batches: int) -> str:
    """Say that layers see no data, and what to do about it."""
    if not batches:
        why = "no training batch (limit_train_batches, or an empty loader); expected at least one"
    else:
        call = "the default call" if forward_fn is None else "forward_fn"
        why = (
            f"{call} on {batches} training batches did not reach it; pass another forward_fn(module, batch), or leave "
            f"it in float with exclude={list(names)}"
        )
    return f"calibration of layer {names[0]!r} saw no data: {why}"


def _batches(trainer: Trainer, pl_module: LightningModule, first: Any, count: int) -> Iterator[Any]:
    if first is not None:
        yield copied(first)
    yield from training_batches(trainer, pl_module, count)


def copied(batch: Any) -> Any:
    """Return a batch with tensors of its own."""
    return torch_private.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


@contextmanager
def _recorded_calls(module: nn.Module) -> Iterator[list[None]]:
    calls: list[None] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def _reached(trainer: Trainer, pl_module: LightningModule, forward_fn: ForwardFn | None, batch: Any) -> set[str]:
    """Return the layers that observe a batch; they forget it again."""
    layers = uncalibrated_layers(pl_module)
    try:
        calibrate(pl_module, [batch], partial(call_in_float, trainer, explained(forward_fn)))
        return {name for name, layer in layers.items() if layer.has_observations()}
    except CalibrationError as error:
        rank_zero_warn(f"qgru: the first training batch could not be calibrated on: {error}")
        return set(layers)
    finally:
        for layer in layers.values():
            layer.reset_calibration()


def announce(trainer: Trainer, pl_module: LightningModule) -> None:
    """Say what is quantized, what stays in float, and which kernels run it."""
    names = [name or type(layer).__name__ for name, layer in quantized_layers(pl_module).items()]
    floats = [f"{name} ({why})" for name, why in staying_float(pl_module).items()]
    stay = f"; in float {'stays' if len(floats) == 1 else 'stay'} {', '.join(floats)}" if floats else ""
    rank_zero_info(f"qgru: to be quantized: {', '.join(names)}{stay}")
    rank_zero_info(f"qgru: {kernels(trainer.strategy.root_device)}")


def kernels(device: torch.device) -> str:
    """Say which kernels run quantized layers on a device, and why those before them can't."""
    reasons: list[str] = []
    for backend in backends.registered():
        if backend.serves(device):
            reason = backend.why_unavailable()
            if reason is None:
                why = f"slowly, for {'; '.join(reasons)}" if reasons else backend.describe()
                return f"quantized layers run on the {backend.name} kernels ({why})"
            reasons.append(f"the {backend.name} kernels can't: {reason}")
    return f"nothing runs quantized layers on {device.type}: {'; '.join(reasons) or 'no kernels are for it'}"
