"""Compiled kernels on disk: in a folder that is the user's alone, each checked against what it was compiled from."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from qgru.files import written_whole

_DIGEST_BYTES = 32


def read(name: str, key: str) -> bytes | None:
    """Return what `write` left under a name and a key, or None where there is nothing whole of one's own.

    Args:
        name: of the file.
        key: everything that the content follows from.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _is_own(status):
                return None
            digest, content = file.read(_DIGEST_BYTES), file.read()
    except OSError:
        return None
    return content if digest == _digest(key, content) else None


def write(name: str, key: str, content: bytes) -> None:
    """Keep `content` for later processes, whole or not at all; where the disk does not take it, it is not kept."""
    folder = _folder()
    if folder is None:
        return
    try:
        if (folder / name).is_symlink():
            (folder / name).unlink()  # nothing is written through a link
        with written_whole(folder / name) as temporary:
            temporary.write_bytes(_digest(key, content) + content)
    except OSError:
        pass


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key.encode()).digest() + content).digest()


def _folder() -> Path | None:
    """Return the folder, made where it was missing; None where somebody else could put something into it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("qgru", "cuda"):
            folder = folder / part
            if not folder.is_symlink():
                folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or not _is_own(status):
                return None
    except (OSError, RuntimeError):  # no home
        return None
    return folder


def _is_own(status: os.stat_result) -> bool:
    """Return True where only this user may have written; where there are no users, as on Windows, always."""
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
