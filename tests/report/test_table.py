import pytest

from qgru.report import Row, read_rows, write_rows
from qgru.report.table import mean_and_spread, print_rows

ROWS = [
    Row("majority", "test/accuracy", 0.5),
    Row("float", "test/accuracy", 0.1 + 0.2, 1320),
    Row("onnx", "test/accuracy", 0.9, 384, 0, 0.1 + 0.2),
]


def test_rows_survive_the_file_exactly(tmp_path):
    write_rows(ROWS, tmp_path / "results.csv")
    assert read_rows(tmp_path / "results.csv") == ROWS
    header, first, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "stage,metric,value,weight_bytes,differing_integers,cost"
    assert first == "majority,test/accuracy,0.5,,,"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"], "no partial file stays"


def test_a_file_from_before_there_were_costs_is_read(tmp_path):
    old = "stage,metric,value,weight_bytes,differing_integers\nfloat,test/rmse,0.5,100,\nonnx,test/rmse,0.75,25,3\n"
    (tmp_path / "results.csv").write_text(old)
    rows = read_rows(tmp_path / "results.csv")
    assert rows == [Row("float", "test/rmse", 0.5, 100), Row("onnx", "test/rmse", 0.75, 25, 3)]


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([0.25], "0.25"), ([1.0, 2.0, 3.0], "2 ± 1"), ([0.97, 0.98], "0.975 ± 0.0071"), ([5.0, 5.0], "5 ± 0")],
)
def test_mean_and_sample_deviation(values, text):
    assert mean_and_spread(values) == text


def test_the_table_has_a_line_a_stage_and_the_worst_count(capsys):
    worse = Row("onnx", "test/accuracy", 0.7, 384, 3, 0.5)
    print_rows("title", ("quant",), {("int8",): [*ROWS, worse], ("w4a8",): [Row("float", "test/loss", 2.0, 1320)]})
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["int8", "majority", "0.5"] in lines
    assert ["int8", "float", "0.3", "1,320"] in lines
    assert ["int8", "onnx", "0.8", "±", "0.14", "384", "0.4", "3"] in lines
    assert ["w4a8", "float", "2", "1,320"] in lines


def test_numbers_are_whole_beside_many_columns(capsys):
    """A search over many widths, on a terminal of 80 columns."""
    keys = [f"quant.operator_config.gate.{name}" for name in ("z_out", "r_out", "g_out", "g_pre", "z_pre", "r_pre")]
    print_rows("title", keys, {tuple("8" * len(keys)): [Row("onnx", "test/nrmse", 0.01157634, 13_572, 0, 51.94)]})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "onnx" in line]
    assert line.replace("│", " ").split() == [*("8" * len(keys)), "onnx", "0.01158", "13,572", "51.9", "0"]
