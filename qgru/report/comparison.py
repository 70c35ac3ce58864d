"""What each stage of a run is worth on the test set: float, before QAT, after it, and the exported file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qgru.callbacks import QuantizationLifecycle
from qgru.callbacks.packages import LightningDataModule, LightningModule, Trainer, rank_zero_info, rank_zero_only
from qgru.convert import quantized_layers
from qgru.direction import directions_of, parameter_name
from qgru.gru import QuantGRU
from qgru.report.distributions import draw_distributions
from qgru.report.onnx_stage import OnnxForward
from qgru.report.search import draw_search
from qgru.report.table import Row, print_rows, write_rows
from qgru.schema import WEIGHTS
from qgru.search import relative_cost
from qgru.targets import cost_table

_STAGES = ("float", "ptq", "qat")
_EXPORTED = "model_qdq.onnx"


def compare(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule, run_dir: str | Path
) -> list[Row]:
    """Evaluate every stage that a run left in its folder; print one table, write ``results.csv``, draw the grids.

    What a search of bit widths found is drawn as well. The stages are ``float.ckpt``, ``ptq.ckpt``, ``qat.ckpt``
    and ``model_qdq.onnx``, as `QuantizationLifecycle` writes them into its `export_dir`; a model without them is
    evaluated as it is, as ``float``. A data module with a method ``baselines() -> {name: {metric: value}}`` gets a
    line for each.

    Args:
        trainer: evaluates with its own precision, devices and limits; nothing reaches its loggers.
        model: as ``trainer.fit`` left it, and left alone.
        datamodule: gives the test set.
        run_dir: the run's folder.

    Returns:
        The rows of ``results.csv``, the trained model's last.
    """
    run_dir = Path(run_dir)
    found = [stage for stage in _STAGES if quantized_layers(model) and (run_dir / f"{stage}.ckpt").is_file()]
    with _without_loggers(trainer), _restored(model):
        rows = [] if found else _evaluate("float", trainer, model, datamodule)
        for stage in found:
            checkpoint = torch.load(run_dir / f"{stage}.ckpt", map_location="cpu", weights_only=True)
            model.load_state_dict(checkpoint["state_dict"])
            rows += _evaluate(stage, trainer, model, datamodule)
        if found and (run_dir / _EXPORTED).is_file():
            rows += _evaluate_onnx(trainer, model, datamodule, run_dir / _EXPORTED)
    rows = [*_baselines(datamodule), *rows]
    _write(rows, model, run_dir, trainer.callbacks)
    return rows


def weight_bytes(module: nn.Module) -> int:
    """Count the bytes of all parameters, those of a quantized layer at their bit widths, packed tensor by tensor."""
    bits = {id(parameter): 8 * parameter.element_size() for parameter in module.parameters()}
    for gru in quantized_layers(module).values():
        if gru.use_quantization and not gru.bitwidth_config.disable_quantization:
            bits.update(_weight_bits(gru))
    return sum(-(-parameter.numel() * bits[id(parameter)] // 8) for parameter in module.parameters())


def _weight_bits(gru: QuantGRU) -> Iterator[tuple[int, int]]:
    """Yield (id of the parameter, its operator's bit width)."""
    parameters = dict(gru.named_parameters())
    for direction in directions_of(gru):
        for operator in WEIGHTS:
            name = parameter_name(operator, direction)
            if name in parameters:
                yield id(parameters[name]), gru.get_quant_config(operator, *direction)["bitwidth"]


def _evaluate(stage: str, trainer: Trainer, model: LightningModule, datamodule: LightningDataModule) -> list[Row]:
    (metrics,) = trainer.test(model, datamodule=datamodule, verbose=False)
    size, cost = weight_bytes(model), None if stage == "float" else relative_cost(model)
    return [Row(stage, name, value, size, cost=cost) for name, value in metrics.items()]


def _evaluate_onnx(trainer: Trainer, model: LightningModule, datamodule: Any, path: Path) -> list[Row]:
    """Run the model's own test step with the exported file in place of its forward."""
    with OnnxForward(path, model) as forward:
        rows = _evaluate("onnx", trainer, model, datamodule)
    own = torch.tensor(forward.report.differing_integers, device=trainer.strategy.root_device)
    differing = int(trainer.strategy.reduce(own, reduce_op="sum"))  # every rank has seen its share of the test set
    return [replace(row, differing_integers=differing) for row in rows]


def _baselines(datamodule: LightningDataModule) -> list[Row]:
    baselines = datamodule.baselines() if hasattr(datamodule, "baselines") else {}
    return [Row(name, metric, value) for name, metrics in baselines.items() for metric, value in metrics.items()]


@rank_zero_only
def _write(rows: list[Row], model: nn.Module, run_dir: Path, callbacks: Sequence[Any]) -> None:
    write_rows(rows, run_dir / "results.csv")
    chosen = [callback.bit_widths for callback in callbacks if isinstance(callback, QuantizationLifecycle)]
    for bit_widths in chosen:
        if bit_widths.found is not None:
            draw_search(bit_widths.found, run_dir)
    if not draw_distributions(model, run_dir) and quantized_layers(model):
        rank_zero_info("qgru: no picture of the distributions: what calibration saw is not kept in checkpoints")
    print_rows(str(run_dir), (), {(): rows})
    for bit_widths in chosen:
        if bit_widths.target is not None and quantized_layers(model):
            print(f"{bit_widths.target.name}: {cost_table(model, bit_widths.target)}")


@contextmanager
def _without_loggers(trainer: Trainer) -> Iterator[None]:
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """In place, for not every model can be copied; loading a stage drops what calibration saw."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    observations = {layer: layer.observations for layer in quantized_layers(model).values()}
    try:
        yield
    finally:
        model.load_state_dict(state)
        for layer, seen in observations.items():
            layer.observations = seen
