"""Write the recipes' results into their READMEs: ``python benchmarks/tables.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qgru.report.table import mean_and_spread, read_csv

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEFAULT = "speaker_identification"
START, END = "<!-- results -->", "<!-- /results -->"
STAGES = {"ptq": "{} before QAT", "qat": "{} after QAT", "onnx": "{} in ONNX Runtime"}


def main() -> None:
    """Rewrite every README that has results."""
    for readme, path in tables().items():
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), table(path)), encoding="utf-8")
        print(f"{readme.relative_to(ROOT)}: table of {path.relative_to(ROOT)}")


def tables() -> dict[Path, Path]:
    """Return which README shows which result file; the first page shows the default recipe's."""
    results = {path.stem.removeprefix("recipe-"): path for path in sorted(RESULTS.glob("recipe-*.csv"))}
    own = {ROOT / "recipes" / name / "README.md": path for name, path in results.items()}
    return {ROOT / "README.md": RESULTS / f"recipe-{DEFAULT}.csv", **own}


def with_table(text: str, table: str) -> str:
    """Put a table between the two markers of a README.

    Raises:
        ValueError: where the text does not hold each marker once, in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in after:
        raise ValueError(f"expected one {START} and after it one {END}")
    return f"{before}{START}\n{table}{END}{after}"


def table(path: Path) -> str:
    """Return the table of a result file in Markdown: a line a stage, mean ± standard deviation over the seeds."""
    rows = read_csv(path)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    names = [metric.removeprefix("test/") for metric in metrics]
    lines = [_line(["", *names, "weight bytes", "differing integers"]), _line(["---", *["--:"] * (len(names) + 2)])]
    for label, group in _groups(rows).items():
        values = [mean_and_spread([float(row["value"]) for row in group if row["metric"] == name]) for name in metrics]
        lines.append(_line([label, *values, _largest(group, "weight_bytes"), _largest(group, "differing_integers")]))
    seeds = len({row["seed"] for row in rows})
    setting = sorted({f"{row['machine']}, Python {row['python']}, torch {row['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Mean ± standard deviation over {seeds} seeds; {'; '.join(setting)}.", ""])


def _groups(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Sort rows into the lines of the table; the presets of a seed share their float stage and the baselines."""
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        preset, stage = row["preset"], row["stage"]
        if stage in STAGES:
            label = STAGES[stage].format(preset)
        elif preset == presets[0]:
            label = stage  # the float run and the baselines
        elif stage == "float" and preset == presets[1]:
            label = "float, at calibration"
        else:
            continue
        groups.setdefault(label, []).append(row)
    return groups


def _largest(group: Sequence[dict[str, str]], column: str) -> str:
    numbers = [int(row[column]) for row in group if row[column]]
    return f"{max(numbers):,}" if numbers else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
