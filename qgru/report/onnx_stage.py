"""An exported file in place of a module's forward."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class OnnxForward:
    """While entered, a module's forward runs in ONNX Runtime; counts where the file's quantized layers differ.

    Args:
        path: a file that `qgru.export.export_onnx` wrote.
        module: the one it came from.

    Attributes:
        report: a `qgru.export.VerificationReport` of all calls so far.
    """

    def __init__(self, path: str | Path, module: nn.Module) -> None:
        from qgru.export import OnnxVerifier, VerificationReport

        self._module = module
        self._verifier = OnnxVerifier(module, path)
        self.report = VerificationReport()

    def __enter__(self) -> OnnxForward:
        self._module.forward = self._forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._module.forward

    def _forward(self, *args: Any) -> Tensor | tuple[Tensor, ...]:
        """Return the file's outputs on the device of the arguments; a single one is not wrapped in a tuple."""
        from qgru.export.onnx.arguments import tensors

        del self._module.forward  # its own again, which the verifier calls
        try:
            found, report = self._verifier.run(*args)
        finally:
            self._module.forward = self._forward
        self.report += report
        outputs = tuple(torch.from_numpy(array).to(tensors(args)[0].device) for array in found)
        return outputs if len(outputs) > 1 else outputs[0]
