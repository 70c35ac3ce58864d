"""Turn the results of ``benchmarks/search.py`` into tables and pictures: ``python -m benchmarks.search_report``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

from qgru.direction import Direction
from qgru.files import read_csv
from qgru.report.front import FOUND, PRESET, Mark, draw_marks, new_figure, save
from qgru.report.search import draw_prediction, draw_sensitivities
from qgru.report.table import mean_and_spread
from qgru.search.assign import QAT_DISCOUNT

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Line:
    """A configuration's results, seed 1, which the search saw, first."""

    name: str
    target: str
    budget: float | None
    discount: float | None
    cost: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    metric: str
    of_float: tuple[float, ...]
    setting: str


def main() -> None:
    """Draw every model's results; ``make tables`` writes the tables."""
    for path in search_results():
        name = path.stem.removeprefix("search-")
        figure = new_figure(5.8, 4.2)
        lines = lines_of(path)
        draw_marks(figure.subplots(), marks(lines), f"{lines[0].metric}, {name}", lines[0].of_float)
        save(figure, path.with_suffix(".png"))
        _draw_sensitivities(RESULTS / f"sensitivity-{name}.csv")
        _draw_prediction(RESULTS / f"prediction-{name}.csv")


def search_results() -> list[Path]:
    """Return the result files, one for each model."""
    return sorted(RESULTS.glob("search-*.csv"))


def lines_of(path: Path) -> list[Line]:
    """Return the configurations of a result file, in its order."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(path):
        groups.setdefault(row["configuration"], []).append(row)
    return [_line_of(name, sorted(rows, key=lambda row: int(row["seed"]))) for name, rows in groups.items()]


def _line_of(name: str, rows: list[dict[str, str]]) -> Line:
    first = rows[0]
    budget, discount = (float(first[key]) if first[key] else None for key in ("budget", "discount"))
    before, after, of_float = (tuple(float(row[key]) for row in rows) for key in ("before", "after", "float"))
    metric = first["metric"].removeprefix("test/")
    setting = f"{first['machine']}, torch {first['torch']}"
    return Line(name, first["target"], budget, discount, float(first["cost"]), before, after, metric, of_float, setting)


def marks(lines: Iterable[Line]) -> list[Mark]:
    """Return the presets, and what the search found at its own discount, each at its means."""
    return [
        Mark(
            line.cost,
            fmean(line.before),
            fmean(line.after),
            "" if line.target else line.name,
            FOUND if line.target else PRESET,
        )
        for line in lines
        if not line.target or (line.target == "fpga" and line.discount == QAT_DISCOUNT)
    ]


def search_table(path: Path) -> str:
    """Return a model's configurations in Markdown: presets, variants, and what was found at the search's discount."""
    lines = [line for line in lines_of(path) if not line.target or line.discount == QAT_DISCOUNT]
    rows = [
        [
            f"{line.target}, budget {line.budget:g}" if line.target else line.name,
            f"{line.cost:.2f}",
            *map(_shown, (line.before, line.after, line.after[1:])),
        ]
        for line in lines
    ]
    head = ["", "cost", "before QAT", "after QAT", "after QAT, held-out seeds"]
    return _markdown(path, head, rows)


def discount_table(path: Path) -> str:
    """Return errors after QAT in Markdown: budgets over discounts; nothing where there is one discount."""
    lines = {(line.budget, line.discount): line for line in lines_of(path) if line.target == "fpga"}
    discounts = list(dict.fromkeys(discount for _, discount in lines))
    if len(discounts) < 2:
        return ""
    rows = [
        [
            f"{budget:g}",
            *(_shown(lines[key].after if (key := (budget, discount)) in lines else ()) for discount in discounts),
        ]
        for budget in dict.fromkeys(budget for budget, _ in lines)
    ]
    return _markdown(path, ["budget", *(f"discount {discount:g}" for discount in discounts)], rows)


def _shown(values: Sequence[float]) -> str:
    return mean_and_spread(values) if values else ""


def _markdown(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    results = lines_of(path)
    settings = "; ".join(sorted({line.setting for line in results}))
    note = (
        f"{path.stem.removeprefix('search-')}: {results[0].metric}, mean ± standard deviation over "
        f"{len(results[0].after)} seeds; {settings}."
    )
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note, ""])


def _draw_sensitivities(path: Path) -> None:
    errors = {
        (row["layer"], _direction(row["direction"]), row["operator"], int(row["width"])): float(row["error"])
        for row in (read_csv(path) if path.is_file() else [])
    }
    if errors:
        draw_sensitivities(SimpleNamespace(errors=errors), path.with_suffix(".png"))


def _direction(text: str) -> Direction:
    layer, _, reverse = text.removeprefix("layer ").partition(", ")
    return Direction(int(layer), reverse == "reverse")


def _draw_prediction(path: Path) -> None:
    if path.is_file():
        points = [
            SimpleNamespace(**{key: float(row[key]) for key in ("predicted", "measured", "cost")})
            for row in read_csv(path)
        ]
        draw_prediction(points, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
