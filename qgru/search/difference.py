"""How far outputs are from others: relative squared error, or a divergence of distributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors_of(output: Any) -> list[Tensor]:
    """Return every floating tensor of a structure of tensors, in its order.

    Args:
        output: a tensor, a packed sequence, or tuples, lists, mappings and objects with attributes (data classes) of
            such; what is no tensor, and single numbers, such as a loss, are passed over.
    """
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.dim() else []
    if isinstance(output, PackedSequence):
        return [output.data]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    if isinstance(output, tuple | list):
        return [tensor for value in output for tensor in tensors_of(value)]
    if hasattr(output, "__dataclass_fields__"):
        return tensors_of(vars(output))
    return []


class Difference:
    """Compares outputs with the float module's.

    Args:
        expected: of every batch, its output tensors.
        logits: compare distributions over the last dimension.

    Raises:
        ValueError: where there is nothing to compare, or what there is is not finite or does not vary.
    """

    def __init__(self, expected: Sequence[Sequence[Tensor]], logits: bool) -> None:
        self._expected, self._logits = expected, logits
        if not all(len(tensors) for tensors in expected):
            raise ValueError(
                "the call returns no floating tensor but single numbers, if any; pass a forward_fn that returns outputs"
            )
        for tensors in expected:
            for tensor in tensors:
                _check_finite(tensor, "float")
        self._variances = [] if logits else _variances(expected)

    def of(self, outputs: Iterable[Sequence[Tensor]]) -> float:
        """Return the difference of outputs, batch by batch; the mean over the output tensors of a call.

        Raises:
            ValueError: where an output is not finite.
        """
        sums: list[Tensor] = []
        for tensors, expected in zip(outputs, self._expected, strict=True):
            terms = [self._term(a, b) for a, b in zip(tensors, expected, strict=True)]
            sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms
        parts = torch.stack(sums).tolist()
        if not all(part < float("inf") for part in parts):
            raise ValueError("an output of the quantized module is NaN or infinite; expected finite numbers")
        if self._logits:
            rows = [sum(e[i].numel() // e[i].shape[-1] for e in self._expected) for i in range(len(parts))]
            return sum(p / r for p, r in zip(parts, rows, strict=True)) / len(parts)
        pairs = [(part, variance) for part, variance in zip(parts, self._variances, strict=True) if variance]
        return sum(part / variance for part, variance in pairs) / len(pairs)

    def _term(self, actual: Tensor, expected: Tensor) -> Tensor:
        if not self._logits:
            return (actual.double() - expected.double()).square().sum()
        p, q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
        return (p.exp() * (p - q)).sum()


def _variances(expected: Sequence[Sequence[Tensor]]) -> list[float]:
    """Return, for every output, the sum of squares around its mean."""
    variances = []
    for tensors in zip(*expected, strict=True):
        values = torch.cat([tensor.double().flatten() for tensor in tensors])
        variances.append(float((values - values.mean()).square().sum()))
    if not any(variances):
        raise ValueError("the float outputs don't vary; expected different ones, to measure errors against")
    return variances


def _check_finite(tensor: Tensor, which: str) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"an output of the {which} module is NaN or infinite; expected finite numbers")
