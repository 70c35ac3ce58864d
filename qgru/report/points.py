"""Quantization-aware training of several points of one search: each a run of its own, all from one float stage."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from qgru.callbacks.packages import LightningModule, Trainer, classes, rank_zero_only, rank_zero_warn
from qgru.files import read_csv, write_csv
from qgru.report.front import draw_front
from qgru.report.table import FIELDS, Row, print_rows
from qgru.search.files import POINTS, PRESET, SEARCH
from qgru.stages.calibration import uncalibrated_layers

_CHECKPOINT = "float_stage.ckpt"
_OF_A_SEARCH = ("budget", "max_error", "points", "logits")


class FloatStage(*classes("callbacks.Checkpoint")):
    """Keeps a whole checkpoint of the end of the float stage, from which other runs can start quantized.

    Args:
        path: of the checkpoint. That of an earlier run goes as a new one starts; a run that begins with a checkpoint of
            the float stage begins with a copy of it, and one that is resumed later leaves what is there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, where the float stage is not over."""
        if trainer.is_global_zero and uncalibrated_layers(pl_module):
            if trainer.ckpt_path is None:
                self.path.unlink(missing_ok=True)
            elif Path(trainer.ckpt_path) != self.path:
                shutil.copyfile(trainer.ckpt_path, self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it anew after every epoch in float, for the stage may end early."""
        if uncalibrated_layers(pl_module):
            trainer.save_checkpoint(self.path)


def callbacks(cfg: DictConfig) -> list[FloatStage]:
    """Return what a run needs besides its own callbacks in order to train several points."""
    return [FloatStage(_folder() / _CHECKPOINT)] if _number(cfg) > 1 else []


def train_points(cfg: DictConfig, run: Callable[[DictConfig], list[Row]], rows: list[Row]) -> None:
    """Train the other points that a run's search chose, where it was asked for several.

    Each is trained in ``points/<number>`` of the run's folder, with its ``found.yaml``, from the float stage of the
    run; from the seed alone where the run had none. In the end ``points.csv`` holds the rows of all points,
    ``points.png`` shows their errors over their costs, and one table has a group of lines a point.

    Args:
        cfg: of the run, with ``quant.points``.
        run: trains one configuration and returns its rows.
        rows: of the run, which has trained the first point.
    """
    if _number(cfg) < 2:
        return
    folder, groups = _folder(), {1: rows}
    if not (folder / SEARCH).is_file():
        rank_zero_warn(f"qgru: {folder} holds no {SEARCH}, so no other points are trained; resume a run in its folder")
        return
    chosen = {int(line["chosen"]) for line in read_csv(folder / SEARCH) if line["chosen"]}
    for number in sorted(chosen - {1}):
        of_point = folder / POINTS / str(number)
        with _output_folder(of_point):
            own = run(_of_point(cfg, of_point / f"{PRESET}.yaml", folder / _CHECKPOINT))
        groups[number] = [row for row in own if row.cost is not None]  # baselines and float are the first point's
    _write(folder, groups)


def _number(cfg: DictConfig) -> int:
    quant = cfg.get("quant")
    return quant.get("points", 1) if isinstance(quant, DictConfig) else 1


def _of_point(cfg: DictConfig, preset: Path, checkpoint: Path) -> DictConfig:
    """Return a run's configuration with a preset for the search, and going on where the float stage ended."""
    changed = copy.deepcopy(cfg)
    with open_dict(changed):
        for name in _OF_A_SEARCH:
            changed.callbacks.quantization.pop(name, None)
        changed.callbacks.quantization.config = str(preset)
        changed.quant.points = 1
        changed.ckpt_path = str(checkpoint) if checkpoint.is_file() else None
    return changed


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """Have ``${hydra:runtime.output_dir}`` be another folder."""
    runtime = HydraConfig.get().runtime
    kept = runtime.output_dir
    with read_write(runtime):
        runtime.output_dir = str(folder)
    try:
        yield
    finally:
        with read_write(runtime):
            runtime.output_dir = kept


@rank_zero_only
def _write(folder: Path, groups: dict[int, Sequence[Row]]) -> None:
    lines: list[dict[str, Any]] = [
        {"quant": "auto", "point": number, **asdict(row)} for number, rows in groups.items() for row in rows
    ]
    write_csv(lines, ["quant", "point", *FIELDS], folder / "points.csv")
    draw_front(read_csv(folder / "points.csv"), folder / "points.png")
    print_rows(f"{folder / 'points.csv'}: {len(groups)} points", ["point"], {(str(n),): r for n, r in groups.items()})
