"""One ``results.csv`` and one table for a whole Hydra sweep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qgru.files import read_csv, write_csv
from qgru.report.front import draw_front
from qgru.report.table import FIELDS, Row, print_rows, read_rows, write_rows

log = logging.getLogger(__name__)


_RESULTS = "results.csv"
_PICTURE = "front.png"


@dataclass(frozen=True)
class Job:
    """One job of a sweep that has ended: its folder's name, what was overridden, and its rows (none: it failed)."""

    name: str
    overrides: dict[str, str]
    rows: Sequence[Row]


class SweepReport(Callback):
    """Hydra callback: gathers the jobs' ``results.csv`` into the sweep's folder; prints their table at the end.

    ``front.png`` shows there what is quantized: error over cost, a mark a job.

    The file is written anew after every job, so that it is there as well where Hydra stops at a failed one. Jobs may
    run side by side, in processes or on machines that share the folder. A job's own ``results.csv`` says that it has
    ended; that of a failed one has no rows.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Gather what there is so far; say which job failed."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            log.error("job %s failed: %s", config.hydra.job.num, " ".join(config.hydra.overrides.task))
            _end(Path(config.hydra.runtime.output_dir))
        _gather(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather all jobs, print the table and draw the front."""
        folder = Path(config.hydra.sweep.dir)
        for job_folder in _job_folders(folder):
            _end(job_folder)
        jobs = _gather(folder)
        varied = [key for key in _keys(jobs) if len({job.overrides.get(key) for job in jobs}) > 1]
        keys = [key for key in varied if key != "seed"]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for job in jobs:
            groups.setdefault(tuple(job.overrides.get(key, "") for key in keys), []).extend(job.rows)
        columns = [key.removesuffix(".bitwidth") for key in keys]
        print_rows(f"{folder / _RESULTS}: {len(jobs)} jobs", columns, groups)
        draw_front(read_csv(folder / _RESULTS), folder / _PICTURE)
        for job in jobs:
            if not job.rows:
                log.error("job %s has no results: %s", job.name, job.overrides)


def read_jobs(folder: str | Path) -> list[Job]:
    """Read every job of a sweep's folder that has ended, in the order of their numbers."""
    ended = [path for path in _job_folders(Path(folder)) if (path / _RESULTS).exists()]
    return [_read_job(path, path.relative_to(folder)) for path in ended]


def _job_folders(folder: Path) -> list[Path]:
    return sorted((path.parent.parent for path in folder.glob("**/.hydra/overrides.yaml")), key=_by_number)


def _read_job(folder: Path, name: Path) -> Job:
    pairs = [str(item).lstrip("+~").partition("=") for item in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    overrides = {key: value for key, _, value in pairs}
    overrides.setdefault("seed", str(OmegaConf.load(folder / ".hydra" / "config.yaml").get("seed", "")))
    return Job(str(name), overrides, read_rows(folder / _RESULTS))


def _end(folder: Path) -> None:
    """Mark a job that has ended without results as failed."""
    if not (folder / _RESULTS).exists():
        write_rows([], folder / _RESULTS)


def _gather(folder: Path) -> list[Job]:
    """Write the sweep's file, again until no job has ended meanwhile: what another process wrote may be newer."""
    written, jobs = None, read_jobs(folder)
    while repr(jobs) != written:  # as text, for NaN differs from itself
        _write(jobs, folder)
        written, jobs = repr(jobs), read_jobs(folder)
    return jobs


def _write(jobs: Sequence[Job], folder: Path) -> None:
    lines = [
        {"job": job.name, **job.overrides, **(asdict(row) if row else {"stage": "failed"})}
        for job in jobs
        for row in job.rows or [None]
    ]
    write_csv(lines, ["job", *_keys(jobs), *FIELDS], folder / _RESULTS)


def _keys(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(key for job in jobs for key in job.overrides))


def _by_number(folder: Path) -> tuple[int, str]:
    return (int(folder.name), "") if folder.name.isdigit() else (-1, str(folder))
