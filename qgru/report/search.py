"""What a search of bit widths saw: sensitivities as a heat map, the front, and predicted against measured errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qgru.direction import Direction
from qgru.report.front import AFTER, CHOSEN, FOUND, INK, TRIED, Mark, draw_marks, new_figure, save, scale, write_ticks
from qgru.schema import BitwidthConfig

if TYPE_CHECKING:
    from qgru.search import Found, Point, Sensitivities

_COMPUTED = (
    *("input.x", "output.h", "weight.W", "weight.R", "weight.bw", "weight.br", "matmul.Wx", "matmul.Rh"),
    *("gate.r_pre", "gate.r_out", "gate.z_pre", "gate.z_out", "op.Rh_add_br", "op.rRh", "gate.g_pre", "gate.g_out"),
    *("op.old_contrib", "op.new_contrib"),
)
"""The operators in the order of a time step."""

_ERROR = "output error to float (MSE / variance, or nats)"
_COLORS = "viridis"  # which all kinds of colour vision read alike
_MOST_MAPS = 4


def draw_search(found: Found, folder: str | Path) -> list[Path]:
    """Draw what a search found into three PNGs.

    Args:
        found: a search's result.
        folder: gets ``search-sensitivities.png``, ``search-front.png`` and ``search-prediction.png``.

    Returns:
        The files written.
    """
    paths = [Path(folder) / f"search-{name}.png" for name in ("sensitivities", "front", "prediction")]
    draw_sensitivities(found.sensitivities, paths[0], found.chosen[0].config if found.chosen else None)
    draw_points(found, paths[1])
    draw_prediction(found.measured, paths[2])
    return paths


def draw_sensitivities(sensitivities: Sensitivities, path: str | Path, chosen: BitwidthConfig | None = None) -> None:
    """Draw a heat map of operators over widths, on a logarithmic scale, into a PNG.

    One map a layer and direction; of more than four, one with the largest error of each operator and width. Errors of
    0 and errors that are not finite have the colours of the scale's ends; what was not measured stays white.

    Args:
        sensitivities: with one operator, layer and direction at least.
        path: of the file.
        chosen: its widths are ringed.
    """
    from matplotlib.colors import LogNorm

    maps = _maps(sensitivities.errors)
    operators = [name for name in _COMPUTED if any(name in of_map for of_map in maps.values())]
    widths = sorted({width for of_map in maps.values() for row in of_map.values() for width in row})
    grids = {
        title: np.array([[of_map.get(name, {}).get(width, nan) for width in widths] for name in operators])
        for title, of_map in maps.items()
    }
    known = [value for grid in grids.values() for value in grid.flat if isfinite(value) and value > 0] or [1.0]
    norm = LogNorm(min(known), max(max(known), 1.01 * min(known)))
    columns, lines = min(len(grids), 2), -(-len(grids) // 2)
    size = max(0.28 * len(widths), 1.5), 0.6 + 0.25 * len(operators)
    figure = new_figure(2.0 + columns * size[0], 0.6 + lines * size[1])
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(grids) :]:
        axis.set_axis_off()
    for axis, (title, grid) in zip(axes.flat, grids.items(), strict=False):
        shown = np.clip(np.where(np.isnan(grid), nan, grid), norm.vmin, norm.vmax)
        image = axis.imshow(shown, cmap=_COLORS, norm=norm, aspect="auto")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(widths)), widths)
        axis.set_yticks(range(len(operators)), operators)
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("bits")
        _ring(axis, grid, operators, widths, chosen)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(f"{_ERROR}, this operator alone", fontsize=9)
    bar.outline.set_visible(False)
    if chosen is not None:
        figure.suptitle("sensitivities; chosen widths are ringed", fontsize=10)
    save(figure, path)


def draw_points(found: Found, path: str | Path) -> None:
    """Draw the error over the cost of all measured points, the front as a line, presets as labelled crosses.

    All are before QAT; `qgru.report.front.draw_front` draws what training made of them.

    Args:
        found: a search's result.
        path: of the PNG.
    """
    figure = new_figure(5.8, 4.2)
    axis = figure.subplots()
    marks = [Mark(point.cost, point.measured, label=name) for name, point in found.presets.items()]
    marks += [Mark(point.cost, point.measured, kind=FOUND) for point in found.front]
    marks += [Mark(point.cost, point.measured, label=f"{point.cost:.2g}", kind=CHOSEN) for point in found.chosen]
    marks += [Mark(point.cost, point.measured, kind=TRIED) for point in found.measured]
    draw_marks(axis, marks, _ERROR)
    if not {point.config for point in found.chosen} <= {point.config for point in found.front}:
        figure.suptitle("chosen for QAT, which wins back the parameters' share of the error", fontsize=9)
    save(figure, path)


def draw_prediction(points: Sequence[Point], path: str | Path) -> None:
    """Draw measured over predicted errors, with their rank correlation and the line where both are equal.

    The rank correlation of cost and measured error stands beside it: what is no better than that predicts nothing.

    Args:
        points: of a search; those without two finite errors above 0 are left out.
        path: of the PNG.
    """
    from matplotlib.colors import LogNorm

    pairs = [(point.predicted, point.measured, point.cost) for point in points]
    pairs = [pair for pair in pairs if all(isfinite(value) and value > 0 for value in pair)]
    figure = new_figure(5.4, 4.2)
    axis = figure.subplots()
    axis.set_xlabel("predicted error: sum of the operators' own")
    axis.set_ylabel(f"measured {_ERROR}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if pairs:
        predicted, measured, cost = map(np.array, zip(*pairs, strict=True))
        ends = min(predicted.min(), measured.min()), max(predicted.max(), measured.max())
        axis.plot(ends, ends, color=INK, linestyle="--", linewidth=1)
        scale(axis, "x", ends)
        scale(axis, "y", ends)
        norm = LogNorm(cost.min(), max(cost.max(), 1.01 * cost.min()))
        drawn = axis.scatter(predicted, measured, c=cost, cmap=_COLORS, norm=norm, s=16, zorder=2)
        bar = figure.colorbar(drawn, label="cost (int8 = 1)")
        bar.outline.set_visible(False)
        write_ticks(bar.ax.yaxis, norm.vmax / norm.vmin)
        alone = spearman(-cost, measured)
        axis.set_title(
            f"{len(pairs)} configurations: Spearman {spearman(predicted, measured):.2f} (by cost alone {alone:.2f})",
            fontsize=10,
        )
    save(figure, path)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two samples' ranks, equal values sharing their mean rank; NaN where one is constant."""
    if not len(a):
        return nan
    ranks = []
    for values in (a, b):
        _, index, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[index])
    x, y = (rank - rank.mean() for rank in ranks)
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else nan


def _maps(errors: Mapping[tuple[str, Direction, str, int], float]) -> dict[str, dict[str, dict[int, float]]]:
    """Return operator to width to error, for every layer and direction by its title."""
    maps: dict[str, dict[str, dict[int, float]]] = {}
    for (layer, direction, operator, width), error in errors.items():
        of_map = maps.setdefault(" ".join(filter(None, (layer, str(direction)))), {})
        of_map.setdefault(operator, {})[width] = inf if error != error else error
    if len(maps) <= _MOST_MAPS:
        return maps
    largest: dict[str, dict[int, float]] = {}
    for of_map in maps.values():
        for operator, row in of_map.items():
            kept = largest.setdefault(operator, {})
            kept.update({width: max(error, kept.get(width, error)) for width, error in row.items()})
    return {f"largest of {len(maps)} layers and directions": largest}


def _ring(
    axis: Any, grid: np.ndarray, operators: Sequence[str], widths: Sequence[int], chosen: BitwidthConfig | None
) -> None:
    configs = {} if chosen is None else chosen.operators
    wanted = [(configs[name].bitwidth, row) for row, name in enumerate(operators) if name in configs]
    rings = [(widths.index(width), row) for width, row in wanted if width in widths]
    rings = [(column, row) for column, row in rings if not np.isnan(grid[row, column])]
    if rings:
        at = list(zip(*rings, strict=True))
        axis.scatter(*at, s=60, facecolors="none", edgecolors="white", linewidths=3)
        axis.scatter(*at, s=60, facecolors="none", edgecolors=AFTER, linewidths=1.6)
