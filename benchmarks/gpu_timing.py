"""Times and memory of a step on a GPU, each by the same rules for everybody."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from unittest import mock

import torch

from benchmarks.steps import Step
from qgru.ops import backends
from qgru.ops.cuda import backend, geometry, layer, plan
from qgru.ops.cuda import compile as nvrtc


def median_ms(step: Step, repeats: int = 20) -> float:
    """Return the median time of a call, by events on the device."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def graph_ms(step: Step) -> float | None:
    """Return the median time of a call's replay as a CUDA graph; None where it can't be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return median_ms(graph.replay)


def peak_mib(step: Step) -> float:
    """Return the allocator's peak during a call, over what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def host_us(step: Step) -> float:
    """Return the least time in microseconds that a call keeps the host, of 10 rounds of 20 calls."""
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            step()
        times.append((time.perf_counter() - start) / 20)
    torch.cuda.synchronize()
    return min(times) * 1e6


def first_calls_s(step: Step) -> tuple[float, float]:
    """Return the seconds of a first call with nothing compiled before, and of one with only the disk's cache."""
    compiled, name = nvrtc.compiled, uuid.uuid4()  # a source that no cache of the compiler's own knows
    unique = mock.patch.object(nvrtc, "compiled", lambda text, *rest: compiled(f"{text}\n// {name}", *rest))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}), unique:
        times = []
        for _ in range(2):
            _forget()
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return times[0], times[1]


def _forget() -> None:
    """Empty every cache of compiled kernels and layouts in memory."""
    backends._served.clear()
    cached = (nvrtc.cubin, layer.layer_of, layer._kernel, layer._device_tables, plan.kernel_plan, backend.backward_of)
    for function in (*cached, layer.processor, geometry.geometry):
        function.cache_clear()
