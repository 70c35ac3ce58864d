"""A program's own test, run on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple


class Comparison(NamedTuple):
    """What a program's test said."""

    differing: int
    total: int


def compiler() -> str | None:
    """Return the C compiler of this machine: ``$CC``, or the first of cc, gcc, clang; None where there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


def compare(folder: Path, name: str) -> Comparison | None:
    """Compile a folder's test and run it; None where there is no compiler.

    Raises:
        RuntimeError: where it does not compile, or does not end as it should.
    """
    cc = compiler()
    if cc is None:
        return None
    with TemporaryDirectory() as temporary:
        binary = Path(temporary) / "test"
        built = subprocess.run(
            [cc, "-std=c99", "-O1", f"{name}.c", "test.c", "-o", binary], cwd=folder, capture_output=True, text=True
        )
        if built.returncode:
            raise RuntimeError(f"{cc} does not compile {folder / name}.c: {built.stderr[:500]}")
        ran = subprocess.run([binary], capture_output=True, text=True)
    found = re.search(rf"^{name}: (\d+) of (\d+) integers differ$", ran.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the test of {folder / name}.c ended with status {ran.returncode}: {ran.stderr[:500]}")
    return Comparison(int(found[1]), int(found[2]))
