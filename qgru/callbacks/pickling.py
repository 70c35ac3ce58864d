"""The lifecycle in other people's files: hyperparameters and whole models are pickled with their callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qgru.checkpoints import rebuilt_lifecycle
from qgru.presets import AUTO


class PickledAsArguments:
    """Is pickled and copied as the arguments that it was made with, never with the model and trainer that it met.

    These are primitives, so that ``torch.load(weights_only=True)`` reads it where `qgru` is imported; but a function
    among them, or a subclass, is pickled by its name, which `torch.serialization.add_safe_globals` has to be told of.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments."""
        made = super().__new__(cls)
        made._given = args, kwargs
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        names, (args, kwargs) = inspect.signature(self.__init__).parameters, self._given
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if "config" in names and arguments.get("config") != AUTO:
            arguments["config"] = self.config.to_mapping()  # the file that it was read from may be gone
        subclass = () if PickledAsArguments in type(self).__bases__ else (type(self),)
        return rebuilt_lifecycle, (_plain(arguments), *subclass)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
