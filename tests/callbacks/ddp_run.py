"""One run under DDP on two processes, or on one that sees the same batches; a script, since DDP starts it again.

Usage: ddp_run.py <processes> <folder> [<state dict that rank zero starts from>]; PACKAGE names Lightning's package.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

import qgru
from qgru.callbacks import QuantizationLifecycle
from qgru.callbacks.packages import Callback
from tests.callbacks.models import MODELS, dataset, trainer


class Record(Callback):
    """Writes every rank's integers before its first step, and the names of the buffers that DDP broadcasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        path, gru = self.folder / f"rank{trainer.global_rank}.pt", pl_module.gru
        if not path.exists():
            quantized = gru.is_calibrated() and gru.use_quantization
            broadcast = list(getattr(trainer.strategy.model, "named_module_buffers", {}))
            torch.save({"buffers": dict(gru.named_buffers()), "quantized": quantized, "broadcast": broadcast}, path)


def main(processes: int, folder: Path, start: Path | None = None) -> None:
    """Train; `start` is a state dict of the model that rank zero alone has loaded."""
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    # A batch of 6 on each of two ranks is every second row of a batch of 12: the same rows, dealt out.
    data = torch.utils.data.DataLoader(dataset(48), batch_size=12 // processes)
    config = os.environ.get("CONFIG", "int8")
    search = {"budget": 0.8, "target": {"widths": {"default": [4, 8]}}} if config == "auto" else {}
    lifecycle = QuantizationLifecycle(
        config, **search, calibrate_at_epoch=0, calibration_batches=3 * processes, export_dir=str(folder / "files")
    )
    package = import_module(os.environ.get("PACKAGE", "lightning.pytorch"))
    checkpoint = package.callbacks.ModelCheckpoint(folder, save_last=True)
    settings = {"devices": processes, "max_epochs": 2, "strategy": "ddp" if processes > 1 else "auto"}
    model = MODELS[package]()
    model.register_buffer("own", torch.zeros(1))
    if start is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        qgru.convert(model).load_state_dict(torch.load(start))
    trainer(folder, lifecycle, checkpoint, Record(folder), package=package, **settings).fit(model, data)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
