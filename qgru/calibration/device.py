"""Histograms that stay on the GPU while data goes by: counted by a kernel, read when somebody asks."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from qgru.calibration.cell import naming
from qgru.calibration.histogram import KEYS, Histogram, check_bounds
from qgru.ops.cuda import compile as nvrtc
from qgru.ops.cuda.macros import Source
from qgru.ops.cuda.structs import ADDRESS, LONG, Struct
from qgru.torch_private import current_stream

SOURCE = Source(Path(__file__).parent / "kernels" / "count.cu", ("KEY_BITS", "WARPS"))
MACROS = (("KEY_BITS", KEYS.bit_length() - 1), ("WARPS", 8))
ARGUMENTS = Struct("CountArgs", (ADDRESS, "values"), (LONG, "length"), (ADDRESS, "table bounds"))
_THREADS = 32 * dict(MACROS)["WARPS"]
_INT32 = torch.iinfo(torch.int32)
_BLOCKS = 1 << 11


@dataclass(frozen=True)
class DeviceHistogram:
    """What a `Histogram` holds, bin after bin; pickling and copying give that.

    Attributes:
        table: (3, `KEYS`) int64 on the GPU: counts, sums and squares.
        low: smallest value seen.
        high: largest value seen.
    """

    table: Tensor
    low: float
    high: float

    def __add__(self, other: DeviceHistogram) -> DeviceHistogram:
        return DeviceHistogram(self.table + other.table, min(self.low, other.low), max(self.high, other.high))

    def to_host(self) -> Histogram:
        """Return the histogram, on the CPU."""
        keys = self.table[0].nonzero().squeeze(1)
        counts, sums, squares = self.table[:, keys].cpu()
        return Histogram(keys.cpu(), counts, sums, squares, self.low, self.high)

    def __reduce__(self) -> tuple:
        on_host = self.to_host()
        return Histogram, tuple(getattr(on_host, name) for name in Histogram.__dataclass_fields__)


def counts(tensor: Tensor) -> bool:
    """Return True where the kernel counts such a tensor."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and nvrtc.is_available()


def count(values: Mapping[str, list[Tensor]]) -> dict[str, DeviceHistogram]:
    """Count the tensors of every name, all on one GPU, with one look at their bounds at the end.

    Raises:
        ValueError: naming the operator in which a value is NaN or infinite.
    """
    device = next(iter(values.values()))[0].device
    bounds = torch.tensor([_INT32.max, _INT32.min], dtype=torch.int32, device=device).repeat(len(values), 1)
    tables = []
    with torch.cuda.device(device):
        stream = current_stream(device.index)
        for i, tensors in enumerate(values.values()):
            tables.append(torch.zeros((3, KEYS), dtype=torch.int64, device=device))
            for tensor in map(torch.Tensor.contiguous, tensors):
                addresses = (tensor.data_ptr(), tensor.numel(), tables[-1].data_ptr(), bounds[i].data_ptr())
                blocks = max(1, min(-(-tensor.numel() // _THREADS), _BLOCKS))
                _kernel(device.index)(stream, (blocks, 1), ARGUMENTS.pack(*addresses))
    histograms = {}
    for name, table, ends in zip(values, tables, bounds.tolist(), strict=True):
        low, high = map(_real, ends)
        with naming(name):
            check_bounds(low, high)
        histograms[name] = DeviceHistogram(table, low, high)
    return histograms


@lru_cache(maxsize=32)
def _kernel(device: int) -> nvrtc.Kernel:
    return nvrtc.Kernel(SOURCE, MACROS, device, torch.cuda.get_device_capability(device), _THREADS)


def _real(ordered: int) -> float:
    bits = ordered ^ 0x7FFFFFFF if ordered < 0 else ordered
    return struct.unpack("=f", struct.pack("=i", bits))[0]
