"""Time the CPU kernels against `torch.nn.GRU` and the reference: one run, one CSV, the same threads for all.

    python -m benchmarks.cpu                     # all shapes, benchmarks/results/cpu-<processor>-torch<version>.csv
    python -m benchmarks.cpu --shapes 1x1000x64x128 --configs int8

A shape is ``batch x time x input x hidden``. Times are milliseconds, the least of a few calls taken in turns. The
reference runs on few steps and rows where it would take minutes, and its time is scaled to the shape's.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.steps import Step, step_of
from qgru import QuantGRU
from qgru.files import write_csv
from qgru.ops import backends
from qgru.ops.cpu import backend

SHAPES = "32x100x64x128 64x200x128x256 128x500x256x256 32x1000x256x512 128x200x512x1024 1x1000x64x128 256x100x80x64"
CONFIGS = "int8 int8_mixed"
MODES = ("inference", "training")
RESULTS = Path(__file__).parent / "results"
REFERENCE_STEPS = 10


def milliseconds(step: Step) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def quantized(shape: tuple[int, int, int, int], config: str) -> tuple[QuantGRU, Tensor]:
    """Return a calibrated layer and its input (time, batch, input)."""
    batch, steps, inputs, hidden = shape
    torch.manual_seed(0)
    gru = QuantGRU(inputs, hidden)
    gru.load_bitwidth_config(config)
    gru.calibrating = True
    with torch.no_grad():
        gru(torch.randn(min(steps, 20), min(batch, 8), inputs))
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru, torch.randn(steps, batch, inputs)


def on_reference(step: Step) -> Step:
    """Return the step with the kernels switched off."""

    def run() -> None:
        with backends.forced("reference"):
            step()

    return run


def check(gru: QuantGRU, x: Tensor) -> tuple[int, float]:
    """Return the differing integers and the gradients' largest relative error, on few steps and rows."""
    few = x[:8, :8].contiguous()
    weights = torch.randn(*few.shape[:2], gru.hidden_size)
    outputs, gradients = [], []

    def run() -> None:
        gru.zero_grad()
        outputs.append(gru(few)[0])
        (outputs[-1] * weights).sum().backward()
        gradients.append([parameter.grad.double() for parameter in gru.parameters()])

    run()
    on_reference(run)()
    gru.zero_grad()
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*gradients, strict=True)]
    return int((outputs[0] != outputs[1]).sum()), max(errors)


def measure(shape: tuple[int, int, int, int], config: str, mode: str, seconds: float) -> dict[str, object]:
    """Return a row of the table."""
    gru, x = quantized(shape, config)
    differing, error = check(gru, x)
    plain = nn.GRU(*shape[2:])
    steps = {"float": step_of(plain, x, mode), "ours": step_of(gru, x, mode)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    until = time.perf_counter() + seconds
    while len(times["ours"]) < 3 or (time.perf_counter() < until and len(times["ours"]) < 50):
        for name, step in steps.items():
            times[name].append(milliseconds(step))
    few = x[:REFERENCE_STEPS]
    reference = on_reference(step_of(gru, few, mode))
    reference()
    scaled = milliseconds(reference) * len(x) / len(few)
    best = {name: min(values) for name, values in times.items()}
    return {
        "shape": "x".join(map(str, shape)),
        "config": config,
        "mode": mode,
        "float_ms": round(best["float"], 3),
        "ours_ms": round(best["ours"], 3),
        "reference_ms": round(scaled, 1),
        "ratio": round(best["float"] / best["ours"], 2),
        "reference_ratio": round(scaled / best["ours"], 1),
        "differing_integers": differing,
        "gradient_error": f"{error:.1e}",
    }


def processor() -> str:
    """Return the processor's name and threads, fit for a file name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.split(":")[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{'-'.join(name.split())}-{torch.get_num_threads()}threads-{backend.PATHS[backend.path()]}"


def main() -> None:
    """Measure what the command line names, print it and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--configs", nargs="+", default=CONFIGS.split())
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row, at least three calls")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    path = arguments.output or RESULTS / f"cpu-{processor()}-torch{torch.__version__.partition('+')[0]}.csv"
    rows = []
    for config in arguments.configs:
        for text in arguments.shapes:
            batch, steps, inputs, hidden = map(int, text.split("x"))
            for mode in arguments.modes:
                rows.append(measure((batch, steps, inputs, hidden), config, mode, arguments.seconds))
                print(*rows[-1].values(), flush=True)
    write_csv(rows, list(rows[0]), path)


if __name__ == "__main__":
    main()
