"""`hparams_search=bitwidths`: Optuna chooses the widths, and gets what train.py returns."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qgru import load_config

from .sweeping import sweep

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'qgru[optuna]'")
pytestmark = pytest.mark.slow
PREFIX, SUFFIX = "quant.operator_config.", ".bitwidth"
SEARCH = Path(__file__).parents[2] / "conf" / "hparams_search" / "bitwidths.yaml"


def search(folder: Path, *arguments: str) -> tuple[dict, list[dict[str, str]]]:
    """What was found best, and the last row of every trial."""
    result = sweep(folder, "hparams_search=bitwidths", "hydra.sweeper.n_trials=2", *arguments)
    assert result.returncode == 0, result.stderr
    with (folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "onnx"]
    return OmegaConf.to_container(OmegaConf.load(folder / "optimization_results.yaml")), rows


def widths(row: dict[str, str]) -> dict[str, int]:
    return {key: int(value) for key, value in row.items() if key.startswith(PREFIX)}


def test_the_best_trial_is_the_one_with_the_best_metric(tmp_path: Path) -> None:
    best, rows = search(tmp_path, "hydra.sweeper.direction=maximize")
    assert [row["job"] for row in rows] == ["0", "1"]
    assert best["best_value"] == max(float(row["value"]) for row in rows)
    assert best["best_params"] in [widths(row) for row in rows]
    assert set(best["best_params"]) == set(OmegaConf.load(SEARCH).hydra.sweeper.params)
    for row in rows:
        assert row["differing_integers"] == "0"
        operators = load_config(tmp_path / row["job"] / "bitwidth_config.json").operators
        chosen = {key: operators[key.removeprefix(PREFIX).removesuffix(SUFFIX)].bitwidth for key in widths(row)}
        assert chosen == widths(row)


def test_the_metric_is_weighed_against_the_bytes(tmp_path: Path) -> None:
    objectives = ["optimized_metric=[test/accuracy,weight_bytes]", "hydra.sweeper.direction=[maximize,minimize]"]
    best, rows = search(tmp_path, *objectives)
    trials = {tuple(widths(row).items()): [float(row["value"]), float(row["weight_bytes"])] for row in rows}
    assert best["solutions"]
    for solution in best["solutions"]:
        assert solution["values"] == trials[tuple(solution["params"].items())]
