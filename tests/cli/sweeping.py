"""Sweeps of train.py on the small recipe, as users start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOY = ["recipe=toy", f"hydra.searchpath=[file://{ROOT / 'tests' / 'cli' / 'conf'}]"]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", "-m", *TOY, f"hydra.sweep.dir={folder}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
