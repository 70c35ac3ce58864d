"""Turn the results of ``benchmarks/gpu.py`` into a table and a picture: ``python -m benchmarks.gpu_report``."""

from __future__ import annotations

import math
from pathlib import Path

from qgru.files import read_csv

RESULTS = Path(__file__).parent / "results"
MODES = ("inference", "training")
_TICKS = (0.25, 0.5, 1, 2, 4, 8)


def main() -> None:
    """Draw every GPU's results; ``make tables`` writes the tables."""
    for path in gpu_results():
        print(draw(path).relative_to(RESULTS.parents[1]))


def gpu_results() -> list[Path]:
    """Return the result files, one for each GPU and torch version."""
    others = ("cpu-", "ddp-", "streaming-")
    return sorted(path for path in RESULTS.glob("*-torch*.csv") if not path.name.startswith(others))


def gpu_table(path: Path) -> str:
    """Return the table of a GPU's results."""
    note = (
        "Time of the fastest of cuDNN's and torch's float GRUs (fp32, tf32, bf16, fp16) over ours: above 1 is faster."
    )
    return speed_table(path, note)


def speed_table(path: Path, note: str) -> str:
    """Return the ratios to a float GRU in Markdown, a line a shape, and their geometric means."""
    rows = read_csv(path)
    cells = {(row["shape"], row["config"], row["mode"]): row for row in rows}
    columns = [(config, mode) for config in dict.fromkeys(row["config"] for row in rows) for mode in MODES]
    lines = [
        "| batch x time x input x hidden | " + " | ".join(f"{config} {mode}" for config, mode in columns) + " |",
        "| --- | " + " | ".join("--:" for _ in columns) + " |",
    ]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for shape in shapes:
        found = [cells.get((shape, *column)) for column in columns]
        lines.append(f"| {shape} | " + " | ".join(f"{float(r['ratio']):.2f}" if r else "" for r in found) + " |")
    means = [_geometric_mean([float(r["ratio"]) for r in rows if (r["config"], r["mode"]) == c]) for c in columns]
    lines.append("| geometric mean | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    differing = sum(int(row["differing_integers"]) for row in rows)
    return "\n".join([*lines, "", f"{note} Integers that differ from the reference: {differing}. {path.stem}.", ""])


def draw(path: Path) -> Path:
    """Draw the ratios as bars, a panel for each mode; return the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_csv(path)
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    configs = list(dict.fromkeys(row["config"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, mode in zip(axes, MODES, strict=True):
        for index, config in enumerate(configs):
            ratios = {
                row["shape"]: float(row["ratio"]) for row in rows if (row["config"], row["mode"]) == (config, mode)
            }
            places = [shapes.index(shape) + index * 0.8 / len(configs) for shape in ratios]
            axis.bar(places, ratios.values(), 0.8 / len(configs), align="edge", label=config)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_yscale("log")
        axis.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axis.minorticks_off()
        axis.set_xticks([place + 0.4 for place in range(len(shapes))], shapes, rotation=35, ha="right", fontsize=8)
        axis.set_title(f"{mode}: speed against the fastest float GRU", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(configs), frameon=False)
    figure.suptitle(path.stem)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture


def _geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


if __name__ == "__main__":
    main()
