"""Files that are written whole or not at all, CSV, JSON that is read with care, and names that stay in their folder."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_ECHOED = 80
_DIGITS = 20  # of any 64-bit integer, its sign with it


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; what stands there takes `path`'s place once the block ends well.

    A link is followed; a device or a pipe is yielded itself, for nothing can take its place.

    Raises:
        OSError: naming `path`, where its folder can't be written to or the disk is full; `path` is what it was then.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(rows: Iterable[dict[str, object]], columns: Sequence[str], path: str | Path) -> None:
    """Write a CSV file at once, so that a reader never sees half of it."""
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file as one mapping of strings a row."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: naming the file, where it is a folder, not JSON, nested too deeply, holds an integer of more than
            20 digits, a number that no float64 holds, NaN or infinity, or a key twice in one object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; expected a JSON file") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the integer {shown(digits)} is out of range; expected at most {_DIGITS} digits")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(number)} is out of range; expected a finite one")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return content


def shown(value: Any) -> str:
    """Return `repr(value)`, cut where it would fill an error message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; integers of more digits than Python prints
        return f"<{type(value).__name__} too large to show>"
    return text if len(text) <= _ECHOED else f"{text[:_ECHOED]}... ({len(text)} characters)"


def safe_name(name: str) -> str:
    """Return a file name for a module's qualified name: what could leave the folder becomes an underscore.

    Letters, digits, ``.``, ``-`` and ``_`` stay; a leading dot does not.
    """
    return re.sub(r"[^\w.\-]", "_", name).lstrip(".") or "_"
