"""Checkpoints that hold a quantization state, for classes that themselves build `nn.GRU`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import nn

from qgru.convert import convert, quantized_layers
from qgru.state import BUFFERS

Module = TypeVar("Module", bound=nn.Module)

_OF_THE_CLI = ("_instantiator", "_class_path")  # LightningCLI puts them beside the constructor's arguments


def loads_quantized(cls: type[Module]) -> type[Module]:
    """Have a class load its own quantized checkpoints, whoever loads them; a decorator, or a call on anybody's class.

    Before a state dict is loaded into an instance, or into a module that holds one, the `nn.GRU` layers inside it that
    the state dict has a quantization state for are converted; the others stay. So `load_state_dict`, Lightning's
    ``cls.load_from_checkpoint`` and ``trainer.test(model, ckpt_path=...)`` give the integers that were trained, without
    a callback. A float state dict is loaded as ever.

    Args:
        cls: the class, which is changed; its subclasses load so as well.

    Returns:
        `cls`.
    """
    inherited = cls._load_from_state_dict

    @wraps(inherited)
    def load(self: Module, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        _convert_as_in(self, state_dict, prefix)
        inherited(self, state_dict, prefix, *args, **kwargs)

    cls._load_from_state_dict = load
    return cls


def _convert_as_in(module: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> None:
    """Convert the `nn.GRU` layers inside a module that a state dict has a quantization state for."""
    for name, gru in module.named_modules(prefix=prefix.rstrip("."), remove_duplicate=False):
        if isinstance(gru, nn.GRU) and f"{name}.{BUFFERS[0]}".lstrip(".") in state_dict:
            convert(gru)


def _warn_where_a_state_is_dropped() -> None:
    """Have `nn.GRU` say so, which takes no quantization state: with ``strict=False`` nobody else would notice."""
    inherited = nn.GRU._load_from_state_dict

    @wraps(inherited)
    def load(self: nn.GRU, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if prefix + BUFFERS[0] in state_dict and BUFFERS[0] not in self._buffers:
            warnings.warn(
                f"the quantization state of {prefix.rstrip('.') or 'the layer'} is dropped, for that is an nn.GRU and "
                "computes in float; call qgru.loads_quantized(cls) once with the model's class, before loading",
                stacklevel=2,
            )
        inherited(self, state_dict, prefix, *args, **kwargs)

    nn.GRU._load_from_state_dict = load


_warn_where_a_state_is_dropped()


def rebuilt_lifecycle(arguments: Mapping[str, Any], cls: type | None = None) -> Any:
    """Make a `QuantizationLifecycle` again, or what a subclass of it was, from what it is pickled as."""
    return (cls or import_module("qgru.callbacks").QuantizationLifecycle)(**arguments)


torch.serialization.add_safe_globals([rebuilt_lifecycle])


def load_from_checkpoint(cls: Callable[..., Module], path: Any, weights_only: bool = True, **kwargs: Any) -> Module:
    """Load a Lightning checkpoint of a converted module: construct, convert what was converted, load.

    Args:
        cls: the LightningModule's class, which itself builds `nn.GRU`.
        path: the checkpoint.
        weights_only: `torch.load`'s; False for a checkpoint that holds other objects and that you trust.
        **kwargs: arguments of the constructor; they win over the hyperparameters that the checkpoint holds.

    Raises:
        RuntimeError: where the parameters do not fit.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    module = cls(**{**_hyper_parameters(cls, checkpoint), **kwargs})
    configure = getattr(module, "configure_model", None)
    if configure:
        configure()
    _convert_as_in(module, checkpoint["state_dict"])
    if not quantized_layers(module):
        convert(module)  # a float checkpoint's
    module.load_state_dict(checkpoint["state_dict"])
    return module


def _hyper_parameters(cls: Any, checkpoint: dict[str, Any]) -> dict[str, Any]:
    saved = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key not in _OF_THE_CLI}
    accepted = inspect.signature(cls.__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    return {key: value for key, value in saved.items() if takes_all or key in accepted}
