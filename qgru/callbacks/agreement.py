"""An error on one rank ends the fit on all of them: nobody waits for a rank that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise what a rank raises inside on that rank, and on the others an error that names it; a collective call.

    Raises:
        RuntimeError: where another rank failed, with its message.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    messages = from_all_ranks(None if error is None else f"{error}")
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"rank {rank} failed: {message}")


def from_all_ranks(value: Any) -> list[Any]:
    """Return every rank's value, in the ranks' order; a collective call."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered
