import csv
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

import qgru.report.sweep as sweep_module
from qgru.report import Row, SweepReport, write_rows
from qgru.report.sweep import read_jobs

BITS = "quant.operator_config.gate.z_out.bitwidth"


def job(folder: Path, overrides: list[str], values: dict[str, float] | None, seed: int = 1) -> None:
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"seed": seed}), folder / ".hydra" / "config.yaml")
    if values is not None:
        rows = [Row(stage, "test/rmse", value, 100, 0, 0.75) for stage, value in values.items()]
        write_rows(rows, folder / "results.csv")


@pytest.fixture
def sweep(tmp_path) -> SimpleNamespace:
    """Twelve jobs: two widths, six seeds; the last one failed."""
    for number in range(12):
        bits, seed = 4 + 4 * (number // 6), 1 + number % 6
        values = None if number == 11 else {"float": 1.0, "qat": 2.0 + seed / bits}
        job(tmp_path / str(number), ["+quant=int8", f"{BITS}={bits}", f"seed={seed}"], values)
    config = OmegaConf.create(
        {
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "sweep": {"dir": str(tmp_path)},
                "job": {"num": 11},
                "runtime": {"output_dir": str(tmp_path / "11")},
                "overrides": {"task": ["seed=6"]},
            }
        }
    )
    return SimpleNamespace(folder=tmp_path, config=config)


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_jobs_come_in_numeric_order(sweep):
    SweepReport().on_multirun_end(sweep.config)
    assert [found.name for found in read_jobs(sweep.folder)] == [str(number) for number in range(12)]


def test_a_seed_that_was_not_swept_is_the_configurations(tmp_path):
    job(tmp_path / "0", ["+quant=int8"], {"float": 1.0}, seed=7)
    assert read_jobs(tmp_path)[0].overrides == {"quant": "int8", "seed": "7"}


def test_one_file_holds_every_job_and_the_failed_one(sweep):
    SweepReport().on_multirun_end(sweep.config)
    rows = lines(sweep.folder)
    assert list(rows[0]) == [
        *("job", "quant", BITS, "seed"),
        *("stage", "metric", "value", "weight_bytes", "differing_integers", "cost"),
    ]
    assert len(rows) == 11 * 2 + 1
    assert rows[3] == {
        **{"job": "1", "quant": "int8", BITS: "4", "seed": "2"},
        **{"stage": "qat", "metric": "test/rmse", "value": "2.5", "weight_bytes": "100", "differing_integers": "0"},
        "cost": "0.75",
    }
    assert rows[-1]["job"] == "11" and rows[-1]["stage"] == "failed" and rows[-1]["value"] == ""


def test_the_table_is_the_mean_over_seeds_and_names_what_failed(sweep, capsys, caplog):
    SweepReport().on_multirun_end(sweep.config)
    table = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["4", "float", "1", "±", "0", "100", "0.75", "0"] in table
    assert ["4", "qat", "2.875", "±", "0.47", "100", "0.75", "0"] in table
    assert ["8", "qat", "2.375", "±", "0.2", "100", "0.75", "0"] in table
    assert not any("int8" in cells for cells in table), "what does not vary is no column"
    assert "job 11" in caplog.text


def test_a_failed_job_leaves_the_file_up_to_date_and_an_error(sweep, caplog):
    with caplog.at_level(logging.ERROR):
        SweepReport().on_job_end(sweep.config, JobReturn(status=JobStatus.FAILED))
    assert "job 11 failed: seed=6" in caplog.text
    assert len(lines(sweep.folder)) == 23


def test_a_job_that_still_runs_is_not_failed_and_not_read(sweep):
    """Launchers run jobs side by side; Hydra writes a job's settings just before it starts."""
    (sweep.folder / "11" / ".hydra" / "overrides.yaml").write_text("- +quant=int8\n- 'seed")
    SweepReport().on_job_end(sweep.config, JobReturn(status=JobStatus.COMPLETED))
    assert {row["job"] for row in lines(sweep.folder)} == {str(number) for number in range(11)}


def test_a_job_that_ends_while_another_writes_the_file_is_in_it(sweep, monkeypatch):
    """As in two processes: the one that has read too early writes last."""
    write, written = sweep_module.write_csv, []

    def write_late(rows, columns, path):
        written.append(path)
        if len(written) == 1:
            shutil.rmtree(sweep.folder / "11")
            job(sweep.folder / "11", ["+quant=int8", f"{BITS}=8", "seed=6"], {"float": float("nan")})
            SweepReport().on_job_end(sweep.config, JobReturn(status=JobStatus.COMPLETED))
        write(rows, columns, path)

    monkeypatch.setattr(sweep_module, "write_csv", write_late)
    SweepReport().on_job_end(sweep.config, JobReturn(status=JobStatus.COMPLETED))
    assert [row["value"] for row in lines(sweep.folder) if row["job"] == "11"] == ["nan"]


def test_a_single_run_is_no_sweep(sweep):
    sweep.config.hydra.mode = RunMode.RUN
    SweepReport().on_job_end(sweep.config, JobReturn(status=JobStatus.COMPLETED))
    assert not (sweep.folder / "results.csv").exists()
