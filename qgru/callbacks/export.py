"""Stage 4: files for the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.compile import to_uncompiled
from torch import nn

from qgru.callbacks.batches import ForwardFn, call_model, training_batches
from qgru.callbacks.calibrate import eval_mode, extra_pass
from qgru.convert import quantized_layers
from qgru.gru import EXPORT_FORMATS

if TYPE_CHECKING:
    from qgru.export import ExportReport


def export(
    module: nn.Module, directory: str | Path, formats: Sequence[str] = ("qdq",), args: tuple[Any, ...] | None = None
) -> dict[str, ExportReport]:
    """Write what a device needs to compute a module's quantized layers to the last bit.

    ``quant_params.json`` and ``bitwidth_config.json`` (with several layers, one file per layer with the layer's
    name in front), and ``model_<format>.onnx`` for each format. A model that can't be exported as a whole, or
    without `args`, has each of its quantized layers exported by itself, as ``model_<format>/<layer>.onnx``, and a
    warning says why.

    Args:
        module: a converted module; it is left as it was.
        directory: made where there is none.
        formats: of ``"float"`` and ``"qdq"``.
        args: the positional arguments of the module's `forward`, for tracing.

    Returns:
        For each ONNX file, by its path in `directory`, how it compares with the module.
    """
    directory, reports = Path(directory), {}
    directory.mkdir(parents=True, exist_ok=True)
    with _at_rest(module):
        layers = quantized_layers(module)
        for name, layer in layers.items():
            prefix = f"{name}." if len(layers) > 1 else ""
            layer.export_quant_params(directory / f"{prefix}quant_params.json", include_weights=True)
            layer.bitwidth_config.to_json(directory / f"{prefix}bitwidth_config.json")
        for name in formats:
            reports.update(_export_onnx(module, args, directory, name))
    return reports


def _export_onnx(
    module: nn.Module, args: tuple[Any, ...] | None, directory: Path, name: str
) -> dict[str, ExportReport]:
    from qgru.export import export_layers, export_onnx

    path = directory / f"model_{name}.onnx"
    path.unlink(missing_ok=True)  # an earlier run's
    try:
        if args is None:
            raise ValueError("no example of its forward's positional arguments")
        return {path.name: export_onnx(module, args, path, format=name)}
    except Exception as error:
        rank_zero_warn(
            f"qgru: {type(module).__name__} can't be exported to ONNX ({name}) as a whole "
            f"({type(error).__name__}: {error}); exporting each quantized layer by itself"
        )
        reports = export_layers(module, path.with_suffix(""), name)
        return {f"{path.stem}/{layer}.onnx": report for layer, report in reports.items()}


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """Have a module on the CPU, in eval mode and uncompiled; afterwards it is what it was.

    In place: a model at the end of a fit may hold what can't be copied, such as tensors with a graph, or locks.
    """
    device = next(module.parameters()).device
    with ExitStack() as stack, eval_mode(module):
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch._dynamo.OptimizedModule):
                    stack.callback(setattr, parent, name, child)
                    setattr(parent, name, child._orig_mod)
        if getattr(module, "_compiler_ctx", None) is not None:
            stack.callback(vars(module).update, dict(vars(module)))
            to_uncompiled(module)
        stack.callback(module.to, device)
        module.cpu()
        yield


def example_args(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, ...] | None:
    """Return what `module.forward` receives in a call, as positional arguments on the CPU.

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
    return None if bound.kwargs else move_data_to_device(bound.args, torch.device("cpu"))


class Export(Callback):
    """Export the quantized layers and the model around them when training ends; rank zero writes.

    Whatever goes wrong is a warning: an export never costs a finished fit.

    Args:
        directory: where the files go; see `export`.
        formats: of ``"float"`` and ``"qdq"``.
        forward_fn: how to call the model on a training batch, to see what its `forward` takes; see `Calibrate`.

    Raises:
        ValueError: for an unknown format.
    """

    def __init__(
        self, directory: str | Path, formats: Sequence[str] = ("qdq",), forward_fn: ForwardFn | None = None
    ) -> None:
        unknown = [name for name in formats if name not in EXPORT_FORMATS]
        if unknown:
            raise ValueError(f"unknown export format {unknown[0]!r}; expected {' or '.join(map(repr, EXPORT_FORMATS))}")
        self.directory, self.formats, self.forward_fn = Path(directory), tuple(formats), forward_fn

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the weights the fit ends with, where they are quantized."""
        layers = quantized_layers(pl_module).values()
        if layers and all(layer.is_calibrated() for layer in layers):
            self.run(trainer, pl_module)

    def run(self, trainer: Trainer, pl_module: LightningModule, weights: str = "the last weights") -> None:
        """Export now; `weights` says which ones the module holds."""
        if not trainer.is_global_zero:
            return
        try:
            reports = export(pl_module, self.directory, self.formats, self._example_args(trainer, pl_module))
        except Exception as error:
            rank_zero_warn(f"qgru: the export to {self.directory} failed ({type(error).__name__}: {error})")
        else:
            found = "".join(f"; {name}: {report}" for name, report in reports.items())
            rank_zero_info(f"qgru: exported {weights} to {self.directory}{found}")

    def _example_args(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Any, ...] | None:
        """Take Lightning's own `example_input_array` where the model sets one, else what a training batch leads to."""
        given = pl_module.example_input_array
        if isinstance(given, torch.Tensor | tuple):
            return given if isinstance(given, tuple) else (given,)

        def call() -> None:
            for batch in training_batches(trainer, pl_module, 1):
                with trainer.precision_plugin.forward_context():
                    call_model(self.forward_fn, pl_module, batch)

        try:
            return example_args(pl_module, call)
        except Exception as error:
            rank_zero_warn(f"qgru: no example of what the model takes: {error}")
            return None
