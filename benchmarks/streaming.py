"""Time one step of a stream on the CPU against `torch.nn.GRUCell`: one run, one CSV, the same threads for both.

    python -m benchmarks.streaming               # benchmarks/results/streaming-<processor>-torch<version>.csv
    python -m benchmarks.streaming --shapes 1x64x128 --configs int8

A shape is ``batch x input x hidden``. Times are microseconds, the median of many calls taken in turns, a few dozen of
each at a time; every step goes on from the state before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cpu import RESULTS, processor, quantized
from qgru import QuantGRU
from qgru.files import write_csv
from qgru.ops import backends

SHAPES = "1x16x32 1x64x128 1x128x256 1x256x512 16x64x128"
CONFIGS = "int8 int8_mixed w4a8 w8a16"
IN_A_ROW = 40


class Stream:
    """A stream's input and state, and what takes one step of it."""

    def __init__(self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, state: Tensor) -> None:
        self._step, self._x, self._state = step, x, state

    def __call__(self) -> None:
        """Take a step."""
        _, self._state = self._step(self._x, self._state)


def streams(gru: QuantGRU, batch: int) -> dict[str, Stream]:
    """Return what is compared."""
    cell, x = nn.GRUCell(gru.input_size, gru.hidden_size), torch.randn(batch, gru.input_size)
    state = torch.zeros(1, batch, gru.hidden_size)
    return {
        "cell": Stream(lambda x, h: (h, cell(x, h)), x, state[0]),
        "step": Stream(gru.step, x, state),
        "forward": Stream(gru, x.unsqueeze(0), state),
    }


def differing(gru: QuantGRU, batch: int) -> int:
    """Return how many integers of a stream of 50 steps differ from the reference's sequence."""
    x, state, wrong = torch.randn(50, batch, gru.input_size), None, 0
    with backends.forced("reference"):
        want, want_state = gru(x)
    for x_t, want_t in zip(x, want, strict=True):
        y_t, state = gru.step(x_t, state)
        wrong += int((y_t != want_t).sum())
    return wrong + int((state != want_state).sum())


def measure(batch: int, inputs: int, hidden: int, config: str, seconds: float) -> dict[str, object]:
    """Return a row of the table."""
    gru, _ = quantized((batch, 20, inputs, hidden), config)
    with torch.no_grad():
        wrong, compared = differing(gru, batch), streams(gru, batch)
        times: dict[str, list[float]] = {name: [] for name in compared}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times["forward"]) < IN_A_ROW:
            for name, stream in compared.items():
                for _ in range(5):
                    stream()
                for _ in range(IN_A_ROW):
                    start = time.perf_counter()
                    stream()
                    times[name].append((time.perf_counter() - start) * 1e6)
    typical = {name: statistics.median(values) for name, values in times.items()}
    return {
        "shape": f"{batch}x{inputs}x{hidden}",
        "config": config,
        "threads": torch.get_num_threads(),
        "gru_cell_us": round(typical["cell"], 1),
        "step_us": round(typical["step"], 1),
        "forward_us": round(typical["forward"], 1),
        "step_over_gru_cell": round(typical["step"] / typical["cell"], 2),
        "differing_integers": wrong,
    }


def main() -> None:
    """Measure what the command line names, print it and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--configs", nargs="+", default=CONFIGS.split())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    path = arguments.output or RESULTS / f"streaming-{processor()}-torch{torch.__version__.partition('+')[0]}.csv"
    rows = []
    for config in arguments.configs:
        for text in arguments.shapes:
            rows.append(measure(*map(int, text.split("x")), config, arguments.seconds))
            print(*rows[-1].values(), flush=True)
    write_csv(rows, list(rows[0]), path)


if __name__ == "__main__":
    main()
