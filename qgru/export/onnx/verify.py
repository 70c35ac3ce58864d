"""Runs an exported file in ONNX Runtime beside the module that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from qgru.export.onnx.arguments import as_tuple, tensors
from qgru.export.onnx.metadata import read_calls
from qgru.export.onnx.report import LayerDifference, VerificationReport
from qgru.export.onnx.runtime import Run, require, to_numpy
from qgru.export.onnx.session import Call, ModuleRun, run_module
from qgru.export.onnx.subgraph import extract


class OnnxVerifier:
    """Compares a file with the module it came from, on as many inputs as wanted.

    Args:
        model: the module.
        path: a file that `export_onnx` wrote, or, where `model` is a `QuantGRU` itself, any export of it.
        session_options: ONNX Runtime's; None for its defaults.

    Raises:
        ImportError: where onnx or onnxruntime is missing.
        ValueError: where the file doesn't say which of its tensors belong to which layer.
    """

    def __init__(self, model: nn.Module, path: str | Path, session_options: Any = None) -> None:
        self._set_up(model, require("onnx").load(path), str(path), session_options)

    @classmethod
    def from_proto(cls, model: nn.Module, proto: Any) -> OnnxVerifier:
        """Verify an `onnx.ModelProto` that is not written yet."""
        verifier = cls.__new__(cls)
        verifier._set_up(model, proto, "the exported model", None)
        return verifier

    def _set_up(self, model: nn.Module, proto: Any, where: str, options: Any) -> None:
        self._model = model
        self._format, calls = read_calls(proto, model, where)
        self._whole = Run(proto, options)
        self._parts = [_Part(proto, options, **call) for call in calls]

    def __call__(self, *args: Any) -> VerificationReport:
        """Run the module and the file.

        Args:
            args: what `model.forward` takes.

        Returns:
            The differences; sum several with ``+``.

        Raises:
            ValueError: where the model calls its layers otherwise than when it was exported.
        """
        return self.run(*args)[1]

    def run(self, *args: Any) -> tuple[list[np.ndarray], VerificationReport]:
        """Run the module and the file; returns the file's outputs as well. Otherwise as a call."""
        return self.compare(args, run_module(self._model, args, self._format))

    def compare(self, args: tuple[Any, ...], expected: ModuleRun) -> tuple[list[np.ndarray], VerificationReport]:
        """Run the file on arguments that the module ran on already; otherwise as `run`."""
        exported, called = [part.layer for part in self._parts], [call.layer for call in expected.calls]
        if exported != called:
            raise ValueError(f"the model calls the layers {called}; expected {exported}, as when it was exported")
        outputs = self._whole(tensors(args))
        report = VerificationReport({}, _largest_difference(outputs, expected.outputs))
        for part, call in zip(self._parts, expected.calls, strict=True):
            report += VerificationReport({part.layer: part.compare(call, outputs)})
        return outputs, report


def verify_onnx(model: nn.Module, args: Any, path: str | Path) -> VerificationReport:
    """Compare a file with the module it came from on one input; `OnnxVerifier` does so on many.

    Args:
        model: the module.
        args: what `model.forward` takes: a tensor or a tuple.
        path: the file.

    Returns:
        The number of differing integers of each quantized layer, and the largest difference of the outputs.

    Raises:
        ImportError, ValueError: as `OnnxVerifier`.
    """
    return OnnxVerifier(model, path)(*as_tuple(args))


class _Part:
    """One call of a layer in a file.

    Args:
        proto: an `onnx.ModelProto`.
        options: ONNX Runtime's.
        layer, inputs, outputs, time_first: as `taps.removed` describes a call.
    """

    def __init__(
        self, proto: Any, options: Any, layer: str, inputs: list[str], outputs: list[str], time_first: bool = False
    ) -> None:
        self.layer, self._is_time_first = layer, time_first
        ends = [[entry.name for entry in entries] for entries in (proto.graph.input, proto.graph.output)]
        is_whole = [inputs, outputs] == ends  # which runs anyway
        self._run = None if is_whole else Run(extract(proto, inputs, outputs), options)

    def compare(self, call: Call, whole: list[np.ndarray]) -> LayerDifference:
        """Run it on what the module gave the layer; `whole` are the outputs of the whole graph."""
        inputs, outputs = (call.inputs, call.outputs) if self._is_time_first else call.ends
        pairs = list(zip(self._run(inputs) if self._run else whole, map(to_numpy, outputs), strict=True))
        return LayerDifference(sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs))


def _largest_difference(found: list[np.ndarray], expected: list[Tensor]) -> float:
    pairs = zip(found, map(to_numpy, expected), strict=True)
    return max((float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) for a, b in pairs), default=0.0)
