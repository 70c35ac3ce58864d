"""What happens because qgru is imported, or installed: Hydra hears of the presets, wherever it is in use."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def tell_hydra() -> None:
    """Register the presets where a program has imported Hydra: in an editable install it can't find them by itself.

    Where the configuration was composed before that, and ``+quant=...`` is a plain string, a warning says so.
    """
    if hasattr(sys.modules.get("hydra"), "main"):
        import_module("qgru.hydra")


def callbacks() -> list[Any]:
    """Add no callback to a Lightning Trainer, which asks wherever qgru is installed; but tell Hydra."""
    tell_hydra()
    return []
