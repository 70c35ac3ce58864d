"""How long a search takes: ``python -m benchmarks.search_timing [--device cuda]``.

Layers of the recipes' shapes, and a larger one on a GPU, with PyTorch's initial weights: the time of measuring every
operator at eleven widths alone, and of a whole search at int8's cost. Writes ``results/times-search-<device>.csv``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import qgru
from benchmarks.recipes import RESULTS, machine
from qgru.files import write_csv
from qgru.search import search, sensitivities
from qgru.stages import calibrate

COLUMNS = ("layer", "batches", "sensitivities_s", "search_s", "measured", "threads", "machine", "torch")


@dataclass(frozen=True)
class Case:
    """A layer and what it reads."""

    name: str
    layer: dict[str, object]
    shape: tuple[int, int, int]  # batch, time, features
    batches: int = 4


CPU = (
    Case("Mackey-Glass: 32", {"hidden_size": 32}, (128, 18, 1)),
    Case("cascaded tanks: 32", {"hidden_size": 32}, (16, 128, 1)),
    Case("speaker identification: 64", {"hidden_size": 64}, (32, 20, 12)),
    Case("2 bidirectional layers of 16", {"hidden_size": 16, "num_layers": 2, "bidirectional": True}, (16, 128, 1)),
)
CUDA = (Case("256 at T 200", {"hidden_size": 256}, (64, 200, 128)), *CPU)


def main() -> None:
    """Time every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = torch.device(parser.parse_args().device)
    here = {"threads": torch.get_num_threads(), "machine": machine(), "torch": torch.__version__}
    if device.type == "cuda":
        here["machine"] = torch.cuda.get_device_name()
    rows = []
    for case in CUDA if device.type == "cuda" else CPU:
        rows.append({"layer": case.name, "batches": case.batches, **times(case, device), **here})
        print(rows[-1], flush=True)
    write_csv(rows, COLUMNS, RESULTS / f"times-search-{device.type}.csv")


def times(case: Case, device: torch.device) -> dict[str, float]:
    """Return the seconds of both, calibrated and warmed up."""
    torch.manual_seed(1)
    gru = nn.GRU(case.shape[-1], batch_first=True, **case.layer)
    model = qgru.convert(nn.Sequential(gru)).to(device).eval()
    batches = [torch.randn(case.shape, device=device).cumsum(1) * 0.1 for _ in range(case.batches)]
    calibrate(model, batches)
    sensitivities(model, batches, (8,))
    seconds, _ = _timed(lambda: sensitivities(model, batches), device)
    search_seconds, found = _timed(lambda: search(model, batches, budget=1.0), device)
    return {"sensitivities_s": round(seconds, 1), "search_s": round(search_seconds, 1), "measured": len(found.measured)}


def _timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
