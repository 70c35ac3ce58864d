"""Error over cost, before and after QAT: what a search found, and the presets as labelled crosses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any

from qgru.files import written_whole
from qgru.report.table import FIELDS

BEFORE, AFTER, PALE, INK = "#4c78a8", "#d6452b", "#c9c9c9", "#333333"
"""Blue, vermilion and greys, which differ to every kind of colour vision."""

FOUND, CHOSEN, PRESET, TRIED = "found", "chosen", "preset", "tried"
_STYLES = {
    TRIED: {"marker": ".", "s": 14},
    FOUND: {"marker": "o", "s": 26, "facecolors": "white", "linewidths": 1.2},
    PRESET: {"marker": "x", "s": 44, "linewidths": 1.8},
    CHOSEN: {"marker": "*", "s": 130},
}
_DPI = 120
_STAGES = {"ptq": "before", "qat": "after"}
_NOT_VARIED = {"job", "seed", "cost", *FIELDS}
_SEARCHED = "auto"  # the value of `quant` that asks for a search
_WIDE = 3.0  # a range of which the ends differ by this factor gets a logarithmic axis
_FAR = 3.0  # times the dearest that was chosen or found: of what costs more, presets are told of in words
_AROUND = (
    (6, 6),
    (-6, 6),
    (6, -6),
    (-6, -6),
    (0, 10),
    (0, -10),
    (12, 0),
    (-12, 0),
    (6, 18),
    (-6, 18),
    (6, -18),
    (-6, -18),
    (40, 0),
    (-40, 0),
)
_WORST = 1000  # for a word to lie on another, rather than on lines and marks


@dataclass(frozen=True)
class Mark:
    """One configuration of one run.

    Attributes:
        cost: the preset ``int8`` is 1.
        before: error or score before QAT, NaN where there is none.
        after: the same after QAT.
        label: marks of one label stand for the same thing. It is written once beside them; those that were found are
            joined by a line through each label's mean instead.
        kind: `PRESET`, a cross; `FOUND` by a search, a circle; `CHOSEN` of those, a star; `TRIED`, a pale dot.
    """

    cost: float
    before: float = nan
    after: float = nan
    label: str = ""
    kind: str = PRESET

    @property
    def value(self) -> float:
        """What the mark comes to: after QAT, if it came that far."""
        return self.after if isfinite(self.after) else self.before


def draw_front(rows: Iterable[Mapping[str, Any]], path: str | Path) -> bool:
    """Draw the rows of a sweep's ``results.csv``, one panel a metric and one mark a job, into a PNG.

    Args:
        rows: as `qgru.report.table.read_csv` gives them. Of the columns that a job's overrides made, `quant` says
            whether it searched (``auto``), and all but `seed` make up its label.
        path: of the file.

    Returns:
        False where no row has both a cost and a finite value; nothing is written then.
    """
    rows = list(rows)
    panels = {metric: _marks(rows, metric) for metric in dict.fromkeys(row["metric"] for row in rows)}
    panels = {metric: marks for metric, marks in panels.items() if marks}
    if not panels:
        return False
    figure = new_figure(5.8, 4.2 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (metric, marks) in zip(axes, panels.items(), strict=True):
        draw_marks(axis, marks, metric.removeprefix("test/"), _float_values(rows, metric))
    save(figure, path)
    return True


def new_figure(width: float, height: float) -> Any:
    """Return a figure of this size in inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def draw_marks(axis: Any, marks: Sequence[Mark], name: str, floats: Sequence[float] = ()) -> None:
    """Draw marks into an axis of a figure.

    Args:
        axis: matplotlib's.
        marks: one at least.
        name: of their error or score, with its unit.
        floats: values of the float model; a dashed line stands at their mean.
    """
    searched = [mark.cost for mark in marks if mark.kind == CHOSEN] or [m.cost for m in marks if m.kind == FOUND]
    far = [mark for mark in marks if mark.cost > _FAR * max(searched, default=inf)]
    marks = [mark for mark in marks if mark not in far]
    values = [value for mark in marks for value in (mark.before, mark.after) if isfinite(value)]
    if floats:
        axis.axhline(fmean(floats), color=INK, linestyle="--", linewidth=1, label="float")
    for mark in marks:
        if isfinite(mark.before) and isfinite(mark.after):
            axis.plot([mark.cost] * 2, [mark.before, mark.after], color=PALE, linewidth=1, zorder=1)
    for kind in _STYLES:
        for stage, color in (("before", BEFORE), ("after", AFTER)):
            _draw_series(axis, [mark for mark in marks if mark.kind == kind], stage, color)
    scale(axis, "x", [mark.cost for mark in marks])
    scale(axis, "y", [*values, *floats])
    beyond = {mark.label: f"{mark.label} at cost {mark.cost:.3g}: {mark.value:.3g}" for mark in far if mark.label}
    axis.set_xlabel("\n".join(["cost (int8 = 1)", *(["beyond: " + "; ".join(beyond.values())] if beyond else [])]))
    axis.set_ylabel(name)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    _write_labels(axis, marks)


def _draw_series(axis: Any, marks: Sequence[Mark], stage: str, color: str) -> None:
    points = sorted((mark.cost, getattr(mark, stage), mark.label) for mark in marks if isfinite(getattr(mark, stage)))
    if not points:
        return
    kind, (costs, values, _) = marks[0].kind, zip(*points, strict=True)
    if kind == FOUND:
        groups = {label: [point for point in points if point[2] == label] for *_, label in points}
        alone = [[point] for point in groups.pop("", [])]
        means = sorted((fmean(p[0] for p in group), fmean(p[1] for p in group)) for group in (*groups.values(), *alone))
        axis.plot(*zip(*means, strict=True), color=color, linewidth=1.2, alpha=0.7)
    color = PALE if kind == TRIED else color
    style = {"color": color} | ({"color": None, "edgecolors": color} if kind == FOUND else {}) | _STYLES[kind]
    axis.scatter(costs, values, zorder=3, label=f"{kind}, {stage} QAT", **style)


def scale(axis: Any, which: str, values: Sequence[float]) -> None:
    """Make the axis `which` (``"x"``, ``"y"``) fit some values, logarithmic where they are far apart."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low <= 0 or high / low < _WIDE:
        axis.margins(**{which: 0.12})
        return
    factor = (high / low) ** 0.08
    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}lim")(low / factor, high * factor)
    write_ticks(getattr(axis, f"{which}axis"), high / low)


def write_ticks(axis: Any, ratio: float) -> None:
    """Put plain numbers on a logarithmic axis, as many as suit the ratio of its ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if ratio < 10 else (1, 2, 5) if ratio < 1000 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _write_labels(axis: Any, marks: Sequence[Mark]) -> None:
    """Write each label once, at the first place beside its marks that is free."""
    axis.figure.draw_without_rendering()  # the layout, and with it the places of the marks
    canvas = axis.get_window_extent()
    drawn = [mark for mark in marks if mark.kind != TRIED]
    dots = [
        axis.transData.transform((mark.cost, y)) for mark in drawn for y in (mark.before, mark.after) if isfinite(y)
    ]
    for line in axis.lines:
        dots.extend(_along(line))
    taken: list[Any] = []
    for label in dict.fromkeys(mark.label for mark in marks if mark.label and mark.kind != FOUND):
        own = [mark for mark in marks if mark.label == label and isfinite(mark.value)]
        if not own:
            continue
        at = max((mark.cost, mark.value) for mark in own)
        tried = []
        for dx, dy in _AROUND:
            align = {"ha": ("right", "center", "left")[(dx > 0) - (dx < 0) + 1], "va": "center" if not dy else None}
            align["va"] = align["va"] or ("bottom" if dy > 0 else "top")
            text = axis.annotate(label, at, (dx, dy), textcoords="offset points", fontsize=8, color=INK, **align)
            box = text.get_window_extent()
            crossed = _WORST * sum(box.overlaps(other) for other in taken) + sum(box.contains(*dot) for dot in dots)
            outside = not (canvas.x0 <= box.x0 and box.x1 <= canvas.x1 and canvas.y0 <= box.y0 and box.y1 <= canvas.y1)
            tried.append((crossed + outside, len(tried), text, box))
            text.set_visible(False)
            if not crossed + outside:
                break
        *_, text, box = min(tried, key=lambda entry: entry[:2])
        for *_, other, _ in tried:
            if other is not text:
                other.remove()
        text.set_visible(True)
        taken.append(box)


def _along(line: Any) -> Iterator[Any]:
    """Yield points on a line, in pixels, close enough to find a word that it would cross."""
    import numpy as np

    corners = line.get_transform().transform(line.get_xydata())
    for start, end in pairwise(corners):
        yield from np.linspace(start, end, 2 + int(np.abs(end - start).max() / 4))


def _marks(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mark]:
    """Return the marks of one metric; a job has one for each configuration that it went through."""
    varied = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _NOT_VARIED]
    varied = [key for key in varied if key == "quant" or len({row.get(key) for row in rows}) > 1]
    seen: dict[tuple, dict[str, float]] = {}
    for row in rows:
        cost, value = _number(row.get("cost")), _number(row.get("value"))
        if row["metric"] == metric and row["stage"] in _STAGES and isfinite(cost) and isfinite(value):
            kind = FOUND if row.get("quant") == _SEARCHED else PRESET
            key = (row.get("job"), cost, kind, _label(row, varied))
            seen.setdefault(key, {})[_STAGES[row["stage"]]] = value
    return [Mark(cost, label=label, kind=kind, **values) for (_, cost, kind, label), values in seen.items()]


def _label(row: Mapping[str, Any], varied: Sequence[str]) -> str:
    given = {key: str(row[key]) for key in varied if row.get(key) not in (None, "")}
    if given.get("quant") == _SEARCHED:
        given.pop("quant")
    return " ".join(value if key == "quant" else f"{_short(key)}={value}" for key, value in given.items())


def _short(key: str) -> str:
    return key.removeprefix("quant.operator_config.").removeprefix("quant.").removesuffix(".bitwidth")


def _float_values(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    values = [_number(row["value"]) for row in rows if row["stage"] == "float" and row["metric"] == metric]
    return [value for value in values if isfinite(value)]


def _number(cell: Any) -> float:
    return nan if cell in (None, "") else float(cell)
