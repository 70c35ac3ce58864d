"""Time exported files in ONNX Runtime against its own float GRU, on the same threads: one run, one CSV.

    python -m benchmarks.onnxruntime   # benchmarks/results/onnxruntime-<processor>-onnxruntime<version>.csv

A shape is ``batch x time x input x hidden``. Called in turns, many times: the float file of a layer, and its ``qdq``
file by either exporter (Loop and Scan). Times are the least milliseconds of a whole sequence; the ratio is the median
of the turns' own, for a machine's clock and its other work change from turn to turn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnxruntime
import torch

from benchmarks.cpu import RESULTS, processor, quantized
from qgru.export import export_onnx
from qgru.files import write_csv

SHAPES = "1x100x40x128 32x100x64x128"
CONFIGS = "int8 int8_mixed w4a8"
LEAST_CALLS = 20


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Return a file, ready to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(text: str, config: str, threads: int, seconds: float) -> list[dict[str, object]]:
    """Return the rows of a shape and a configuration, one an exporter."""
    gru, x = quantized(tuple(map(int, text.split("x"))), config)
    sessions, differing = {}, {}
    with TemporaryDirectory() as folder:
        for name, format, dynamo in (("float", "float", False), ("Loop", "qdq", False), ("Scan", "qdq", True)):
            path = Path(folder, f"{name}.onnx")
            differing[name] = export_onnx(gru, x, path, format, dynamo=dynamo).differing_integers
            sessions[name] = session(path, threads)
    feeds = {name: {found.get_inputs()[0].name: x.numpy()} for name, found in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times["float"]) < LEAST_CALLS:
        for name, found in sessions.items():
            start = time.perf_counter()
            found.run(None, feeds[name])
            times[name].append((time.perf_counter() - start) * 1e3)
    best = {name: round(min(found), 3) for name, found in times.items()}
    return [
        {
            "shape": text,
            "config": config,
            "threads": threads,
            "loop": name,
            "float_ms": best["float"],
            "qdq_ms": best[name],
            "ratio": round(median(ours / its for ours, its in zip(times[name], times["float"], strict=True)), 2),
            "differing_integers": differing[name],
        }
        for name in ("Loop", "Scan")
    ]


def main() -> None:
    """Measure what the command line names, print it and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--configs", nargs="+", default=CONFIGS.split())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each shape and configuration")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    path = arguments.output or RESULTS / f"onnxruntime-{processor()}-onnxruntime{onnxruntime.__version__}.csv"
    rows = []
    for text in arguments.shapes:
        for config in arguments.configs:
            rows += measure(text, config, arguments.threads, arguments.seconds)
            for row in rows[-2:]:
                print(*row.values(), flush=True)
    write_csv(rows, list(rows[0]), path)


if __name__ == "__main__":
    main()
