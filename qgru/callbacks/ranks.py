"""The quantization state under DDP: equal on all ranks when a fit starts, and left alone by every forward."""

from __future__ import annotations

from torch import nn

from qgru.callbacks.packages import LightningModule, Trainer
from qgru.convert import quantized_layers
from qgru.state import BUFFERS

_IGNORED = "_ddp_params_and_buffers_to_ignore"  # torch's DistributedDataParallel reads it; tried on torch 2.13.0


def exclude_from_broadcast(module: nn.Module) -> None:
    """Tell DDP, before it wraps a module, not to broadcast the quantization state before every forward.

    The state changes at the start of an epoch at most, alike on every rank; each broadcast would make every layer
    read it back from the device.
    """
    setattr(module, _IGNORED, sorted({*getattr(module, _IGNORED, ()), *_names(module)}))


def include_in_broadcast(module: nn.Module) -> None:
    """Undo `exclude_from_broadcast`."""
    others = set(getattr(module, _IGNORED, ())) - _names(module)
    if others:
        setattr(module, _IGNORED, sorted(others))
    else:
        vars(module).pop(_IGNORED, None)


def _names(module: nn.Module) -> set[str]:
    prefixes = [name and f"{name}." for name in quantized_layers(module)]
    return {prefix + buffer for prefix in prefixes for buffer in BUFFERS}


def share_rank_zeros_state(trainer: Trainer, pl_module: LightningModule) -> None:
    """Give every rank the quantization state of rank zero; a collective call."""
    if trainer.world_size == 1:
        return
    layers = quantized_layers(pl_module)
    for layer in layers.values():
        if layer.is_calibrated():
            layer.ensure_calibrated()  # makes up for data seen since
    own = {name: {key: getattr(layer, key).cpu() for key in BUFFERS} for name, layer in layers.items()}
    shared = trainer.strategy.broadcast(own)
    if not trainer.is_global_zero:
        for name, layer in layers.items():
            layer.load_state_dict(shared[name], strict=False)  # drops what this rank alone observed
