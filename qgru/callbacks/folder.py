"""The folder that a fit exports to is found unfit before training, rather than after."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from torch import nn

from qgru.callbacks.packages import Trainer

_CHUNK = bytes(1 << 20)


def check_folder(trainer: Trainer, folder: Path, module: nn.Module) -> None:
    """Find out whether a folder takes files, at least one as large as the module's parameters; nothing stays there.

    Raises:
        OSError: naming the folder, on every rank, where rank zero can't write there.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    problem = _problem(folder, size) if trainer.is_global_zero else None
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise OSError(f"the export directory {folder} can't be written to: {problem}")


def _problem(folder: Path, size: int) -> str | None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f".{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            for start in range(0, max(size, 1), len(_CHUNK)):
                file.write(_CHUNK[: max(size, 1) - start])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error)
    finally:
        _remove(probe, missing)
    return None


def _remove(probe: Path, folders: list[Path]) -> None:
    """Remove the probe and the folders that were made for it: a fit that exports nothing leaves nothing."""
    try:
        probe.unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()
    except OSError:
        pass  # what is in the way was reported, or is somebody else's
