"""What qgru uses of torch that torch does not promise, all in one place.

Tried on torch 2.11.0 (CUDA) and 2.13.0 (CPU). A test walks `SYMBOLS`, so that a release that drops one is noticed by
its name, with what it was for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "torch._C._len_torch_dispatch_stack": "sees that a FakeTensorMode or a tracer listens (qgru.ops.library)",
        "torch._C._cuda_getCurrentRawStream": "the current stream in a tenth of the public call's time (qgru.ops.cuda)",
        "torch._foreach_norm": "one launch that finds NaN in all parameters (qgru.ops.stack)",
    }
)
"""Dotted names, and what each is used for."""


def is_dispatch_traced(tensor: Tensor) -> bool:
    """Return True where operators on `tensor` are seen by a mode or a subclass, outside of `torch.compile`'s own."""
    return not torch.compiler.is_dynamo_compiling() and (
        torch._C._len_torch_dispatch_stack() > 0 or type(tensor) not in (Tensor, torch.nn.Parameter)
    )


def current_stream(device: int) -> int:
    """Return the address of a CUDA device's current stream."""
    return torch._C._cuda_getCurrentRawStream(device)


def any_nan(tensors: Sequence[Tensor]) -> Tensor:
    """Return a bool tensor: True where any of the tensors, all on one device, holds NaN."""
    return torch.isnan(torch.stack(torch._foreach_norm([tensor.detach() for tensor in tensors], torch.inf))).any()
