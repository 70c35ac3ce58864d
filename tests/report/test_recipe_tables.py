"""The tables in the recipes' READMEs are those of the result files, and say what the files say."""

from pathlib import Path

import pytest

from benchmarks.recipes import COLUMNS, PRESETS
from benchmarks.tables import table, tables, with_table
from qgru.files import write_csv

START, END = "<!-- results -->", "<!-- /results -->"
ROOT = Path(__file__).parents[2]
SETTING = {"machine": "some CPU", "python": "3.11.2", "torch": "2.13.0", "lightning": "2.6.6", "onnxruntime": "1.31.1"}


def result(preset: str, seed: int, stage: str, value: float, size="", differing="", cost="") -> dict[str, object]:
    cells = {"stage": stage, "metric": "test/rmse", "value": value, "weight_bytes": size, "cost": cost}
    return {"preset": preset, "seed": seed, **cells, "differing_integers": differing, **SETTING}


@pytest.fixture
def results(tmp_path) -> Path:
    rows = []
    for seed in (1, 2, 3):
        rows += [result("float", seed, "last value", 9.0), result("float", seed, "float", float(seed), "4000")]
        for preset, better in (("int8", 0.0), ("int16", 0.5)):
            rows += [
                result(preset, seed, "last value", 9.0),
                result(preset, seed, "float", 4.0 + seed, "4000"),
                result(preset, seed, "ptq", 8.0 - better, "1000", cost=f"{seed + better}"),
                result(preset, seed, "onnx", 7.0, "1000", str(seed - 1)),
            ]
    write_csv(rows, COLUMNS, tmp_path / "results.csv")
    return tmp_path / "results.csv"


def test_a_line_a_stage_over_the_seeds(results):
    assert table(results).splitlines() == [
        "|  | rmse | cost | weight bytes | differing integers |",
        "| --- | --: | --: | --: | --: |",
        "| last value | 9 ± 0 |  |  |  |",
        "| float | 2 ± 1 |  | 4,000 |  |",
        "| float, at calibration | 6 ± 1 |  | 4,000 |  |",
        "| int8 before QAT | 8 ± 0 | 2.00 | 1,000 |  |",
        "| int8 in ONNX Runtime | 7 ± 0 |  | 1,000 | 2 |",
        "| int16 before QAT | 7.5 ± 0 | 2.50 | 1,000 |  |",
        "| int16 in ONNX Runtime | 7 ± 0 |  | 1,000 | 2 |",
        "",
        "Mean ± standard deviation over 3 seeds; some CPU, Python 3.11.2, torch 2.13.0.",
    ]


def test_the_table_goes_between_the_markers_and_nothing_else_changes():
    text = f"# A\n{START}\nold\n{END}\nrest\n"
    assert with_table(text, "new\n") == f"# A\n{START}\nnew\n{END}\nrest\n"
    assert with_table(with_table(text, "new\n"), "new\n") == with_table(text, "new\n")


@pytest.mark.parametrize("text", ["none", START, END, f"{END}{START}", f"{START}{END}{START}{END}"])
def test_a_readme_without_one_pair_of_markers_is_an_error(text):
    with pytest.raises(ValueError, match="expected one"):
        with_table(text, "new\n")


@pytest.mark.parametrize("readme", tables(), ids=lambda path: path.parent.name)
def test_the_readmes_show_the_result_files(readme):
    text = readme.read_text()
    for name, block in tables()[readme].items():
        assert with_table(text, block, name) == text, "run make tables"


def test_every_recipe_has_results():
    assert set(PRESETS) == {path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")}
    assert {readme.parent.name for readme in tables()} == {ROOT.name, "benchmarks", *PRESETS}
