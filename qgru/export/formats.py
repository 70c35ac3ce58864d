"""Which formats there are: the one table that the layer, the stages and the exports read.

A new format is a folder in this package, and a line at the end of this file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qgru.files import shown

if TYPE_CHECKING:
    from torch import Tensor, nn


class UntraceableInputError(TypeError):
    """What a model or one of its layers is given can't be the input of a graph."""


@dataclass(frozen=True)
class Format:
    """One way to write a model down.

    Attributes:
        name: what ``format=`` and ``export_formats`` call it.
        suffix: of the file that it makes; empty where it makes a folder.
        home: the module that writes it, imported when it is first used. It defines ``export_model`` and
            ``export_layer``, which are the methods of these names and take the format's name behind `path`, and, where
            `is_traced`, ``traced_forward(gru, input, hx)``.
        is_traced: True where a plain `torch.onnx.export` of layers whose ``export_mode`` is on writes it as well.
        requires: the packages that it imports when it is written.
        extra: of qgru, which installs them.
    """

    name: str
    suffix: str
    home: str
    is_traced: bool = False
    requires: tuple[str, ...] = ()
    extra: str = ""

    def why_unavailable(self) -> str | None:
        """Say what is not installed that it needs; None where it can be written."""
        missing = [name for name in self.requires if name not in sys.modules and find_spec(name) is None]
        return f"needs {' and '.join(missing)}: pip install 'qgru[{self.extra}]'" if missing else None

    def export_model(self, model: nn.Module, args: Any, path: str | Path, **options: Any) -> Any:
        """Write a whole model, whole or not at all.

        Args:
            model: any module; it is left as it was.
            args: example input of `model.forward`: a tensor or a tuple.
            path: where to write.
            options: the format's own.

        Returns:
            A report with a `path`.

        Raises:
            UntraceableInputError: where another example, of tensors alone, may do.
        """
        return self._home.export_model(model, args, path, self.name, **options)

    def export_layer(self, gru: nn.GRU, path: str | Path, **options: Any) -> Any:
        """Write one layer by itself; as `export_model`, without an example."""
        return self._home.export_layer(gru, path, self.name, **options)

    @property
    def _home(self) -> ModuleType:
        return import_module(self.home)


FORMATS: dict[str, Format] = {}


def register(format: Format) -> None:
    """Add a format to the table.

    Raises:
        ValueError: where its name is taken.
    """
    if format.name in FORMATS:
        raise ValueError(f"the export format {format.name!r} is registered already, in {FORMATS[format.name].home}")
    FORMATS[format.name] = format


def find(name: str, what: str = "format") -> Format:
    """Return a format by name.

    Args:
        name: the format's.
        what: the argument or attribute that `name` was given to.

    Raises:
        ValueError: where there is none; lists those that there are.
    """
    return _find(name, what, FORMATS)


def find_traced(name: str, what: str = "format") -> Format:
    """Return a format that `torch.onnx.export` writes; as `find`."""
    return _find(name, what, {key: format for key, format in FORMATS.items() if format.is_traced})


def traced_forward(gru: nn.GRU, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor] | None:
    """Run a layer whose ``export_mode`` is on, as its ``export_format`` wants it.

    Returns:
        output and h_n as `nn.GRU` does, or None where nothing exports the layer: it is to run as ever then.
    """
    return find_traced(gru.export_format, "export_format")._home.traced_forward(gru, input, hx)


def _find(name: str, what: str, known: dict[str, Format]) -> Format:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{what} is {shown(name)}; expected one of {', '.join(known)}")
    return known[name]


for _name in ("float", "qdq"):
    register(Format(_name, ".onnx", "qgru.export.onnx", True, requires=("onnx", "onnxruntime"), extra="onnx"))
register(Format("step", ".onnx", "qgru.export.onnx.step", requires=("onnx", "onnxruntime"), extra="onnx"))
register(Format("aimet", "", "qgru.export.aimet", requires=("onnx", "onnxruntime"), extra="onnx"))
register(Format("c", "", "qgru.export.c99"))
register(Format("hls", "", "qgru.export.hls"))
