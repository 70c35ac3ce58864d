"""A progress bar where Lightning shows progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import get_console, progress

from qgru.callbacks.packages import Trainer

T = TypeVar("T")


def track(trainer: Trainer, items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield the items; on rank zero, unless the trainer's own progress bar is off, show how far that got."""
    bar = trainer.progress_bar_callback
    is_shown = trainer.is_global_zero and bar is not None and bar.is_enabled
    yield from progress.track(
        items, description, total, console=get_console(), transient=True, disable=not is_shown, show_speed=False
    )
