"""ONNX Runtime, and the other packages of the extra ``onnx``, where they are installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor


def require(name: str) -> Any:
    """Import a package of the extra ``onnx``.

    Raises:
        ImportError: naming the package and the way to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; exporting needs it: pip install qgru[onnx]") from error


class Run:
    """A model in ONNX Runtime, on the CPU.

    Args:
        proto: an `onnx.ModelProto`.
        options: ONNX Runtime's `SessionOptions`; None for its defaults.

    Raises:
        ImportError: where onnxruntime is missing.
    """

    def __init__(self, proto: Any, options: Any = None) -> None:
        runtime = require("onnxruntime")
        self._session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, inputs: Iterable[Tensor]) -> list[np.ndarray]:
        """Return the graph's outputs for its inputs, in order."""
        return self._session.run(None, dict(zip(self._names, map(to_numpy, inputs), strict=True)))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor's elements on the CPU."""
    return tensor.detach().cpu().numpy()
