"""The tables of the searches' results say what the files say."""

import pytest

from benchmarks.search_report import discount_table, lines_of, search_table
from qgru.files import write_csv
from qgru.search.assign import QAT_DISCOUNT


@pytest.fixture
def results(tmp_path):
    rows = []
    for seed in (3, 1, 2):
        shared = {"seed": seed, "metric": "test/nrmse", "float": 0.5, "machine": "some CPU", "torch": "2.13.0"}
        rows.append({"configuration": "int8", "cost": 1.0, "before": 9 + seed, "after": seed, **shared})
        for discount in (QAT_DISCOUNT, 1.0):
            found = {"configuration": f"found {discount}", "target": "fpga", "budget": 0.8, "discount": discount}
            rows.append({**found, "cost": 0.76, "before": 9, "after": 2 * seed + discount, **shared})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(rows, columns, tmp_path / "search-tank.csv")
    return tmp_path / "search-tank.csv"


def test_a_line_a_configuration_and_held_out_seeds_apart(results):
    assert search_table(results).splitlines() == [
        "|  | cost | before QAT | after QAT | after QAT, held-out seeds |",
        "| --- | --: | --: | --: | --: |",
        "| int8 | 1.00 | 11 ± 1 | 2 ± 1 | 2.5 ± 0.71 |",
        "| fpga, budget 0.8 | 0.76 | 9 ± 0 | 4.05 ± 2 | 5.05 ± 1.4 |",
        "",
        "tank: nrmse, mean ± standard deviation over 3 seeds; some CPU, torch 2.13.0.",
    ]


def test_errors_over_discounts(results):
    assert discount_table(results).splitlines()[:3] == [
        f"| budget | discount {QAT_DISCOUNT:g} | discount 1 |",
        "| --- | --: | --: |",
        "| 0.8 | 4.05 ± 2 | 5 ± 2 |",
    ]


def test_seeds_are_in_order(results):
    assert [line.after for line in lines_of(results) if line.name == "int8"] == [(1.0, 2.0, 3.0)]
