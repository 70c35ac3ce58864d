"""A progress bar where Lightning shows progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console, progress

from qgru.callbacks.packages import Trainer

T = TypeVar("T")


def track(trainer: Trainer, items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """Yield the items; on rank zero, unless the trainer's own progress bar is off, show how far that got."""
    is_shown = _is_shown(trainer)
    yield from progress.track(
        items, description, total, console=get_console(), transient=True, disable=not is_shown, show_speed=False
    )


@contextmanager
def reporting(trainer: Trainer, description: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far something got, where `track` would.

    Yields:
        ``progress(done, total, text)``, to be called now and then.
    """
    with progress.Progress(console=get_console(), transient=True, disable=not _is_shown(trainer)) as bar:
        task = bar.add_task(description, total=None)

        def report(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total or None, description=f"{description}: {text}")

        yield report


def _is_shown(trainer: Trainer) -> bool:
    bar = trainer.progress_bar_callback
    return trainer.is_global_zero and bar is not None and bar.is_enabled
