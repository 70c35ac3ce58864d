"""Which operators need more than 8 bits: ``python -m benchmarks.sensitivity [--seeds 3] [recipe ...]``.

From the float checkpoints that ``benchmarks/recipes.py`` left, without QAT: the test metric with every operator at 8
bits, with every one at 16, with one alone at 16 and the rest at 8, and with one alone at 8 and the rest at 16.
Writes ``benchmarks/results/sensitivity-<recipe>.csv`` and a picture of it beside it: this is what the preset
``int8_mixed`` was chosen by.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningDataModule, LightningModule

import qgru
from benchmarks.recipes import PRESETS, RESULTS, ROOT, folder_of
from qgru.configs import load_config
from qgru.report.table import read_csv, write_csv
from qgru.schema import OPERATORS, OPTIONAL, BitwidthConfig
from qgru.stages import calibrate

NARROW, WIDE = 8, 16
COLUMNS = ("operator", "bits", "other_bits", "seed", "metric", "value")


def main() -> None:
    """Measure recipe by recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="recipe", help=f"of {', '.join(PRESETS)}; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to this number")
    arguments = parser.parse_args()
    for recipe in arguments.recipes or PRESETS:
        rows = []
        for seed in range(1, arguments.seeds + 1):
            model, data = observed_model(recipe, seed)
            for operator, bits, other_bits in variants():
                value = score(model, data, with_bits(operator, bits, other_bits))
                rows.append(dict(zip(COLUMNS, (operator, bits, other_bits, seed, model.metric, value), strict=True)))
                print(
                    f"{recipe} seed {seed}: {operator:15} {bits:2} bits, others {other_bits:2}: {value:.4f}", flush=True
                )
        write_csv(rows, COLUMNS, RESULTS / f"sensitivity-{recipe}.csv")
        draw(recipe)


def draw(recipe: str) -> None:
    """Draw what each operator alone costs at 8 bits, and what it alone gains at 16, over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_csv(RESULTS / f"sensitivity-{recipe}.csv")
    means = {
        key: sum(float(row["value"]) for row in group) / len(group)
        for key, group in _grouped(rows, ("operator", "bits", "other_bits")).items()
    }
    names = [name for name, bits, _ in means if name != "all" and bits == str(NARROW)][::-1]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axis, bits, others in ((axes[0], NARROW, WIDE), (axes[1], WIDE, NARROW)):
        everywhere = means["all", str(others), str(others)]
        axis.barh(names, [means[name, str(bits), str(others)] - everywhere for name in names], left=everywhere)
        axis.axvline(everywhere, color="black", linewidth=1)
        axis.set_title(f"one operator at {bits} bits, the others at {others}", fontsize=10)
        axis.set_xlabel(rows[0]["metric"].removeprefix("test/"))
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{recipe}: before QAT, mean of {len(_grouped(rows, ('seed',)))} seeds; line: no exception")
    figure.savefig(RESULTS / f"sensitivity-{recipe}.png", dpi=110)
    plt.close(figure)


def _grouped(rows: list[dict[str, str]], columns: tuple[str, ...]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def variants() -> Iterator[tuple[str, int, int]]:
    """Yield (operator, its bits, the others' bits)."""
    yield "all", NARROW, NARROW
    yield "all", WIDE, WIDE
    for name in OPERATORS:
        if name != OPTIONAL:
            yield name, WIDE, NARROW
            yield name, NARROW, WIDE


def with_bits(operator: str, bits: int, other_bits: int) -> BitwidthConfig:
    """Return the preset int8 with other widths."""
    widths = {name: bits if name == operator else other_bits for name in OPERATORS}
    operators = load_config("int8").operators
    return BitwidthConfig({name: type(c)(widths[name], c.is_symmetric, c.is_unsigned) for name, c in operators.items()})


def observed_model(recipe: str, seed: int) -> tuple[LightningModule, LightningDataModule]:
    """Load a float checkpoint and let its layers see the training data."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"recipe={recipe}", f"seed={seed}"])
    data: LightningDataModule = instantiate(cfg.datamodule)
    data.setup("fit")
    checkpoint = torch.load(folder_of(recipe, PRESETS[recipe][0], seed) / "float.ckpt", weights_only=True)
    model = qgru.convert(instantiate(cfg.model))
    model.load_state_dict(checkpoint["state_dict"])
    calibrate(model, data.train_dataloader())
    return model, data


@torch.no_grad()
def score(model: LightningModule, data: LightningDataModule, config: BitwidthConfig) -> float:
    """Return the test metric of a configuration."""
    for layer in qgru.quantized_layers(model).values():
        layer.load_bitwidth_config(config)
        layer.use_quantization = True
    model.eval()
    metric = model.score.clone()
    for x, y in data.test_dataloader():
        metric.update(model(x), y)
    return float(metric.compute())


if __name__ == "__main__":
    main()
