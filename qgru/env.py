"""What this machine offers to qgru, and what is in use: ``python -m qgru.env``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from qgru.ops.cpu import backend as cpu
from qgru.ops.cuda import compile as nvrtc

PACKAGES = ("qgru", "torch", "lightning", "hydra-core", "onnx", "onnxruntime", "cuda-core")


def report() -> Iterator[tuple[str, str]]:
    """Yield names and values: versions, the CPU and its kernels, GPUs and theirs."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    yield "CPU kernels", _cpu_kernels()
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 2**30
        yield f"GPU {device}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    yield "CUDA kernels", _cuda_kernels()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_kernels() -> str:
    if not cpu.is_available():
        return "not built: the reference serves; with torch and a C++ compiler, pip install --no-build-isolation qgru"
    here = cpu.PATHS[: torch.ops.qgru_cpu.paths()]
    return f"{cpu.PATHS[cpu.path()]} in use, of {', '.join(here)}"


def _cuda_kernels() -> str:
    if not nvrtc.is_available():
        return "none: cuda-core is missing, pip install qgru[cuda]"
    return "compiled at first use" if torch.cuda.is_available() else "no GPU to compile for"


def main() -> None:
    """Print the report."""
    for name, value in report():
        print(f"{name:<14}{value}")


if __name__ == "__main__":
    main()
