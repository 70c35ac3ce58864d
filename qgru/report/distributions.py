"""A picture of every operator's distribution with its grid on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qgru.calibration import histogram, operator_sqnr
from qgru.convert import quantized_layers
from qgru.direction import directions_of
from qgru.files import safe_name, written_whole
from qgru.grid import Grid
from qgru.schema import OPERATORS, OPTIONAL

_COLUMNS, _ROWS = 6, 3
_DATA, _GRID, _CLIPPED = "#4c78a8", "#d6452b", "#d6452b1f"
_COMB = 0.09  # of the height
_MAX_TEETH = 128  # finer combs look solid; drawing them so is quicker


@dataclass(frozen=True)
class Panel:
    """What one operator's panel shows.

    Attributes:
        name: the operator.
        edges: (bins + 1,) of the histogram.
        counts: (bins,) int.
        grid: the operator's.
        sqnr: in dB, None where the operator holds nothing but zeros.
    """

    name: str
    edges: np.ndarray
    counts: np.ndarray
    grid: Grid
    sqnr: float | None

    def ranges(self) -> list[tuple[float, float]]:
        """Return the least and the greatest value of the grid, for each channel."""
        low, high = self.grid.mantissas
        return [(low * 2.0**-n, high * 2.0**-n) for n in sorted(set(self.grid.exponents))]

    def caption(self) -> str:
        """Return the grid in words."""
        exponents, grid = sorted(set(self.grid.exponents)), self.grid
        n = f"n={exponents[0]}" if len(exponents) == 1 else f"n={exponents[0]}..{exponents[-1]} by channel"
        sign = "unsigned" if grid.is_unsigned else "signed"
        zero = f", zp={grid.zero_point}" if grid.zero_point else ""
        shared = "\nmatmul.Rh's grid unless configured" if self.name == OPTIONAL else ""
        quality = "" if self.sqnr is None else f"\nSQNR {self.sqnr:.1f} dB"
        return f"{grid.bitwidth} bit {sign}, {n}{zero}{quality}{shared}"


def draw_distributions(module: nn.Module, folder: str | Path) -> list[Path]:
    """Draw one picture for each layer and direction that has grids and still holds what calibration observed.

    Args:
        module: holds quantized layers.
        folder: gets ``distributions-<layer's name>-l<number>[-reverse].png``.

    Returns:
        The files written.
    """
    written = []
    for name, gru in quantized_layers(module).items():
        if not (gru.is_calibrated() and gru.has_observations()):
            continue
        for direction in directions_of(gru):
            title = f"{name or 'gru'}{direction.suffix.replace('_', '-')}"
            path = Path(folder) / f"distributions-{safe_name(title)}.png"
            draw(panels(gru, *direction), title, path)
            written.append(path)
    return written


def panels(gru: Any, layer: int = 0, reverse: bool = False) -> list[Panel]:
    """Collect what there is to draw of one layer and direction, in the order of the operator table."""
    sqnr = operator_sqnr(gru)[layer, reverse]
    grids = gru.grids(layer, reverse)
    collected = []
    for name in OPERATORS:
        edges, counts = histogram(gru, name, layer, reverse)
        collected.append(Panel(name, edges.numpy(), counts.numpy(), grids[name], sqnr.get(name)))
    return collected


def draw(panels: list[Panel], title: str, path: str | Path) -> None:
    """Draw panels into one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * _COLUMNS, 2.8 * _ROWS))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.02, right=0.99, bottom=0.04, top=0.91, wspace=0.15, hspace=0.3)
    for axis, panel in zip(figure.subplots(_ROWS, _COLUMNS).flat, panels, strict=True):
        _draw_panel(axis, panel)
    figure.suptitle(
        f"{title}: values at calibration (blue, logarithmic counts), "
        "levels of the grid (red comb), values that it clips (red ground)"
    )
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=90)


def _draw_panel(axis: Any, panel: Panel) -> None:
    ranges = panel.ranges()
    low, high = min(panel.edges[0], ranges[0][0]), max(panel.edges[-1], ranges[0][1])
    margin = 0.04 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    for range_low, range_high in ranges:  # by channel: the more channels clip there, the darker the ground
        axis.axvspan(low - margin, range_low, color=_CLIPPED, linewidth=0)
        axis.axvspan(range_high, high + margin, color=_CLIPPED, linewidth=0)
    floor, top = 0.7, 30.0 * max(panel.counts.max(), 1)  # room above for the caption
    axis.set_yscale("log")
    axis.yaxis.minorticks_off()
    axis.set_ylim(floor * (floor / top) ** (_COMB / (1 - _COMB)), top)  # room below for the comb
    axis.stairs(np.maximum(panel.counts, floor), panel.edges, baseline=floor, fill=True, color=_DATA)
    _draw_comb(axis, panel)
    axis.set_title(panel.name, fontsize=10, fontweight="bold", loc="left")
    axis.text(0.03, 0.96, panel.caption(), transform=axis.transAxes, va="top", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_comb(axis: Any, panel: Panel) -> None:
    """Draw the levels of the grid (of the coarsest channel) as a comb below the bars."""
    low, high = panel.ranges()[0]
    bottom = axis.get_xaxis_transform()  # x in data, y in axes
    axis.plot([low, high], [0.0, 0.0], color=_GRID, linewidth=2, transform=bottom, clip_on=False)
    steps = panel.grid.qmax - panel.grid.qmin
    if steps < _MAX_TEETH:
        levels = np.linspace(low, high, steps + 1)
        axis.vlines(levels, 0.0, 0.8 * _COMB, color=_GRID, linewidth=1.0, transform=bottom)
    else:
        axis.axvspan(low, high, 0.0, 0.8 * _COMB, color=_GRID, alpha=0.6, linewidth=0)
