"""The rows of ``results.csv`` and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qgru.files import read_csv, write_csv


@dataclass(frozen=True)
class Row:
    """One metric of one stage.

    Attributes:
        stage: ``"float"``, ``"ptq"`` (quantized before QAT), ``"qat"`` (after it), ``"onnx"`` (the exported file in
            ONNX Runtime) or a baseline's name.
        metric: as the module logs it, e.g. ``"test/accuracy"``.
        value: over the whole test set.
        weight_bytes: of all parameters at their bit widths; None for a baseline.
        differing_integers: between the exported file and the module; None for the other stages.
        cost: of the bit widths, relative to int8's; None where nothing is quantized. See `qgru.search.relative_cost`.
    """

    stage: str
    metric: str
    value: float
    weight_bytes: int | None = None
    differing_integers: int | None = None
    cost: float | None = None


FIELDS = tuple(field.name for field in fields(Row))


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write ``results.csv``; an absent number is an empty cell."""
    write_csv([asdict(row) for row in rows], FIELDS, path)


def read_rows(path: str | Path) -> list[Row]:
    """Read ``results.csv`` back; one that was written before there were costs has none."""
    return [
        Row(
            stage=cells["stage"],
            metric=cells["metric"],
            value=float(cells["value"]),
            weight_bytes=_integer(cells["weight_bytes"]),
            differing_integers=_integer(cells["differing_integers"]),
            cost=float(cells["cost"]) if cells.get("cost") else None,
        )
        for cells in read_csv(path)
    ]


def mean_and_spread(values: Sequence[float]) -> str:
    """Return ``"0.971"``, or ``"0.971 ± 0.006"`` (the sample's standard deviation) for several values."""
    if len(values) < 2:
        return f"{values[0]:.4g}" if values else ""
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def print_rows(title: str, keys: Sequence[str], groups: dict[tuple[str, ...], Sequence[Row]]) -> None:
    """Print one line for every group of rows and stage, with the mean and spread of each metric.

    Args:
        title: the line over the table.
        keys: names of the leading columns.
        groups: the cells of the leading columns to the rows of all runs that they stand for.
    """
    metrics = list(dict.fromkeys(row.metric for rows in groups.values() for row in rows))
    table = Table()
    for key in keys:
        table.add_column(key.removeprefix("quant.operator_config."), overflow="fold")
    table.add_column("stage", no_wrap=True)
    names = [metric.removeprefix("test/") for metric in metrics]
    for name in (*names, "weight\nbytes", "cost", "differing\nintegers"):
        table.add_column(name, justify="right", no_wrap=True)  # where it is narrow, no number is cut
    for cells, rows in groups.items():
        for stage in dict.fromkeys(row.stage for row in rows):
            table.add_row(*cells, stage, *_numbers([row for row in rows if row.stage == stage], metrics))
    console = Console()
    console.print(f"\n{title}", soft_wrap=True, highlight=False)
    console.print(table)


def _numbers(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Return the cells right of the stage: each metric, bytes, mean cost, and the worst count of differing integers."""
    costs = [row.cost for row in rows if row.cost is not None]
    size = max((row.weight_bytes for row in rows if row.weight_bytes is not None), default=None)
    differing = max((row.differing_integers for row in rows if row.differing_integers is not None), default=None)
    return [
        *(mean_and_spread([row.value for row in rows if row.metric == metric]) for metric in metrics),
        "" if size is None else f"{size:,}",
        f"{statistics.mean(costs):.3g}" if costs else "",
        "" if differing is None else f"{differing:,}",
    ]


def _integer(cell: str) -> int | None:
    return int(cell) if cell else None
