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
        """Return the graph's outputs for its inputs, in order.

        Raises:
            ValueError: where there are more or fewer of them than the graph has.
        """
        arrays = [to_numpy(tensor) for tensor in inputs]
        if len(arrays) != len(self._names):
            raise ValueError(
                f"the graph has the inputs {self._names} for {len(arrays)} tensors: torch's exporter leaves out what a "
                "model does not use; expected arguments of which every tensor is used"
            )
        return self._session.run(None, dict(zip(self._names, arrays, strict=True)))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor's elements on the CPU."""
    return tensor.detach().cpu().numpy()
