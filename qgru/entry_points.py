"""What other packages call because qgru is installed."""

from __future__ import annotations

from typing import Any


def callbacks() -> list[Any]:
    """Add no callback to a Lightning Trainer: importing qgru, which this takes, is all that is wanted.

    In a program that composed ``+quant=...`` before Hydra knew of qgru, the import warns that the run is a float run.
    """
    return []
