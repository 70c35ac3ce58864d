"""Epochs of float and quantized training over several GPUs, Lightning's default strategy for them.

Every GPU gets batches of its own of one size (weak scaling), so that an epoch should last as long on four as on one:
``efficiency`` is an epoch's time on one GPU over the time on that many. Batches are on the GPU before training starts.

Over several GPUs Lightning 2.6 reads a value back from the device before every step, to learn whether another process
was told to stop (Lightning-AI/pytorch-lightning#21487): no step is prepared while the one before it still runs. Rows
whose ``lightning`` is "without its check" leave that out, which no setting of a Trainer does.

    python -m benchmarks.ddp --devices 1 2 4
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qgru.callbacks import QuantizationLifecycle
from qgru.convert import quantized_layers

RESULTS = Path(__file__).parent / "results"
AS_IT_IS, UNCHECKED = "as it is", "without its check"
STEPS, FLOAT_EPOCHS, QAT_EPOCHS = 60, 2, 5
MODELS = {
    "2 layers of 256": ((64, 500, 128, 256), {"num_layers": 2}),
    "3 bidirectional layers of 512": ((32, 500, 128, 512), {"num_layers": 3, "bidirectional": True}),
}


class Batches(Dataset):
    """One batch, again and again."""

    def __init__(self, shape: tuple[int, ...], ranks: int) -> None:
        self.batch, self.count = torch.randn(shape, device="cuda"), STEPS * ranks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.batch


class Model(LightningModule):
    """A GRU whose output has to become small."""

    def __init__(self, inputs: int, hidden: int, **options: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states."""
        return self.gru(x)[0]

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        """Return the loss."""
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), 1e-4)


class Clock(Callback):
    """Seconds of every epoch, the float ones and the quantized ones apart; the first of each is a warm-up."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[float]] = {"float": [], "qat": []}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Tensor, index: int) -> None:
        """Start with the first batch: calibration is over then."""
        if index == 0:
            torch.cuda.synchronize()
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop."""
        torch.cuda.synchronize()
        is_quantized = any(layer.use_quantization for layer in quantized_layers(module).values())
        self.epochs["qat" if is_quantized else "float"].append(time.perf_counter() - self.start)

    def medians(self) -> dict[str, float]:
        """Return each stage's median."""
        return {stage: statistics.median(seconds[1:]) for stage, seconds in self.epochs.items()}


def work(name: str, devices: int, precision: str, lightning: str) -> None:
    """Train on `devices` GPUs; rank zero prints the medians as JSON."""
    warnings.simplefilter("ignore")
    if lightning == UNCHECKED:
        _TrainingEpochLoop._broadcast_sigterm_tensor = lambda loop: None
    (batch, steps, inputs, hidden), options = MODELS[name]
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    clock = Clock()
    lifecycle = QuantizationLifecycle("int8", calibrate_at_epoch=FLOAT_EPOCHS, calibration_batches=devices)
    trainer = Trainer(
        accelerator="gpu", devices=devices, max_epochs=FLOAT_EPOCHS + QAT_EPOCHS, precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lifecycle, clock],
    )  # fmt: skip
    data = Batches((steps, batch, inputs), devices)
    trainer.fit(Model(inputs, hidden, **options), DataLoader(data, batch_size=None, shuffle=False))
    if trainer.is_global_zero:
        print("\n" + json.dumps(clock.medians()), flush=True)


def rows(devices: list[int], precisions: list[str]) -> Iterator[dict[str, object]]:
    """Yield a result for every model, precision, stage and number of GPUs."""
    for name in MODELS:
        for precision in precisions:
            alone: dict[str, float] = {}
            for count, lightning in [(n, how) for n in devices for how in (AS_IT_IS, UNCHECKED)[: 1 + (n > 1)]]:
                command = [sys.executable, "-m", "benchmarks.ddp", "--work", name, str(count), precision, lightning]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    raise RuntimeError(result.stderr[-3000:])
                medians = json.loads(result.stdout.strip().splitlines()[-1])
                for stage, seconds in medians.items():
                    yield {
                        "model": name,
                        "precision": precision,
                        "stage": stage,
                        "gpus": count,
                        "lightning": lightning,
                        "epoch_s": round(seconds, 4),
                        "efficiency": round(alone.setdefault(stage, seconds) / seconds, 3),
                        "times_float": round(medians["float"] / seconds, 2),
                    }


def main() -> None:
    """Run, print a line a result, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="the first is compared with")
    parser.add_argument("--precisions", nargs="+", default=["32-true"])
    parser.add_argument("--output", type=Path, help="where to write; default: by the names of the GPU and of torch")
    parser.add_argument(
        "--work", nargs=4, metavar=("MODEL", "DEVICES", "PRECISION", "LIGHTNING"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.work:
        name, devices, precision, lightning = arguments.work
        work(name, int(devices), precision, lightning)
        return
    name = f"ddp-{torch.cuda.get_device_name().replace(' ', '-')}-torch{torch.__version__.split('+')[0]}.csv"
    results = []
    for row in rows(arguments.devices, arguments.precisions):
        results.append(row)
        print(*row.values(), flush=True)
        with (arguments.output or RESULTS / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(results)


if __name__ == "__main__":
    main()
