"""Run the recipes over seeds and presets: ``python benchmarks/recipes.py [--seeds 5] [recipe ...]``.

Each row of ``benchmarks/results/recipe-<name>.csv`` is what ``python train.py recipe=... +quant=... seed=...`` gives.
The presets of a seed share its float stage: each resumes from the checkpoint that the first one wrote just before
calibration, which changes no integer. Interrupted, the script goes on where it was, and it runs anew what other
settings gave; ``make tables`` then writes the tables into the recipes' READMEs.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import qgru.hydra  # noqa: F401  composes as train.py does
from qgru.report.table import FIELDS, read_rows, write_csv

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "outputs" / "benchmarks"
FLOAT = "float"  # the run without a preset
PRESETS = {
    "speaker_identification": ("int8", "int8_mixed"),
    "sea_surface_temperature": ("int8", "int8_mixed"),
    "mackey_glass": ("w4a8", "int8", "int8_mixed", "int16"),
}
PACKAGES = ("torch", "lightning", "onnxruntime")
COLUMNS = ("preset", "seed", *FIELDS, "machine", "python", *PACKAGES)


def main() -> None:
    """Run what is missing, recipe by recipe, and collect it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="recipe", help=f"of {', '.join(PRESETS)}; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to this number")
    arguments = parser.parse_args()
    unknown = set(arguments.recipes) - set(PRESETS)
    if unknown:
        parser.error(f"unknown recipe {', '.join(sorted(unknown))}; expected {', '.join(PRESETS)}")
    for recipe in arguments.recipes or PRESETS:
        jobs = [(seed, preset) for seed in range(1, arguments.seeds + 1) for preset in (FLOAT, *PRESETS[recipe])]
        for number, (seed, preset) in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {recipe} {preset} seed {seed}: ", end="", flush=True)
            print(run(recipe, preset, seed), flush=True)
            collect(recipe)


def run(recipe: str, preset: str, seed: int) -> str:
    """Run one job unless its results are there; return how that went."""
    folder = folder_of(recipe, preset, seed)
    overrides = [f"recipe={recipe}", f"seed={seed}"]
    if preset != FLOAT:
        overrides += [f"+quant={preset}", *_share_float_stage(recipe, preset, seed)]
    if is_finished(folder, overrides):
        return "there already"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *overrides]
        subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=True)
    return f"{time.perf_counter() - start:.0f} s"


def is_finished(folder: Path, overrides: Sequence[str]) -> bool:
    """Say whether a folder holds the results of these very settings: a preset or recipe may have changed since."""
    if not (folder / "results.csv").is_file():
        return False
    return OmegaConf.load(folder / ".hydra" / "config.yaml") == OmegaConf.create(OmegaConf.to_yaml(composed(overrides)))


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration that train.py gets."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def _share_float_stage(recipe: str, preset: str, seed: int) -> list[str]:
    """Resume from the float stage of the recipe's first preset; that preset writes it."""
    first = PRESETS[recipe][0]
    checkpoint = folder_of(recipe, first, seed) / "float-stage" / "end.ckpt"
    if preset != first:
        return [f"ckpt_path={checkpoint}"]
    epochs = composed([f"recipe={recipe}"]).trainer.max_epochs
    settings = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "dirpath": str(checkpoint.parent),
        "filename": checkpoint.stem,
        "every_n_epochs": round(0.7 * epochs),  # where QuantizationLifecycle calibrates
    }
    return ["+callbacks.float_stage={" + ",".join(f"{key}:{value}" for key, value in settings.items()) + "}"]


def folder_of(recipe: str, preset: str, seed: int) -> Path:
    """Return where a job's files are."""
    return RUNS / recipe / preset / f"seed-{seed}"


def collect(recipe: str) -> None:
    """Write the rows of all finished jobs of a recipe."""
    here = {"machine": machine(), "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    rows = [
        {"preset": preset, "seed": path.parent.name.removeprefix("seed-"), **asdict(row), **here}
        for preset in (FLOAT, *PRESETS[recipe])
        for path in sorted((RUNS / recipe / preset).glob("seed-*/results.csv"))
        for row in read_rows(path)
    ]
    RESULTS.mkdir(exist_ok=True)
    write_csv(rows, COLUMNS, RESULTS / f"recipe-{recipe}.csv")


def machine() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
