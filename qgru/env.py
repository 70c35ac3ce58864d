"""What this machine offers to qgru, and what is in use: ``python -m qgru.env``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from qgru.ops import backends, builtin  # noqa: F401  (registers the backends)

PACKAGES = ("qgru", "torch", "lightning", "pytorch-lightning", "hydra-core", "onnx", "onnxruntime", "cuda-core")


def report() -> Iterator[tuple[str, str]]:
    """Yield names and values: versions, the CPU and its kernels, GPUs and theirs."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 2**30
        yield f"GPU {device}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    for backend in backends.registered():
        yield f"{backend.name} backend", backend.describe()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Print the report."""
    for name, value in report():
        print(f"{name:<18}{value}")


if __name__ == "__main__":
    main()
