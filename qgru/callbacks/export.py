"""When to export: as training ends; rank zero writes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgru.callbacks import lightning_private
from qgru.callbacks.batches import training_batches
from qgru.callbacks.calling import unlogged
from qgru.callbacks.compatibility import check_export_order
from qgru.callbacks.folder import check_folder
from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info, rank_zero_warn
from qgru.callbacks.preflight import check_packages
from qgru.convert import quantized_layers
from qgru.files import shown
from qgru.stages import export
from qgru.stages.exporting import check_formats, example_args
from qgru.stages.passes import ForwardFn, call_model


class Export(Callback):
    """Export the quantized layers and the model around them when training ends; rank zero writes.

    A directory that can't be written to is found at the fit's start. Whatever goes wrong later is a warning: an export
    never costs a finished fit.

    Args:
        directory: where the files go; see `export`.
        formats: of ``"float"`` and ``"qdq"``.
        forward_fn: how to call the model on a training batch, to see what its `forward` takes; see `Calibrate`.
        example_inputs: what the model's `forward` is to be exported with, where a training batch does not lead to
            tensors: a tensor, or a tuple of `forward`'s positional arguments, in which a list of sizes stands for noise
            of that shape: ``[[4, 16, 50]]``.
        dynamic_axes: for each input of the graph, by the name of `forward`'s parameter, the dimensions that vary:
            ``{"x": [0, 2]}``. None is 0 and 1 of each, as far as the model allows.

    Raises:
        ValueError: for an unknown format, `dynamic_axes` that are not dimensions, or `example_inputs` that are not
            arguments.
    """

    def __init__(
        self,
        directory: str | Path,
        formats: Sequence[str] = ("qdq",),
        forward_fn: ForwardFn | None = None,
        example_inputs: torch.Tensor | Sequence[Any] | None = None,
        dynamic_axes: dict[str, list[int]] | None = None,
    ) -> None:
        check_formats(formats)
        self.directory, self.formats, self.forward_fn = Path(directory), tuple(formats), forward_fn
        self._axes = _named_axes(dynamic_axes or {})
        self.example_inputs = _checked(example_inputs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether the export can work; see `check`.

        Raises:
            MisconfigurationException: where a callback listed later would replace the weights that are exported.
        """
        if stage == "fit":
            check_export_order(trainer, self)
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether the formats' packages are there, and whether the directory and `dynamic_axes` will do.

        Raises:
            ImportError: naming the package that is missing, on every rank.
            OSError: naming it, on every rank, where it can't, or where the disk has no room for the parameters.
            ValueError: naming the input that the model's `forward` has no parameter for.
        """
        self._check_axes(pl_module)
        check_packages(trainer, self.formats)
        check_folder(trainer, self.directory, pl_module)

    def _check_axes(self, pl_module: LightningModule) -> None:
        known = list(inspect.signature(pl_module.forward).parameters)
        for name in self._axes:
            if name not in known and re.sub(r"_\d+$", "", name) not in known:  # several tensors of one are numbered
                raise ValueError(
                    f"dynamic_axes names {name!r}; {type(pl_module).__name__}.forward takes {', '.join(known)}"
                )

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
            args = self._example_args(trainer, pl_module)
            with lightning_private.uncompiled(pl_module):
                reports = export(pl_module, self.directory, self.formats, args, self._axes or None)
        except Exception as error:
            rank_zero_warn(f"qgru: the export to {self.directory} failed ({type(error).__name__}: {error})")
        else:
            found = "".join(f"; {name}: {report}" for name, report in reports.items())
            rank_zero_info(f"qgru: exported {weights} to {self.directory}{found}")

    def warn_without_example(self, pl_module: LightningModule) -> None:
        """Say what is missing where `forward_fn` does not call the module's own `forward`."""
        if self.formats and self.example_inputs is None and pl_module.example_input_array is None:
            rank_zero_warn(
                f"qgru: forward_fn does not call {type(pl_module).__name__} itself, so there is no example of its "
                "forward's arguments: each quantized layer will be exported by itself; expected a forward_fn that "
                "calls module(...), example_inputs, or the module's example_input_array"
            )

    def _example_args(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Any, ...] | None:
        """Take what is given, else Lightning's `example_input_array`, else what a training batch leads to."""
        if self.example_inputs is not None:
            return _inputs(self.example_inputs, pl_module)
        given = pl_module.example_input_array
        if isinstance(given, torch.Tensor | tuple):
            return given if isinstance(given, tuple) else (given,)

        def call() -> None:
            for batch in training_batches(trainer, pl_module, 1):
                with trainer.precision_plugin.forward_context(), unlogged(pl_module):
                    call_model(self.forward_fn, pl_module, batch)

        try:
            return example_args(pl_module, call)
        except Exception as error:
            rank_zero_warn(f"qgru: no example of what the model takes: {error}")
            return None


def _checked(given: Any) -> Any:
    """Return `example_inputs`, where they are one of the kinds that there are."""
    is_sequence = isinstance(given, Sequence) and not isinstance(given, str)
    is_size = is_sequence and all(isinstance(entry, int) for entry in given)
    if given is not None and not isinstance(given, torch.Tensor) and (is_size or not is_sequence):
        raise ValueError(
            f"example_inputs is {shown(given)}; expected a tensor, or an entry for each argument of forward, "
            "such as [[4, 16, 50]] for one tensor of these sizes"
        )
    return given


def _inputs(given: torch.Tensor | Sequence[Any], module: nn.Module) -> tuple[Any, ...]:
    """Return the positional arguments that `example_inputs` stands for."""
    dtype = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)
    generator = torch.Generator().manual_seed(0)

    def tensor(entry: Any) -> Any:
        is_size = isinstance(entry, Sequence) and len(entry) > 0 and all(isinstance(size, int) for size in entry)
        return torch.randn(*entry, generator=generator).to(dtype) if is_size else entry

    return (given,) if isinstance(given, torch.Tensor) else tuple(map(tensor, given))


def _named_axes(axes: Mapping[str, Sequence[int]]) -> dict[str, dict[int, str]]:
    """Return `torch.onnx.export`'s ``dynamic_axes``."""
    for name, numbers in axes.items():
        is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str)
        if not is_list or not all(isinstance(axis, int) and axis >= 0 for axis in numbers):
            raise ValueError(f"dynamic_axes[{name!r}] is {numbers!r}; expected a list of dimensions, such as [0, 1]")
    return {name: {axis: f"{name}_dim_{axis}" for axis in numbers} for name, numbers in axes.items()}
