"""A fit on two processes of which one can't call the model; a script, since DDP starts it again.

Usage: ddp_failing_run.py <folder> <epoch to calibrate at>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from qgru.callbacks import QuantizationLifecycle
from tests.callbacks.models import Model, loader, trainer


def forward(module: Model, batch: Any) -> None:
    """Fail on rank one alone."""
    module(batch[0] if module.global_rank == 0 else batch["audio"])


def main(folder: Path, epoch: int) -> None:
    """Train."""
    torch.set_num_threads(1)
    model = Model()
    try:
        lifecycle = QuantizationLifecycle(calibrate_at_epoch=epoch, forward_fn=forward)
        trainer(folder, lifecycle, devices=2, strategy="ddp").fit(model, loader())
    except RuntimeError as error:
        (folder / f"rank{model.global_rank}").write_text(f"{len(model.losses)} steps: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
