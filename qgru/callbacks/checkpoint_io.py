"""Checkpoints that are written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from qgru.callbacks import lightning_private
from qgru.callbacks.packages import Trainer, classes, rank_zero_warn
from qgru.files import written_whole


class WholeFileCheckpointIO(*classes("plugins.io.TorchCheckpointIO")):
    """For ``Trainer(plugins=[WholeFileCheckpointIO()])``: a full disk leaves the checkpoint of before.

    Lightning's own writes to the system's temporary folder and moves that file. Between two file systems the move is a
    copy, which leaves half a checkpoint under the final name where the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save as Lightning does, local files whole or not at all.

        Raises:
            OSError: where the file can't be written; what stood there stays.
        """
        if storage_options is None and "://" not in str(path):
            _write(checkpoint, Path(path))
        else:
            super().save_checkpoint(checkpoint, path, storage_options)


def write_weights(trainer: Trainer, path: Path) -> None:
    """Write a weights-only checkpoint of the trainer's module; a collective call.

    A failed write is a warning: it must not cost the training.
    """
    checkpoint = lightning_private.weights_checkpoint(trainer)
    if trainer.is_global_zero:
        try:
            _write(checkpoint, path)
        except OSError as error:
            rank_zero_warn(f"qgru: {path} was not written, and the fit goes on without it: {error}")
    trainer.strategy.barrier("qgru checkpoint")


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
