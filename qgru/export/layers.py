"""Each quantized layer as a file of its own, in any format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from qgru.convert import quantized_layers
from qgru.export import formats
from qgru.files import put_in_place, safe_name


def export_layers(model: nn.Module, directory: str | Path, format: str = "qdq", **options: Any) -> dict[str, Any]:
    """Write every `QuantGRU` of a model as a file of its own, for models that can't be exported as a whole.

    Files appear only once all of them are complete.

    Args:
        model: any module; it is left as it was.
        directory: made where missing; a layer's file or folder has the name that `file_names` gives it.
        format: one of `qgru.export.formats`.
        options: the format's own; ``dynamo`` for ``"qdq"`` and ``"float"``.

    Returns:
        A report for each layer by name, with the `path` of its file.

    Raises:
        ValueError: for an unknown format.
        ImportError, RuntimeError, ValueError: the format's own; see `export_onnx`.
        OSError: where the directory can't be written to.
    """
    written, directory = formats.find(format), Path(directory)
    layers = quantized_layers(model)
    files = {name: f"{stem}{written.suffix}" for name, stem in file_names(layers, model).items()}
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".") as temporary:
        reports = {
            name: written.export_layer(gru, Path(temporary) / files[name], **options) for name, gru in layers.items()
        }
        for file in files.values():
            put_in_place(Path(temporary) / file, directory / file)
    return {name: replace(report, path=directory / files[name]) for name, report in reports.items()}


def file_names(layers: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Return for each layer a file name without an ending, which stays in its folder and no other layer has.

    Names that are file names already stay as they are; of others that would fall together, also where a file system
    knows no case, later ones get ``-2``, ``-3``, ... at the end.

    Args:
        layers: qualified names of modules in `model`; the empty one, `model` itself, is called after its class.
        model: what they are in.
    """
    wanted = {layer: safe_name(layer or type(model).__name__) for layer in layers}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for layer in sorted(wanted, key=lambda layer: wanted[layer] != layer):  # those that keep their names first
        name, count = wanted[layer], 1
        while name.casefold() in taken:
            count += 1
            name = f"{wanted[layer]}-{count}"
        taken.add(name.casefold())
        names[layer] = name
    return {layer: names[layer] for layer in wanted}
