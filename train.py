"""Train, and with ``+quant=int8_mixed`` quantize, export and compare. ``conf/train.yaml`` lists the choices."""

from typing import Any

import hydra
import lightning
from hydra.utils import instantiate
from lightning.fabric.utilities.warnings import disable_possible_user_warnings
from omegaconf import DictConfig

import qgru.hydra  # noqa: F401  gives the presets their types
from qgru.report import Row, compare, points
from qgru.report.metrics import check_metrics


def nodes(group: DictConfig | None) -> list[Any]:
    """Instantiate every named node of a group, leaving out those set to null."""
    return [instantiate(node) for node in (group or {}).values() if node is not None]


def run(cfg: DictConfig) -> list[Row]:
    """Train, and compare the stages."""
    lightning.seed_everything(cfg.seed, workers=True)
    datamodule = instantiate(cfg.datamodule, _convert_="all")
    model = instantiate(cfg.model, _convert_="all")
    callbacks = [*nodes(cfg.callbacks), *points.callbacks(cfg)]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=nodes(cfg.logger))
    check_metrics(trainer, model, datamodule, cfg.optimized_metric)
    trainer.fit(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
    return compare(trainer, model, datamodule, trainer.default_root_dir)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | list[float]:
    """Run one job; return the recipe's ``optimized_metric`` of the last stage, for Hydra's sweepers.

    A list of names gives a list of values; ``weight_bytes`` is one of the names.
    """
    if isinstance(cfg.get("quant"), str):
        raise ValueError(
            f"quant is the plain string {cfg.quant!r}; expected a preset's settings. Write +quant={cfg.quant} on the "
            "command line, with the presets on Hydra's search path: hydra.searchpath=[pkg://qgru.conf]"
        )
    if "target" in (cfg.callbacks or {}).get("quantization", {}) and "quant" not in cfg:
        raise ValueError("+target is what a chip takes, and nothing is quantized; expected +quant=auto or a preset too")
    rows = run(cfg)
    points.train_points(cfg, run, rows)
    values = {"weight_bytes": rows[-1].weight_bytes} | {row.metric: row.value for row in rows}
    names = cfg.optimized_metric
    return values[names] if isinstance(names, str) else [values[name] for name in names]


if __name__ == "__main__":
    disable_possible_user_warnings()  # advice on worker and logging counts, wrong for small data
    main()
