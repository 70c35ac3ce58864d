"""Run the recipes over seeds and presets: ``python -m benchmarks.recipes [--seeds 5] [--jobs 2] [recipe ...]``.

Each row of ``benchmarks/results/recipe-<name>.csv`` is what ``python train.py recipe=... +quant=... seed=...`` gives.
The presets of a seed share its float stage: each resumes from the checkpoint that the first one wrote just before
calibration, which changes no integer. Interrupted, the script goes on where it was, and it runs anew what other
settings gave; ``make tables`` then writes the tables into the recipes' READMEs.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import qgru.hydra  # noqa: F401  composes as train.py does
from qgru.files import read_csv, write_csv
from qgru.report.table import FIELDS, read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "outputs" / "benchmarks"
FLOAT = "float"  # the run without a preset
BUDGET = " at "  # "auto at 0.8" is the preset `auto` with that budget
PRESETS = {
    "speaker_identification": ("int8", "int8_mixed"),
    "sea_surface_temperature": ("int8", "int8_mixed"),
    "mackey_glass": ("w4a8", "int8", "int8_mixed", "int16", "auto at 0.8", "auto at 1.0"),
    "cascaded_tanks": ("w4a8", "int8", "int8_mixed", "int16", "auto at 0.8", "auto at 1.0"),
}
PACKAGES = ("torch", "lightning", "onnxruntime")
FAILED = "failed, see its output.txt"
COLUMNS = ("preset", "seed", *FIELDS, "machine", "python", *PACKAGES)
_HYDRA = Lock()  # it composes for one thread at a time


class Job(NamedTuple):
    """A run of train.py; `preset` is a name or the path of a JSON file, `options` are other settings of the recipe."""

    recipe: str
    preset: str
    seed: int
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        model, preset = "-".join([self.recipe, *self.options]), Path(self.preset).name.replace(" ", "-")
        return RUNS / model.replace("=", "_") / preset / f"seed-{self.seed}"

    @property
    def model_settings(self) -> list[str]:
        """What the float model depends on, beside the seed."""
        return [f"recipe={self.recipe}", *self.options]

    @property
    def overrides(self) -> list[str]:
        """The settings, without the folder."""
        given = [*self.model_settings, f"seed={self.seed}"]
        if self.preset == FLOAT:
            return given
        name, _, budget = self.preset.partition(BUDGET)
        return [*given, f"+quant={name}", *([f"quant.budget={budget}"] if budget else []), *_share_float_stage(self)]

    @property
    def first(self) -> Job:
        """The job that writes the float stage."""
        return self._replace(preset=PRESETS[self.recipe][0])


def main() -> None:
    """Run what is missing, and collect it recipe by recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="recipe", help=f"of {', '.join(PRESETS)}; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to this number")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, each of one thread")
    arguments = parser.parse_args()
    unknown = set(arguments.recipes) - set(PRESETS)
    if unknown:
        parser.error(f"unknown recipe {', '.join(sorted(unknown))}; expected {', '.join(PRESETS)}")
    jobs = [
        Job(recipe, preset, seed)
        for recipe in arguments.recipes or PRESETS
        for preset in (*PRESETS[recipe], FLOAT)
        for seed in range(1, arguments.seeds + 1)
    ]
    failed = []
    for number, (job, how) in enumerate(run_all(jobs, arguments.jobs), start=1):
        print(f"[{number}/{len(jobs)}] {job.recipe} {job.preset} seed {job.seed}: {how}", flush=True)
        collect(job.recipe)
        failed += [str(job.folder)] if how == FAILED else []
    sys.exit("\n".join(["failed:", *failed]) if failed else 0)


def run_all(jobs: Iterable[Job], at_once: int = 1) -> Iterator[tuple[Job, str]]:
    """Run jobs in processes of their own; yield each as it ends, and how that went."""
    followers: dict[Job, list[Job]] = {}
    for job in jobs:
        following = followers.setdefault(job if job.preset == FLOAT else job.first, [])
        if job.preset not in (FLOAT, job.first.preset):
            following.append(job)
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(run, job): job for job in followers}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                running |= {pool.submit(run, follower): follower for follower in followers.get(job, ())}
                yield job, future.result()


def run(job: Job) -> str:
    """Run one job unless its results are there; return how that went."""
    folder, overrides = job.folder, job.overrides
    if is_finished(folder, overrides):
        return "there already"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # small layers; and so the machine's size changes no bit
        ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    return FAILED if ended.returncode else f"{time.perf_counter() - start:.0f} s"


def is_finished(folder: Path, overrides: Sequence[str]) -> bool:
    """Say whether a folder holds the results of these very settings: a preset or recipe may have changed since."""
    if not (folder / "results.csv").is_file():
        return False
    return OmegaConf.load(folder / ".hydra" / "config.yaml") == OmegaConf.create(OmegaConf.to_yaml(composed(overrides)))


def has_float_stage(job: Job) -> bool:
    """Say whether the float stage of a job's seed is there, from the settings that it depends on."""
    folder = job.first.folder
    if not (folder / "float-stage" / "end.ckpt").is_file():
        return False
    was, now = OmegaConf.load(folder / ".hydra" / "config.yaml"), composed(job.first.overrides)
    keys = ("seed", "datamodule", "model", "trainer")
    return all(was[key] == OmegaConf.create(OmegaConf.to_yaml(now))[key] for key in keys)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration that train.py gets."""
    with _HYDRA, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def _share_float_stage(job: Job) -> list[str]:
    """Resume from the float stage of the recipe's first preset; that preset writes it."""
    checkpoint = job.first.folder / "float-stage" / "end.ckpt"
    if job != job.first:
        return [f"ckpt_path={checkpoint}"]
    epochs = composed(job.model_settings).trainer.max_epochs
    settings = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "dirpath": str(checkpoint.parent),
        "filename": checkpoint.stem,
        "every_n_epochs": round(0.7 * epochs),  # where QuantizationLifecycle calibrates
    }
    return ["+callbacks.float_stage={" + ",".join(f"{key}:{value}" for key, value in settings.items()) + "}"]


def collect(recipe: str) -> None:
    """Write the rows of all finished jobs of a recipe; those that were written before keep their machine."""
    path = RESULTS / f"recipe-{recipe}.csv"
    here = {"machine": machine(), "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    there = {_identity(row): row for row in (read_csv(path) if path.is_file() else [])}
    rows = [
        {"preset": preset, "seed": run.parent.name.removeprefix("seed-"), **asdict(row)}
        for preset in (FLOAT, *PRESETS[recipe])
        for run in sorted(Job(recipe, preset, 0).folder.parent.glob("seed-*/results.csv"))
        for row in read_rows(run)
    ]
    made = [{**row, **{key: there.get(_identity(row), here)[key] for key in here}} for row in rows]
    RESULTS.mkdir(exist_ok=True)
    write_csv(made, COLUMNS, path)


def _identity(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("preset", "seed", "stage", "metric", "value"))


def machine() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
