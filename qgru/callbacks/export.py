"""When to export: as training ends; rank zero writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qgru.callbacks import lightning_private
from qgru.callbacks.batches import training_batches
from qgru.callbacks.calling import unlogged
from qgru.callbacks.compatibility import check_export_order
from qgru.callbacks.folder import check_folder
from qgru.callbacks.packages import Callback, LightningModule, Trainer, rank_zero_info, rank_zero_warn
from qgru.callbacks.preflight import check_packages
from qgru.convert import quantized_layers
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

    Raises:
        ValueError: for an unknown format.
    """

    def __init__(
        self, directory: str | Path, formats: Sequence[str] = ("qdq",), forward_fn: ForwardFn | None = None
    ) -> None:
        check_formats(formats)
        self.directory, self.formats, self.forward_fn = Path(directory), tuple(formats), forward_fn

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether the formats' packages are there, and the directory can be written to.

        Raises:
            ImportError: naming the package that is missing, on every rank.
            OSError: naming it, on every rank, where it can't, or where the disk has no room for the parameters.
            MisconfigurationException: where a callback listed later would replace the weights that are exported.
        """
        if stage == "fit":
            check_export_order(trainer, self)
            check_packages(trainer, self.formats)
            check_folder(trainer, self.directory, pl_module)

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
                reports = export(pl_module, self.directory, self.formats, args)
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
                with trainer.precision_plugin.forward_context(), unlogged(pl_module):
                    call_model(self.forward_fn, pl_module, batch)

        try:
            return example_args(pl_module, call)
        except Exception as error:
            rank_zero_warn(f"qgru: no example of what the model takes: {error}")
            return None
