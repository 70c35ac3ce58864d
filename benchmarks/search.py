"""Bit widths that a search finds against the presets: ``python -m benchmarks.search [--seeds 5] [--jobs 2]``.

On the recipes that tell bit widths apart, and on a stack of two layers in both directions: searched on the float model
of seed 1, under several budgets and with several discounts of the parameters' errors, then trained quantized from the
float models of all seeds; seeds 2 and up are held out. ``benchmarks/search_settings.py`` lists them. Writes
``results/search-<model>.csv`` (error before and after QAT), ``results/sensitivity-<model>.csv`` and
``results/prediction-<model>.csv`` (predicted and measured error of random configurations of equal total bits).
Interrupted, it goes on where it was. ``benchmarks/search_report.py`` draws and tabulates them.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, LightningModule

import qgru
from benchmarks.recipes import RESULTS, RUNS, composed, has_float_stage, machine, run_all
from benchmarks.search_settings import MODELS, VARIANTS, Model, Setting
from qgru.callbacks import QuantizationLifecycle
from qgru.configs import load_config
from qgru.files import write_csv
from qgru.report.search import spearman
from qgru.report.table import read_rows
from qgru.schema import BitwidthConfig
from qgru.search import relative_cost, search
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import SEARCHED, config_of, measured_alone, widths_of
from qgru.stages import calibrate

FOLDER = RUNS / "search"
BATCHES = 4  # that errors are measured on
COLUMNS = (
    "configuration",
    "target",
    "budget",
    "discount",
    "seed",
    "cost",
    "metric",
    "float",
    "before",
    "after",
    "machine",
    "torch",
)
NARROWEST, MEAN, WIDEST = 4, 8, 12  # of the random configurations


def main() -> None:
    """Search, train and collect; what can be done at once is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to this number")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, each of one thread")
    arguments = parser.parse_args()
    unknown = set(arguments.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}; expected {', '.join(MODELS)}")
    models, seeds = [MODELS[name] for name in arguments.models or MODELS], range(1, arguments.seeds + 1)
    first = [model.first(seed) for model in models for seed in seeds]
    for job, how in run_all([job for job in first if not has_float_stage(job)], arguments.jobs):
        print(f"{job.recipe} seed {job.seed}, float: {how}", flush=True)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"), _quiet) as pool:
        searched = [model for model in models if model.settings]
        found = _all(pool, find, [(model, s) for model in searched for s in model.settings])
        _all(pool, predict, [(model,) for model in searched])
        tasks = [
            (model, seed, name, config)
            for model in models
            for name, config in configurations(model, found).items()
            for seed in seeds
        ]
        done = _all(pool, train, tasks)
        rows = {task: done[task] for task in tasks if task in done}
    for model in models:
        write_csv([rows[task] for task in rows if task[0] == model], (*COLUMNS, *SEARCHED), _file("search", model))
    sys.exit("some failed" if len(rows) < len(tasks) else 0)


def configurations(model: Model, found: Mapping[tuple, BitwidthConfig]) -> dict[str, BitwidthConfig]:
    """Return what to train, by name."""
    wide = {name: config_of({**dict.fromkeys(SEARCHED, 8), **widths}) for name, widths in VARIANTS.items()}
    own = {str(setting): found[model, setting] for setting in model.settings if (model, setting) in found}
    return {preset: load_config(preset) for preset in model.presets} | ({} if model.options else wide) | own


def _all(pool: Executor, function: Callable[..., Any], tasks: list[tuple]) -> dict[tuple, Any]:
    """Call a function with every task's arguments, in the pool; say what each gave, and leave out what failed."""
    futures, results = {pool.submit(function, *task): task for task in tasks}, {}
    for number, future in enumerate(as_completed(futures), start=1):
        task = futures[future]
        if future.exception() is None:
            text, results[task] = future.result()
        else:
            text = f"failed: {task[1:]}: {future.exception()!r}"
        print(f"[{number}/{len(tasks)}] {task[0].name} {function.__name__}: {text}", flush=True)
    return results


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "qgru"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _file(kind: str, model: Model) -> Path:
    return RESULTS / f"{kind}-{model.name}.csv"


def find(model: Model, setting: Setting) -> tuple[str, BitwidthConfig]:
    """Search on the float model of seed 1."""
    path = FOLDER / model.name / f"{setting}.json"
    if not path.is_file():
        module, batches = observed(model)
        with patch.object(sys.modules["qgru.search.search"], "QAT_DISCOUNT", setting.discount):
            found = search(module, batches, setting.budget, target=setting.rules)
        if setting.target == "fpga":
            rows = found.sensitivities.rows()
            write_csv(rows, list(rows[0]), _file("sensitivity", model))
        path.parent.mkdir(parents=True, exist_ok=True)
        found.chosen[0].config.to_json(path)
    config = load_config(path)
    return f"{setting} {list(widths_of(config).values())}", config


def predict(model: Model, count: int = 40) -> tuple[str, None]:
    """Compare predicted and measured errors of random configurations of equal total bits."""
    module, batches = observed(model)
    evaluator = Evaluator(module, batches)
    known = measured_alone(evaluator, dict.fromkeys(SEARCHED, range(NARROWEST, WIDEST + 1)))
    rows = []
    for number, widths in enumerate(islice(equal_totals(), count)):
        config = config_of(widths)
        errors = {"predicted": known.predicted(config), "measured": evaluator.error(config)}
        rows.append({"configuration": number, "cost": relative_cost(module, config), **errors, **widths})
    write_csv(rows, list(rows[0]), _file("prediction", model))
    rho = spearman(*(np.array([row[key] for row in rows]) for key in ("predicted", "measured")))
    return f"rank correlation of predicted and measured error {rho:.3f}", None


def equal_totals() -> Iterator[dict[str, int]]:
    """Yield random widths of one sum."""
    generator = np.random.default_rng(5)
    while True:
        widths = generator.integers(NARROWEST, WIDEST + 1, len(SEARCHED))
        if widths.sum() == MEAN * len(SEARCHED):
            yield dict(zip(SEARCHED, widths.tolist(), strict=True))


def observed(model: Model) -> tuple[LightningModule, list[Any]]:
    """Return the float model of seed 1 after it saw training data, and the batches to measure errors on."""
    module, data, _ = made(model, 1)
    qgru.convert(module)
    checkpoint = torch.load(model.first(1).folder / "float.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    batches = list(islice(data.train_dataloader(), 32))
    calibrate(module, batches)
    return module.eval(), batches[:BATCHES]


def made(model: Model, seed: int) -> tuple[LightningModule, LightningDataModule, int]:
    """Return a model, its data, and the number of epochs."""
    cfg = composed([*model.first(seed).model_settings, f"seed={seed}"])
    data = instantiate(cfg.datamodule)
    data.setup("fit")
    return instantiate(cfg.model), data, cfg.trainer.max_epochs


class Score(lightning.Callback):
    """Takes the test metric before the first quantized step and at the end."""

    def __init__(self, data: LightningDataModule) -> None:
        self.data, self.before, self.after = data, float("nan"), float("nan")

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        """Score what was calibrated just now."""
        if self.before != self.before:
            self.before = self.score(pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        """Score what was trained."""
        self.after = self.score(pl_module)

    @torch.no_grad()
    def score(self, module: LightningModule) -> float:
        """Return the test metric."""
        module.eval()
        metric = module.score.clone()
        for x, y in self.data.test_dataloader():
            metric.update(module(x), y)
        module.train()
        return float(metric.compute())


def train(model: Model, seed: int, name: str, config: BitwidthConfig) -> tuple[str, dict[str, Any]]:
    """Train quantized from the float model of a seed; return the errors."""
    path = FOLDER / model.name / name / f"seed-{seed}.json"
    cost = relative_cost(qgru.convert(made(model, seed)[0]), config)
    row = {"configuration": name, "seed": seed, "cost": cost, **widths_of(config)}
    setting = next((s for s in model.settings if str(s) == name), None)
    row |= vars(setting) if setting else {}
    done = json.loads(path.read_text()) if path.is_file() else None
    if done is None or any(done.get(key) != value for key, value in row.items()):
        done = row | _errors(model, seed, config) | {"machine": machine(), "torch": torch.__version__}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(done))
    return f"{name} seed {seed} cost {cost:.3f}: {done['before']:.5f}, {done['after']:.5f}", done


def _errors(model: Model, seed: int, config: BitwidthConfig) -> dict[str, Any]:
    lightning.seed_everything(seed, workers=True, verbose=False)
    module, data, epochs = made(model, seed)
    score = Score(data)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    lifecycle = QuantizationLifecycle({"GRU_config": config.to_nested()})
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        callbacks=[lifecycle, score],
        **quiet,
    )
    folder = model.first(seed).folder
    trainer.fit(module, datamodule=data, ckpt_path=folder / "float-stage" / "end.ckpt")
    of_float = next(row.value for row in read_rows(folder / "results.csv") if row.stage == "float")
    return {"metric": module.metric, "float": of_float, "before": score.before, "after": score.after}


if __name__ == "__main__":
    main()
