"""Random states in a checkpoint, so that a resumed run draws what the uninterrupted one draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import distributed

from qgru.callbacks.packages import Trainer, rank_zero_warn


def capture(device: torch.device) -> dict[str, Any]:
    """Return the random states of torch (CPU, and the CUDA device given), numpy and Python, in primitives."""
    name, keys, *rest = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Set what `capture` returned."""
    torch.set_rng_state(states["torch"].cpu())
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def capture_all_ranks(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the random states of every rank; a collective call."""
    states = capture(trainer.strategy.root_device)
    if not (distributed.is_available() and distributed.is_initialized()):
        return [states]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, states)
    return gathered


class Resumption:
    """Puts loaded random states in place when training goes on.

    Lightning writes a checkpoint, and an uninterrupted run then starts an epoch: hooks, a new iterator over the
    training data (which draws a seed), batches. A resumed run makes that iterator first and keeps it. So the states
    are set at the start of the epoch, and the iterator is made again after the hooks. A run resumed in the middle
    of an epoch gets its states before its first batch.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def load(self, trainer: Trainer, ranks: list[dict[str, Any]]) -> None:
        """Keep this rank's states."""
        if len(ranks) == trainer.world_size:
            self._states = ranks[trainer.global_rank]
        else:
            rank_zero_warn(
                f"qgru: the checkpoint was written by {len(ranks)} processes and is resumed by {trainer.world_size}: "
                "random states start anew, so the run won't repeat what it would have been uninterrupted"
            )

    def before_epoch(self, trainer: Trainer) -> bool:
        """Set the states at the start of the first full epoch; True where `batches.rewind` is due after the hooks."""
        return self._set(trainer) and trainer.fit_loop.is_resuming and trainer.current_epoch > 0

    def before_batch(self, trainer: Trainer) -> None:
        """Set the states before the first batch of a run resumed in the middle of an epoch."""
        self._set(trainer)

    def _set(self, trainer: Trainer) -> bool:
        if self._states is None:
            return False
        restore(self._states, trainer.strategy.root_device)
        self._states = None
        return True
