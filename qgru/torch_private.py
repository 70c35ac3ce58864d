"""What qgru uses of torch that torch does not promise, all in one place.

A symbol is an attribute of this module, looked up when it is first asked for, since some of their homes take seconds
to import; or a function below stands for it. Those of `qgru.ops` run with torch 2.11.0 (CUDA) and 2.13.0 (CPU), those
of `qgru.export` with 2.13.0; the sources of 2.10.0 have these as well. A test walks `SYMBOLS`, so that a release that
drops one is noticed by its name, with who needs it and what for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Symbol:
    """One of torch's private names.

    Attributes:
        home: the module that it is in.
        name: its name there, with dots where it is an attribute of something else.
        user: the module of qgru that needs it.
        purpose: what for; follows "needs it to".
        registrar: the module to import before it is there, if that is not `home`.
    """

    home: str
    name: str
    user: str
    purpose: str
    registrar: str | None = None

    def find(self) -> Any:
        """Return what the symbol stands for.

        Raises:
            ImportError: where this torch does not have it; says who needs it and what for.
        """
        try:
            import_module(self.registrar or self.home)
            return reduce(getattr, self.name.split("."), import_module(self.home))
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"torch {torch.__version__} has no {self.home}.{self.name}; {self.user} needs it to {self.purpose}"
            ) from error


_ONNX = "qgru.export.onnx"
_DISPATCH = "torch.utils._python_dispatch"
_SYMBOLIC = "torch.onnx.ops._symbolic_impl"
_LEGACY = "torch.onnx._internal.torchscript_exporter"
_FAKES = (f"{_ONNX}.tracing", "read parameters that torch.export hides")
_UNSEEN = (f"{_ONNX}.tracing", "compute without the exporter recording it")

SYMBOLS: Mapping[str, Symbol] = MappingProxyType(
    {
        symbol.name.rpartition(".")[2].lstrip("_"): symbol
        for symbol in (
            Symbol("torch._C", "_len_torch_dispatch_stack", "qgru.ops", "see that a mode or a tracer listens"),
            Symbol("torch._C", "_cuda_getCurrentRawStream", "qgru.ops.cuda", "find the current stream fast"),
            Symbol("torch", "_C", "qgru.ops.cpu.kernels", "find the functions of the stable C ABI"),
            Symbol("torch", "_foreach_norm", "qgru.ops", "find NaN in all parameters with one launch"),
            Symbol("torch", "_VF.gru", "qgru.calibration.inner", "run the float GRU on packed rows"),
            Symbol("torch._dynamo", "OptimizedModule", "qgru.stages.exporting", "know what torch.compile made"),
            Symbol(_DISPATCH, "is_in_torch_dispatch_mode", "qgru.buffers", "leave fake tensors alone"),
            Symbol("torch._guards", "detect_fake_mode", *_FAKES),
            Symbol("torch._subclasses.fake_tensor", "FakeTensorConverter._get_memo", *_FAKES),
            Symbol(_DISPATCH, "_disable_current_modes", *_UNSEEN),
            Symbol("torch._C", "DisableTorchFunction", *_UNSEEN),
            Symbol("torch._C", "_get_tracing_state", *_UNSEEN),
            Symbol("torch._C", "_set_tracing_state", *_UNSEEN),
            Symbol(f"{_LEGACY}._globals", "GLOBALS", f"{_ONNX}.tracing", "know the opset"),
            Symbol(f"{_LEGACY}.jit_utils", "add_op_with_blocks", f"{_ONNX}.legacy", "append ONNX's Loop"),
            Symbol("torch._C", "OptionalType", f"{_ONNX}.legacy", "leave an operator's input out"),
            Symbol("torch._C", "TensorType", f"{_ONNX}.legacy", "give types to a graph's tensors"),
            Symbol("torch._higher_order_ops.scan", "scan_op", f"{_ONNX}.dynamo", "append ONNX's Scan"),
            Symbol(_SYMBOLIC, "EncodedAttrs", f"{_ONNX}.dynamo", "give attributes to operators"),
            Symbol("torch", "ops.onnx_symbolic._symbolic", f"{_ONNX}.dynamo", "append operators", _SYMBOLIC),
            Symbol("torch", "ops.onnx_symbolic._symbolic_multi_out", f"{_ONNX}.dynamo", "append operators", _SYMBOLIC),
            Symbol("torch.utils._pytree", "tree_map", f"{_ONNX}.dimensions", "change the tensors in arguments"),
            Symbol("torch.utils._pytree", "tree_leaves", f"{_ONNX}.arguments", "find the tensors in arguments"),
        )
    }
)
"""By the last part of the name, without the underscore in front of it."""


def __getattr__(name: str) -> Any:
    if name not in SYMBOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, SYMBOLS[name].find())


def is_dispatch_traced(tensor: Tensor) -> bool:
    """Return True where operators on `tensor` are seen by a mode or a subclass, outside of `torch.compile`'s own."""
    return not torch.compiler.is_dynamo_compiling() and (
        torch._C._len_torch_dispatch_stack() > 0 or type(tensor) not in (Tensor, torch.nn.Parameter)
    )


def current_stream(device: int) -> int:
    """Return the address of a CUDA device's current stream."""
    return torch._C._cuda_getCurrentRawStream(device)


def any_nan(tensors: Sequence[Tensor]) -> Tensor:
    """Return a bool tensor: True where any of the tensors, all on one device and not all empty, holds NaN."""
    known = [tensor.detach() for tensor in tensors if tensor.numel()]
    if known[0].is_cpu:  # a norm takes twenty to a hundred times as long there
        return torch.isnan(torch.stack([tensor.amax().float() for tensor in known])).any()
    return torch.isnan(torch.stack(torch._foreach_norm(known, torch.inf))).any()


def tensors_behind(fakes: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the tensors that `torch.export` has put fake ones in place of.

    Args:
        fakes: parameters and buffers, as a module sees them while it is exported.

    Returns:
        For each its tensor; None where there is none behind it.
    """
    converter = SYMBOLS["detect_fake_mode"].find()().fake_tensor_converter
    known = list(converter.meta_converter.describer.lookup_tensor)
    real = {id(converter._get_memo(tensor)): tensor for tensor in known}
    return [real.get(id(fake)) for fake in fakes]
