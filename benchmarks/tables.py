"""Write the recipes' results into their READMEs: ``python -m benchmarks.tables``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.gpu_report import gpu_results, gpu_table, speed_table
from benchmarks.search_report import discount_table, search_results, search_table
from qgru.files import read_csv
from qgru.report.table import mean_and_spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU_NOTE = "Time of torch's float32 GRU over ours, on the same threads: above 1 is faster."
DEFAULT = "speaker_identification"
PLAIN = {
    "streaming": "A step's time over torch's float `nn.GRUCell`'s, and `forward` on one time step.",
    "onnxruntime": "A `qdq` file's time over ONNX Runtime's float GRU's; shapes are batch x time x input x hidden.",
    "chips": "Instructions a time step; integers that differ are counted over all programs' outputs.",
}
"""Results that are shown as they are, by what their files' names begin with."""
STAGES = {"ptq": "{} before QAT", "qat": "{} after QAT", "onnx": "{} in ONNX Runtime"}


def main() -> None:
    """Rewrite every README that has results."""
    for readme, blocks in tables().items():
        text = readme.read_text(encoding="utf-8")
        for name, block in blocks.items():
            text = with_table(text, block, name)
        readme.write_text(text, encoding="utf-8")
        print(f"{readme.relative_to(ROOT)}: {', '.join(blocks)}")


def tables() -> dict[Path, dict[str, str]]:
    """Return what each README shows between which markers; the first page shows the default recipe's results."""
    recipes = {path.stem.removeprefix("recipe-"): table(path) for path in sorted(RESULTS.glob("recipe-*.csv"))}
    shown = {ROOT / "recipes" / name / "README.md": {"results": block} for name, block in recipes.items()}
    gpu = {"gpu": "\n".join(map(gpu_table, gpu_results()))} if gpu_results() else {}
    cpu = "\n".join(speed_table(path, CPU_NOTE) for path in sorted(RESULTS.glob("cpu-*.csv")))
    ddp = "\n".join(map(ddp_table, sorted(RESULTS.glob("ddp-*.csv"))))
    searched = (table for path in search_results() for table in (search_table(path), discount_table(path)) if table)
    plain = {
        kind: "\n".join(plain_table(path, note) for path in sorted(RESULTS.glob(f"{kind}-*.csv")))
        for kind, note in PLAIN.items()
    }
    made = {"cpu": cpu, "ddp": ddp, "search": "\n".join(searched), **plain}
    blocks = {**gpu, **{name: block for name, block in made.items() if block}}
    return {ROOT / "README.md": {"results": recipes[DEFAULT]}, ROOT / "benchmarks" / "README.md": blocks, **shown}


def with_table(text: str, table: str, name: str = "results") -> str:
    """Put a table between the two markers ``<!-- name -->`` and ``<!-- /name -->`` of a README.

    Raises:
        ValueError: where the text does not hold each marker once, in order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, start, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not (start and end) or opening in rest or closing in after:
        raise ValueError(f"expected one {opening} and after it one {closing}")
    return f"{before}{opening}\n{table}{closing}{after}"


def table(path: Path) -> str:
    """Return the table of a result file in Markdown: a line a stage, mean ± standard deviation over the seeds."""
    rows = read_csv(path)
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    names = [metric.removeprefix("test/") for metric in metrics]
    heads = ["", *names, "cost", "weight bytes", "differing integers"]
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])]
    for label, group in _groups(rows).items():
        values = [mean_and_spread([float(row["value"]) for row in group if row["metric"] == name]) for name in metrics]
        sizes = [_largest(group, column) for column in ("weight_bytes", "differing_integers")]
        lines.append(_line([label, *values, _mean_cost(group), *sizes]))
    seeds = len({row["seed"] for row in rows})
    setting = sorted({f"{row['machine']}, Python {row['python']}, torch {row['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Mean ± standard deviation over {seeds} seeds; {'; '.join(setting)}.", ""])


def plain_table(path: Path, note: str) -> str:
    """Return a result file as it is in Markdown."""
    rows = read_csv(path)
    lines = [_line([name.replace("_", " ") for name in rows[0]]), _line(["---", *["--:"] * (len(rows[0]) - 1)])]
    return "\n".join([*lines, *(_line(list(row.values())) for row in rows), "", f"{note} {path.stem}.", ""])


def ddp_table(path: Path) -> str:
    """Return the epochs over several GPUs in Markdown, a line a model and number of GPUs."""
    rows = read_csv(path)
    head = ["model", "GPUs", "Lightning", "float epoch, s", "QAT epoch, s", "QAT faster than float", "QAT efficiency"]
    lines = [_line(head), _line(["---", "--:", "---", *["--:"] * 4])]
    cells = {(row["model"], row["gpus"], row["lightning"], row["stage"]): row for row in rows}
    for run in dict.fromkeys((row["model"], row["gpus"], row["lightning"]) for row in rows):
        of_float, of_qat = (cells[(*run, stage)] for stage in ("float", "qat"))
        shown = [of_float["epoch_s"], of_qat["epoch_s"], of_qat["times_float"], of_qat["efficiency"]]
        lines.append(_line([*run, *(f"{float(value):.2f}" for value in shown)]))
    return "\n".join([*lines, "", f"Efficiency: an epoch's time on one GPU over that on as many. {path.stem}.", ""])


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


def _mean_cost(group: Sequence[dict[str, str]]) -> str:
    costs = [float(row["cost"]) for row in group if row.get("cost")]
    return f"{fmean(costs):.2f}" if costs else ""


def _largest(group: Sequence[dict[str, str]], column: str) -> str:
    numbers = [int(row[column]) for row in group if row[column]]
    return f"{max(numbers):,}" if numbers else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
