"""What qgru uses of torch that torch does not promise to keep, all of it in one table.

Each symbol is an attribute of this module and is looked up when it is first asked for, since some of their homes take
seconds to import. Run with torch 2.13.0 (CPU); the sources of 2.10.0 have all of them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
_SYMBOLIC = "torch.onnx.ops._symbolic_impl"
_LEGACY = "torch.onnx._internal.torchscript_exporter"
_FAKES = ("qgru.torch_private.tensors_behind", "read parameters that torch.export hides")
_UNSEEN = (f"{_ONNX}.tracing", "compute without the exporter recording it")

SYMBOLS: Mapping[str, Symbol] = MappingProxyType(
    {
        symbol.name.rpartition(".")[2].lstrip("_"): symbol
        for symbol in (
            Symbol("torch._guards", "detect_fake_mode", *_FAKES),
            Symbol("torch._subclasses.fake_tensor", "FakeTensorConverter._get_memo", *_FAKES),
            Symbol("torch._subclasses.meta_utils", "MetaTensorDescriber", *_FAKES),
            Symbol("torch.utils._python_dispatch", "_disable_current_modes", *_UNSEEN),
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
            Symbol("torch.utils._pytree", "tree_leaves", f"{_ONNX}.arguments", "find the tensors in arguments"),
            Symbol("torch.utils._pytree", "tree_map", f"{_ONNX}.arguments", "find the tensors in arguments"),
        )
    }
)
"""By the last part of the name, without the underscore in front of it."""


def __getattr__(name: str) -> Any:
    if name not in SYMBOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, SYMBOLS[name].find())


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
