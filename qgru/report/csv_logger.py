"""Training metrics as CSV, in one file for a run and what resumes it."""

from __future__ import annotations

import warnings
from pathlib import Path

from qgru.callbacks.packages import classes, rank_zero_only
from qgru.files import read_csv


class ResumableCSVLogger(classes("loggers.CSVLogger")[0]):  # trainers of either package log to any logger
    """Lightning's `CSVLogger`; a resumed run goes on in the latest version instead of beginning another.

    Steps that are trained again replace what was logged of them, so that the file ends as an uninterrupted run's.

    Args:
        save_dir: the run's folder.
        name: the folder in it that holds ``version_0``, ``version_1``, ...
        ckpt_path: the checkpoint that the run resumes from; None begins a new version.
    """

    def __init__(self, save_dir: str, name: str = "metrics", ckpt_path: str | None = None) -> None:
        versions = [path.name.removeprefix("version_") for path in (Path(save_dir) / name).glob("version_*")]
        numbers = [int(version) for version in versions if version.isdigit()]
        version = max(numbers) if ckpt_path is not None and numbers else None
        super().__init__(save_dir, name, version)
        self._earlier: list[dict[str, str]] = []
        if version is not None:
            self._read_earlier()

    @property
    def _metrics(self) -> Path:
        return Path(self.log_dir) / "metrics.csv"

    @rank_zero_only
    def _read_earlier(self) -> None:
        if self._metrics.is_file():
            rows = read_csv(self._metrics)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
                self.experiment  # noqa: B018  (Lightning deletes the file as it makes this)
            self._earlier = [{key: cell for key, cell in row.items() if cell} for row in rows]
            self._write(self._earlier)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log a row; the first one drops what the file holds of this step and later ones."""
        if self._earlier and step is not None:
            self._metrics.unlink()
            self._write([row for row in self._earlier if int(row["step"]) < step])
            self._earlier = []
        super().log_metrics(metrics, step)

    def _write(self, rows: list[dict[str, str]]) -> None:
        self.experiment.metrics = list(rows)
        self.experiment.save()
