"""One run under DDP on two processes, or on one that sees the same batches; a script, since DDP starts it again.

Usage: ddp_run.py <processes> <folder>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from qgru.callbacks import QuantizationLifecycle
from tests.callbacks.models import Model, dataset, trainer


class SaveGrids(Callback):
    """Writes every rank's integers before the first quantized step, so before DDP's first broadcast of buffers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        path = self.folder / f"rank{trainer.global_rank}.pt"
        if not path.exists():
            torch.save(dict(pl_module.named_buffers()), path)


def main(processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    # A batch of 6 on each of two ranks is every second row of a batch of 12: the same rows, dealt out.
    data = torch.utils.data.DataLoader(dataset(48), batch_size=12 // processes)
    lifecycle = QuantizationLifecycle(
        calibrate_at_epoch=0, calibration_batches=3 * processes, export_dir=str(folder / "files")
    )
    checkpoint = ModelCheckpoint(folder, save_last=True)
    settings = {"devices": processes, "max_epochs": 2, "strategy": "ddp" if processes > 1 else "auto"}
    trainer(folder, lifecycle, checkpoint, SaveGrids(folder), **settings).fit(Model(), data)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
