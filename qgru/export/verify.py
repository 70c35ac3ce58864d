"""Runs an exported file in ONNX Runtime beside the module that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qgru.convert import quantized_layers
from qgru.export.subgraph import extract
from qgru.export.tracing import SESSION, Call, Session

CALLS_KEY, FORMAT_KEY = "qgru.calls", "qgru.format"


@dataclass(frozen=True)
class LayerDifference:
    """How many of a layer's output integers differ between the module and the file."""

    differing_integers: int
    total_integers: int


@dataclass(frozen=True)
class VerificationReport:
    """What one or more runs of a file beside its module gave; reports of several runs add up.

    Attributes:
        layers: by name of each quantized layer, all its calls together; `h_n` counts like `output`. A layer is given
            the module's own input to it.
        largest_float_difference: between the outputs of the whole model, in the model's unit.
    """

    layers: dict[str, LayerDifference] = field(default_factory=dict)
    largest_float_difference: float = 0.0

    @property
    def differing_integers(self) -> int:
        """Of all quantized layers."""
        return sum(layer.differing_integers for layer in self.layers.values())

    @property
    def total_integers(self) -> int:
        """Of all quantized layers."""
        return sum(layer.total_integers for layer in self.layers.values())

    def __add__(self, other: VerificationReport) -> VerificationReport:
        """Sum the counts and keep the larger float difference."""
        layers = dict(self.layers)
        for name, more in other.layers.items():
            known = layers.get(name, LayerDifference(0, 0))
            counts = (known.differing_integers + more.differing_integers, known.total_integers + more.total_integers)
            layers[name] = LayerDifference(*counts)
        largest = np.maximum(self.largest_float_difference, other.largest_float_difference)
        return VerificationReport(layers, float(largest))

    def __str__(self) -> str:
        """Say it in one line."""
        integers = f"{self.differing_integers} of {self.total_integers} integers differ"
        return f"{integers}, largest float difference {self.largest_float_difference:.2g}"


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
        self._format, calls = _layer_calls(model, proto, where)
        self._runs = [(call["layer"], _Run(extract(proto, call["inputs"], call["outputs"]), options)) for call in calls]
        self._whole = _Run(proto, options)

    def __call__(self, *args: Any) -> VerificationReport:
        """Run the module and the file.

        Args:
            args: what `model.forward` takes.

        Returns:
            The differences; sum several with ``+``.

        Raises:
            ValueError: where the model calls its layers otherwise than when it was exported.
        """
        outputs, calls = run_module(self._model, args, self._format)
        expected, found = [name for name, _ in self._runs], [call.layer for call in calls]
        if expected != found:
            raise ValueError(f"the model calls the layers {found}; expected {expected}, as when it was exported")
        report = VerificationReport({}, _largest_difference(self._whole(tensors(args)), outputs))
        for (name, run), call in zip(self._runs, calls, strict=True):
            pairs = list(zip(run(call.inputs), call.outputs, strict=True))
            differing = sum(int((found != _numpy(tensor)).sum()) for found, tensor in pairs)
            total = sum(found.size for found, _ in pairs)
            report += VerificationReport({name: LayerDifference(differing, total)})
        return report


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


def run_module(model: nn.Module, args: tuple[Any, ...], format: str) -> tuple[list[Tensor], list[Call]]:
    """Run the module as an exporter would see it; returns its outputs and its quantized layers' calls."""
    with exporting(model, format) as session:
        return tensors(model(*args)), session.calls


@contextmanager
def exporting(model: nn.Module, format: str, opset: int | None = None) -> Iterator[Session]:
    """Put a model into evaluation and its layers into ``export_mode`` for a while.

    Whatever happens inside, every switch is as before afterwards.
    """
    layers = quantized_layers(model)
    training = [(module, module.training) for module in model.modules()]
    switches = [(gru, gru.export_mode, gru.export_format) for gru in layers.values()]
    session = Session({id(gru): name or type(gru).__name__ for name, gru in layers.items()}, opset)
    token = SESSION.set(session)
    try:
        for gru in layers.values():
            gru.export_mode, gru.export_format = True, format
            gru._update_flat_weights()  # the tensors behind the exporter's symbolic ones
        model.eval()
        with torch.no_grad():
            yield session
    finally:
        SESSION.reset(token)
        for gru, mode, previous in switches:
            gru.export_mode, gru.export_format = mode, previous
        for module, was_training in training:
            module.training = was_training


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def as_tuple(args: Any) -> tuple[Any, ...]:
    """Return positional arguments, of which a single one may come without its tuple."""
    return args if isinstance(args, tuple) else (args,)


def require(name: str) -> Any:
    """Import a package of the extra ``onnx``.

    Raises:
        ImportError: naming the package and the way to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; exporting needs it: pip install qgru[onnx]") from error


class _Run:
    """A model in ONNX Runtime."""

    def __init__(self, proto: Any, options: Any) -> None:
        runtime = require("onnxruntime")
        self._session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, inputs: Iterable[Tensor]) -> list[np.ndarray]:
        return self._session.run(None, dict(zip(self._names, map(_numpy, inputs), strict=True)))


def _layer_calls(model: nn.Module, proto: Any, where: str) -> tuple[str, list[dict[str, Any]]]:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if CALLS_KEY in metadata:
        return metadata[FORMAT_KEY], json.loads(metadata[CALLS_KEY])
    layers = quantized_layers(model)
    if model not in layers.values():
        raise ValueError(f"{where}: has no metadata {CALLS_KEY!r}; expected a file that export_onnx wrote")
    names = {kind: [entry.name for entry in getattr(proto.graph, kind[:-1])] for kind in ("inputs", "outputs")}
    return model.export_format, [{"layer": type(model).__name__, **names}] if model.export_format == "qdq" else []


def _largest_difference(found: list[np.ndarray], expected: list[Tensor]) -> float:
    pairs = zip(found, map(_numpy, expected), strict=True)
    return max((float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) for a, b in pairs), default=0.0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
