"""Check and time the CUDA kernels against `torch.nn.GRU` and an eager fake-quant loop: one run, one CSV.

    python -m benchmarks.gpu                     # all shapes, benchmarks/results/<gpu>-torch<version>.csv
    python -m benchmarks.gpu --shapes 1x1000x64x128 --configs int8

A shape is ``batch x time x input x hidden``. Times are milliseconds by CUDA events, the median; ``ours`` and the best
float (of fp32, tf32, bf16 and fp16) are taken in one run, each called from Python and each replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu_timing import first_calls_s, graph_ms, host_us, median_ms, peak_mib
from benchmarks.steps import step_of
from qgru import QuantGRU
from qgru.ops import backends

SHAPES = "32x100x64x128 64x200x128x256 128x500x256x256 32x1000x256x512 128x200x512x1024 1x1000x64x128 256x100x80x64"
CONFIGS = "int8 int8_mixed w8a16 int16"
FLOATS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("inference", "training")
RESULTS = Path(__file__).parent / "results"


def quantized(shape: tuple[int, int, int, int], config: str) -> tuple[QuantGRU, Tensor]:
    """Return a calibrated layer and its input (time, batch, input)."""
    batch, time, inputs, hidden = shape
    torch.manual_seed(0)
    gru = QuantGRU(inputs, hidden).cuda()
    gru.load_bitwidth_config(config)
    gru.calibrating = True
    with torch.no_grad():
        gru(torch.randn(min(time, 50), min(batch, 32), inputs, device="cuda"))
    gru.calibrating = False
    gru.finalize_calibration()
    gru.use_quantization = True
    return gru, torch.randn(time, batch, inputs, device="cuda")


def check(gru: QuantGRU, x: Tensor) -> tuple[int, float]:
    """Return the differing integers of the output, and the gradients' largest relative error (on few rows)."""
    few = x[:32, :8].contiguous()
    weights = torch.randn(*few.shape[:2], gru.hidden_size, device="cuda")
    outputs, gradients = [], []
    for name in ("cuda", "reference"):
        with backends.forced(name):
            gru.zero_grad()
            (gru(few)[0] * weights).sum().backward()
            gradients.append([parameter.grad.double() for parameter in gru.parameters()])
            with torch.no_grad():
                outputs.append(gru(x)[0])
    gru.zero_grad()
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*gradients, strict=True)]
    return int((outputs[0] != outputs[1]).sum()), max(errors)


def fake_quant_loop(shape: tuple[int, int, int, int], mode: str) -> float:
    """Return the time of what people write by hand: fake-quantize ops in a loop over time."""
    _, time, inputs, hidden = shape
    gru = nn.GRU(inputs, hidden).cuda()
    x = torch.randn(time, shape[0], inputs, device="cuda")

    def fake(v: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(v, 2.0**-6, 0, -128, 127)

    def run() -> None:
        gru.zero_grad()
        with torch.set_grad_enabled(mode == "training"):
            W, R = fake(gru.weight_ih_l0), fake(gru.weight_hh_l0)
            Wx = fake(fake(x) @ W.t())
            h, states = x.new_zeros(x.shape[1], hidden), []
            for t in range(time):
                Rh = fake(h @ R.t())
                (r, z, g), (a, b, c) = Wx[t].chunk(3, -1), Rh.chunk(3, -1)
                r, z = fake(torch.sigmoid(fake(r + a))), fake(torch.sigmoid(fake(z + b)))
                g = fake(torch.tanh(fake(g + fake(r * c))))
                h = fake(fake(z * h) + fake((1 - z) * g))
                states.append(h)
            if mode == "training":
                torch.stack(states).sum().backward()

    return median_ms(run, repeats=1)


def floats(shape: tuple[int, int, int, int], mode: str) -> tuple[dict[str, float], dict[str, float], float]:
    """Return `torch.nn.GRU`'s times by type, called and replayed, and fp32's peak memory."""
    batch, time, inputs, hidden = shape
    called, replayed, peak = {}, {}, 0.0
    for name, dtype in FLOATS.items():
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        gru = nn.GRU(inputs, hidden, dtype=dtype).cuda()
        step = step_of(gru, torch.randn(time, batch, inputs, device="cuda", dtype=dtype), mode)
        slow = name == "bf16"  # no cuDNN kernel: torch's own loop
        called[name] = median_ms(step, 3 if slow else 20)
        replay = None if slow else graph_ms(step)
        if replay is not None:
            replayed[name] = replay
        if name == "fp32":
            peak = peak_mib(step)
    torch.backends.cudnn.allow_tf32 = True
    return called, replayed, peak


def rows(shape_names: list[str], configs: list[str]) -> Iterator[dict[str, object]]:
    """Yield a result for every shape, configuration and mode."""
    for name in shape_names:
        shape = tuple(int(size) for size in name.split("x"))
        peers = {mode: (*floats(shape, mode), fake_quant_loop(shape, mode)) for mode in MODES}
        of_int8: dict[str, float] = {}
        for config in configs:
            gru, x = quantized(shape, config)
            differing, error = check(gru, x)
            for mode in MODES:
                called, replayed, fp32_peak, loop = peers[mode]
                best, best_graph = min(called, key=called.get), min(replayed.values(), default=None)
                step = step_of(gru, x, mode)
                first, cached = first_calls_s(step)
                ours, peak, graph = median_ms(step), peak_mib(step), graph_ms(step)
                of_int8.setdefault(mode, ours)
                yield {
                    "shape": name,
                    "config": config,
                    "mode": mode,
                    "ours_ms": round(ours, 4),
                    "best_float_ms": round(called[best], 4),
                    "best_float": best,
                    "ratio": round(called[best] / ours, 3),
                    "ours_graph_ms": graph and round(graph, 4),
                    "best_float_graph_ms": best_graph and round(best_graph, 4),
                    "graph_ratio": round(best_graph / graph, 3) if graph and best_graph else None,
                    "times_int8": round(ours / of_int8[mode], 3),
                    "fake_quant_loop_ms": round(loop, 2),
                    "peak_mib": round(peak, 1),
                    "cudnn_fp32_peak_mib": round(fp32_peak, 1),
                    "host_us": round(host_us(step), 1),
                    "first_call_s": round(first, 3),
                    "cached_call_s": round(cached, 4),
                    "differing_integers": differing,
                    "gradient_error": f"{error:.1e}",
                }


def main() -> None:
    """Run, print a line a result, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES.split())
    parser.add_argument("--configs", nargs="+", default=CONFIGS.split())
    parser.add_argument("--output", type=Path, help="where to write; default: by the names of the GPU and of torch")
    arguments = parser.parse_args()
    gpu = torch.cuda.get_device_name().replace(" ", "-")
    output = arguments.output or RESULTS / f"{gpu}-torch{torch.__version__.split('+')[0]}.csv"
    results = []
    for row in rows(arguments.shapes, arguments.configs):
        results.append(row)
        print(" ".join(str(value) for value in row.values()), flush=True)
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(results)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
