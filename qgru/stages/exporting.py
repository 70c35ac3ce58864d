"""Stage 4: files for the device."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qgru import torch_private
from qgru.convert import quantized_layers
from qgru.export.formats import UntraceableInputError, find
from qgru.export.layers import export_layers, file_names
from qgru.files import written_whole
from qgru.stages.passes import eval_mode, extra_pass

if TYPE_CHECKING:
    from qgru.export import ExportReport


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that there are not.

    Raises:
        ValueError: naming the format.
    """
    for name in formats:
        find(name, "export format")


def export(
    module: nn.Module,
    directory: str | Path,
    formats: Sequence[str] = ("qdq",),
    args: tuple[Any, ...] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
) -> dict[str, ExportReport]:
    """Write what a device needs to compute a module's quantized layers to the last bit.

    ``quant_params.json`` and ``bitwidth_config.json`` (with several layers, one file per layer with the layer's
    name in front), and ``model_<format>.onnx`` for each format. A model that can't be exported as a whole, or
    without `args`, has each of its quantized layers exported by itself, as ``model_<format>/<layer>.onnx``, and a
    warning says why. Every file is written whole or not at all.

    Args:
        module: a converted module; it is left as it was.
        directory: made where there is none.
        formats: of ``"float"`` and ``"qdq"``.
        args: the positional arguments of the module's `forward`, for tracing.
        dynamic_axes: of the graph's inputs, as `torch.onnx.export` takes it; None for dimensions 0 and 1 of each, as
            far as the model allows.

    Returns:
        For each ONNX file, by its path in `directory`, how it compares with the module.

    Raises:
        ValueError: for an unknown format.
        RuntimeError: where a layer is not calibrated.
        OSError: where the directory can't be written to.
        ImportError: where ONNX is missing and a format needs it.
    """
    check_formats(formats)
    directory, reports = Path(directory), {}
    module = getattr(module, "_orig_mod", module)  # as a whole from `torch.compile`
    directory.mkdir(parents=True, exist_ok=True)
    with _eager_on_cpu(module):
        layers = quantized_layers(module)
        for name, file_name in file_names(layers, module).items():
            prefix = f"{file_name}." if len(layers) > 1 else ""
            with written_whole(directory / f"{prefix}quant_params.json") as path:
                layers[name].export_quant_params(path, include_weights=True)
            with written_whole(directory / f"{prefix}bitwidth_config.json") as path:
                layers[name].bitwidth_config.to_json(path)
        for name in formats:
            reports.update(_export_format(module, args, directory, name, dynamic_axes))
    return reports


def _export_format(
    module: nn.Module,
    args: tuple[Any, ...] | None,
    directory: Path,
    name: str,
    dynamic_axes: Mapping[str, Any] | None,
) -> dict[str, ExportReport]:
    format = find(name)
    path, folder = directory / f"model_{name}{format.suffix}", directory / f"model_{name}"
    try:
        if args is None:
            raise UntraceableInputError("no example of its forward's positional arguments")
        options = {"dynamic_axes": dynamic_axes} if format.is_traced and dynamic_axes else {}
        return {path.name: format.export_model(module, args, path, **options)}
    except Exception as error:
        is_input = isinstance(error, UntraceableInputError)
        remedy = "; for a whole model, give example_inputs: tensors that its forward takes and does not pack"
        warnings.warn(
            f"qgru: {type(module).__name__} can't be exported as a whole in the format {name!r} "
            f"({type(error).__name__}: {error}); exporting each quantized layer by itself{remedy * is_input}",
            stacklevel=3,
        )
        reports = export_layers(module, folder, name).values()
        if format.suffix:
            path.unlink(missing_ok=True)  # an earlier run's, which the layers' files replace
        return {report.path.relative_to(directory).as_posix(): report for report in reports}


@contextmanager
def _eager_on_cpu(module: nn.Module) -> Iterator[None]:
    """Have a module on the CPU, in eval mode and uncompiled; afterwards it is what it was.

    In place: a model at the end of a fit may hold what can't be copied, such as tensors with a graph, or locks.
    """
    device = next(module.parameters()).device
    with ExitStack() as stack, eval_mode(module):
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch_private.OptimizedModule):
                    stack.callback(setattr, parent, name, child)
                    setattr(parent, name, child._orig_mod)
        stack.callback(module.to, device)
        module.cpu()
        yield


def example_args(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, ...] | None:
    """Return what `module.forward` receives in a call, as positional arguments on the CPU.

    Args:
        module: whose forward is looked at.
        call: calls it.

    Returns:
        None where the call goes past `module.__call__`, or where arguments can only be given by name.
    """
    seen: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with extra_pass(module):
            call()
    finally:
        handle.remove()
    if not seen:
        return None
    bound = inspect.signature(module.forward).bind(*seen[0][0], **seen[0][1])
    return None if bound.kwargs else _on_cpu(bound.args)


def _on_cpu(value: Any) -> Any:
    """Return what has a `to` moved to the CPU, also inside tuples, lists and dicts."""
    if callable(getattr(value, "to", None)):
        moved = value.to(torch.device("cpu"))
        return value if moved is None else moved  # some types move in place
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_on_cpu, value))
    if isinstance(value, tuple | list):
        return type(value)(map(_on_cpu, value))
    return value
