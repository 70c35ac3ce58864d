"""Bit widths that a search finds against the presets: ``python -m benchmarks.search [--seeds 5] [--jobs 2]``.

On the recipes that tell bit widths apart, and on a stack of two layers in both directions: searched on the float model
of seed 1, under several budgets and with several discounts of the parameters' errors, then trained quantized from the
float models of all seeds, as ``train.py +quant=<file>`` does; seeds 2 and up are held out. Writes, per model,

- ``results/search-<model>.csv``: error before and after QAT of every configuration and seed,
- ``results/sensitivity-<model>.csv``: of every operator and width,
- ``results/prediction-<model>.csv``: predicted and measured error of random configurations of equal total bits,

``results/search-times.csv``, and pictures beside them. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningModule

import qgru
from benchmarks.recipes import RESULTS, RUNS, Job, composed, run_all
from qgru.configs import load_config
from qgru.report.table import read_rows, write_csv
from qgru.schema import OPERATORS, OPTIONAL
from qgru.search import Sensitivities, assign, load_rules, relative_cost
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import config_of, measured_alone
from qgru.stages import calibrate

BATCHES = 4  # as QuantizationLifecycle("auto") searches on
BUDGETS = (0.7, 0.8, 1.0)
DISCOUNTS = (1.0, 0.2, 0.05, 0.02)
PRESETS = ("w4a8", "int8", "int8_mixed", "int16")
OPERATOR_COLUMNS = tuple(name for name in OPERATORS if name != OPTIONAL)
COLUMNS = ("configuration", "budget", "discount", "seed", "cost", "stage", "metric", "value", *OPERATOR_COLUMNS)
PREDICTION_COLUMNS = ("configuration", "predicted", "measured", *OPERATOR_COLUMNS)
TIME_COLUMNS = ("model", "what", "seconds", "evaluations", "threads", "machine", "torch")
NARROWEST, WIDEST = 4, 12  # of the random configurations


@dataclass(frozen=True)
class Model:
    """A recipe, or a variant of one."""

    name: str
    recipe: str
    options: tuple[str, ...] = ()

    def job(self, preset: str, seed: int) -> Job:
        """Return a run of it."""
        return Job(self.recipe, preset, seed, self.options)


STACK = ("model.num_layers=2", "model.bidirectional=true", "model.hidden_size=16", "trainer.max_epochs=60")
MODELS = {
    model.name: model
    for model in (
        Model("mackey_glass", "mackey_glass"),
        Model("cascaded_tanks", "cascaded_tanks"),
        Model("stack", "cascaded_tanks", STACK),
    )
}


def main() -> None:
    """Search, train and collect, model by model; all trainings of all models go into one queue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to this number")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, each of one thread")
    arguments = parser.parse_args()
    unknown = set(arguments.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}; expected {', '.join(MODELS)}")
    models = [MODELS[name] for name in arguments.models or MODELS]
    seeds = range(1, arguments.seeds + 1)
    _finish([model.job(PRESETS[0], seed) for model in models for seed in seeds], arguments.jobs)
    found = {model: find(model) for model in models}
    jobs = [
        model.job(preset, seed)
        for model in models
        for preset in (*PRESETS, *(str(path) for path in found[model].values()))
        for seed in seeds
    ]
    _finish(jobs, arguments.jobs)
    for model in models:
        collect(model, found[model], seeds)


def _finish(jobs: list[Job], at_once: int) -> None:
    for number, (job, how) in enumerate(run_all(jobs, at_once), start=1):
        print(f"[{number}/{len(jobs)}] {job.recipe} {Path(job.preset).stem} seed {job.seed}: {how}", flush=True)


def find(model: Model, seed: int = 1) -> dict[tuple[float, float], Path]:
    """Search on the float model of a seed; return a bit width file for each budget and discount."""
    module, batches = observed(model, seed)
    evaluator, rules = Evaluator(module, batches), load_rules()
    known = measured_alone(evaluator, {name: rules.widths[name] for name in OPERATOR_COLUMNS})
    write_csv(known.rows(), list(known.rows()[0]), RESULTS / f"sensitivity-{model.name}.csv")
    predict(model, evaluator, known)
    paths = {}
    for budget, discount in itertools.product(BUDGETS, DISCOUNTS):
        steps = assign(known, evaluator.error, lambda config: relative_cost(module, config), rules, budget, discount)
        path = RUNS / "found" / model.name / f"budget_{budget}_discount_{discount}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        steps[-1].config.to_json(path)
        paths[budget, discount] = path
        print(f"{model.name} budget {budget} discount {discount}: cost {steps[-1].cost:.3f}", flush=True)
    return paths


def predict(model: Model, evaluator: Evaluator, known: Sensitivities, count: int = 40, mean_bits: int = 8) -> None:
    """Compare predicted and measured errors of random configurations of equal total bits."""
    rows = []
    for number, widths in enumerate(itertools.islice(equal_totals(mean_bits), count)):
        config = config_of(widths)
        rows.append(
            {"configuration": number, "predicted": known.predicted(config), "measured": evaluator.error(config)}
            | widths
        )
    write_csv(rows, PREDICTION_COLUMNS, RESULTS / f"prediction-{model.name}.csv")
    rho = spearman([row["predicted"] for row in rows], [row["measured"] for row in rows])
    print(f"{model.name}: rank correlation of predicted and measured error {rho:.3f}", flush=True)


def equal_totals(mean_bits: int) -> Iterator[dict[str, int]]:
    """Yield random widths whose sum is that of `mean_bits` everywhere."""
    generator = np.random.default_rng(5)
    while True:
        widths = generator.integers(NARROWEST, WIDEST + 1, len(OPERATOR_COLUMNS))
        if widths.sum() == mean_bits * len(OPERATOR_COLUMNS):
            yield dict(zip(OPERATOR_COLUMNS, widths.tolist(), strict=True))


def spearman(a: list[float], b: list[float]) -> float:
    """Return the correlation of the ranks (there are no ties)."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def observed(model: Model, seed: int) -> tuple[LightningModule, list[Any]]:
    """Load a float model, let its layers see the training data, and return it with the batches to search on."""
    job = model.job(PRESETS[0], seed)
    cfg = composed([*job.model_settings, f"seed={seed}"])
    data = instantiate(cfg.datamodule)
    data.setup("fit")
    module = qgru.convert(instantiate(cfg.model))
    module.load_state_dict(torch.load(job.first.folder / "float.ckpt", weights_only=True)["state_dict"])
    batches = list(itertools.islice(data.train_dataloader(), cfg.get("calibration_batches", 32)))
    calibrate(module, batches)
    return module.eval(), batches[:BATCHES]


def collect(model: Model, found: dict[tuple[float, float], Path], seeds: range) -> None:
    """Write the errors of all configurations and seeds."""
    module, _ = observed(model, 1)
    named = {preset: ({}, preset) for preset in PRESETS} | {
        path.stem: ({"budget": budget, "discount": discount}, str(path)) for (budget, discount), path in found.items()
    }
    rows = []
    for name, (how, preset) in named.items():
        config = load_config(preset)
        widths = {operator: config.operators[operator].bitwidth for operator in OPERATOR_COLUMNS}
        for seed in seeds:
            rows += [
                {"configuration": name, **how, "seed": seed, "cost": relative_cost(module, config), **widths}
                | {"stage": row.stage, "metric": row.metric, "value": row.value}
                for row in read_rows(model.job(preset, seed).folder / "results.csv")
                if row.stage in ("float", "ptq", "qat")
            ]
    write_csv(rows, COLUMNS, RESULTS / f"search-{model.name}.csv")


if __name__ == "__main__":
    main()
