"""What a search found, as files: the preset that anyone can use and edit, and everything that was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qgru.files import write_csv
from qgru.search.preset import write_preset
from qgru.search.search import Found, Point
from qgru.search.sensitivity import SEARCHED

PRESET = "found"
POINTS = "points"
SEARCH = "search.csv"


def write_found(found: Found, folder: str | Path) -> None:
    """Write what a search found; rank zero's business.

    ``bitwidth_config.json`` and ``found.yaml`` hold the first chosen point, with the reasons; where there are several,
    ``points/1``, ``points/2`` and so on hold the same of each, the dearest first. ``search.csv`` has a row for every
    measured configuration, in the order of their costs: cost (int8 is 1) and its parts, predicted and measured error,
    whether it is on the front, the number of the chosen point or the name of the preset that it is, and the bit widths.
    ``sensitivity.csv`` has the error of every operator alone.

    Raises:
        OSError: where the folder can't be written to.
    """
    folder = Path(folder)
    write_preset(found.chosen[0], folder, PRESET)
    for number, point in numbered(found).items():
        if len(found.chosen) > 1:
            write_preset(point, folder / POINTS / str(number), PRESET)
    rows = _rows(found)
    write_csv(rows, list(rows[0]), folder / SEARCH)
    sensitivities = found.sensitivities.rows()
    write_csv(sensitivities, list(sensitivities[0]), folder / "sensitivity.csv")


def numbered(found: Found) -> dict[int, Point]:
    """Return the chosen points from 1, the dearest, on; two budgets may have led to the same."""
    different = {point.config: point for point in found.chosen}
    return dict(enumerate(different.values(), start=1))


def _rows(found: Found) -> list[dict[str, Any]]:
    front = {point.config for point in found.front}
    chosen = {point.config: number for number, point in numbered(found).items()}
    presets = {point.config: name for name, point in found.presets.items()}
    return [
        {
            "cost": point.cost,
            **asdict(point.parts),
            "predicted": point.predicted,
            "measured": point.measured,
            "on_front": point.config in front,
            "chosen": chosen.get(point.config, ""),
            "preset": presets.get(point.config, ""),
            **{name: point.config.operators[name].bitwidth for name in SEARCHED},
        }
        for point in sorted(found.measured, key=lambda point: (point.cost, point.measured))
    ]
