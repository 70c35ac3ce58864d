"""A sweep ends with the same file and table whichever of Hydra's launchers runs its jobs."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from .sweeping import sweep

JOBS = ["+quant=int8", "quant.operator_config.gate.z_out.bitwidth=3,8"]


def launcher(name: str, setting: str) -> Any:
    """The command line's settings, for a test that is skipped where the launcher is not installed."""
    extra = name.partition("_")[0]
    is_missing = find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None
    skip = pytest.mark.skipif(is_missing, reason=f"needs pip install 'qgru[{extra}]'")
    return pytest.param([f"hydra/launcher={name}", setting], id=name, marks=skip)


JOBLIB = launcher("joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = launcher("submitit_local", "hydra.launcher.timeout_min=5")
RAY = launcher("ray", "+hydra.launcher.ray.init.num_cpus=2")


def table(folder: Path, stdout: str) -> list[str]:
    """The sweep's table; Ray prints what its workers said at any time, their name in front."""
    lines = [line for line in stdout.splitlines() if "(_run_job pid=" not in line]
    start = lines.index(f"{folder}/results.csv: 2 jobs")
    return list(takewhile(lambda line: "└" not in line, lines[start + 1 :]))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[str]]:
    """The file and the table of jobs that ran one after another in one process."""
    folder = tmp_path_factory.mktemp("basic")
    result = sweep(folder, *JOBS)
    assert result.returncode == 0, result.stderr
    return (folder / "results.csv").read_bytes(), table(folder, result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("launch", [JOBLIB, SUBMITIT, RAY])
def test_the_file_and_the_table_are_those_of_one_process(
    launch: list[str], tmp_path: Path, expected: tuple[bytes, list[str]]
) -> None:
    result = sweep(tmp_path, *JOBS, *launch)
    assert result.returncode == 0, result.stderr
    content, lines = expected
    assert (tmp_path / "results.csv").read_bytes() == content
    assert table(tmp_path, result.stdout) == lines
    assert [line.split()[1] for line in lines if "onnx" in line] == ["3", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("launch", [JOBLIB])
def test_a_job_that_fails_beside_others_is_named_and_theirs_are_kept(launch: list[str], tmp_path: Path) -> None:
    result = sweep(tmp_path, "ckpt_path=missing.ckpt,null", *launch)
    assert result.returncode == 1
    assert "job 0 failed: recipe=toy ckpt_path=missing.ckpt" in result.stdout
    with (tmp_path / "results.csv").open() as file:
        rows = [(row["job"], row["stage"]) for row in csv.DictReader(file)]
    assert rows == [("0", "failed"), ("1", "majority"), ("1", "float")]
