"""Exact arithmetic on numbers that are integers times powers of two, with straight-through gradients.

``docs/numerics.md#exactness-domain`` says why 53, 60 and 62 bits.

A float64 holds such a number exactly up to 53 bits; beyond, and up to the 62 bits of the exactness domain, an int64
mantissa goes along with it. Past 62 bits only the float64 is left, and the last integer may differ. How large a sum or
a product can be is not worked out here: every function takes the bound that `qgru.ops.plan` proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qgru.grid import Grid

_FLOAT64, _INT64 = 1 << 53, 1 << 62
_INT64_BITS, _LIMB = 62, 16
_GRID_BITS = 34  # every 32-bit grid saturates below 2**34, whatever its zero point


@dataclass(frozen=True)
class Exact:
    """A tensor of numbers ``mantissa * 2**-exponent``.

    Attributes:
        value: the numbers in float64; this is the tensor that carries the gradient.
        exponent: one for the tensor, or int64 with one for each channel (broadcasts with `value`).
        wide: the int64 mantissa where `value` may have been rounded, else None.
    """

    value: Tensor
    exponent: int | Tensor
    wide: Tensor | None = None

    @property
    def mantissa(self) -> Tensor:
        """The integers, int64."""
        if self.wide is not None:
            return self.wide
        return (self.value.detach() * _power_of_two(self.exponent)).long()

    def split(self, channels: int) -> list[Exact]:
        """Cut the last dimension into pieces of `channels`, per-channel exponents with it."""
        values = self.value.split(channels, -1)
        wides = [None] * len(values) if self.wide is None else self.wide.split(channels, -1)
        per_channel = isinstance(self.exponent, Tensor)
        exponents = self.exponent.split(channels, -1) if per_channel else [self.exponent] * len(values)
        return [Exact(*parts) for parts in zip(values, exponents, wides, strict=True)]

    def unbind(self) -> list[Exact]:
        """Take dimension 0 apart."""
        wides = [None] * len(self.value) if self.wide is None else self.wide.unbind(0)
        return [Exact(v, self.exponent, w) for v, w in zip(self.value.unbind(0), wides, strict=True)]


def add(*terms: Exact, exponent: int, bound: int) -> Exact:
    """Return the exact sum.

    Args:
        *terms: broadcast.
        exponent: of the sum: no term's is larger.
        bound: on the sum's mantissa, and on that of every part of it.
    """
    value = sum((term.value for term in terms[1:]), terms[0].value)
    if not _needs_int64(bound):
        return Exact(value, exponent)
    return Exact(value, exponent, sum(term.mantissa << (exponent - term.exponent) for term in terms))


def multiply(a: Exact, b: Exact, bound: int) -> Exact:
    """Return the exact product, element by element; `bound` is on its mantissa."""
    wide = a.mantissa * b.mantissa if _needs_int64(bound) else None
    return Exact(a.value * b.value, a.exponent + b.exponent, wide)


def one_minus(a: Exact, bound: int) -> Exact:
    """Return ``1 - a`` exactly: on its one exponent, or on 0 where its steps are coarser than 1.

    Args:
        a: with one exponent.
        bound: on the result's mantissa.
    """
    one, negative = Exact(torch.ones_like(a.value), 0), Exact(-a.value, a.exponent)
    return add(one, negative, exponent=max(a.exponent, 0), bound=bound)


def matmul(a: Exact, weight: Exact, bound: int) -> Exact:
    """Return ``a @ weight.T`` exactly.

    Args:
        a: (..., K), one exponent.
        weight: (M, K), an exponent for each of the M channels, shaped (M, 1).
        bound: on the result's mantissa.

    Returns:
        (..., M) with exponents of shape (M,).
    """
    value = torch.nn.functional.linear(a.value, weight.value)
    wide = _integer_matmul(a.mantissa, weight.mantissa) if _needs_int64(bound) else None
    return Exact(value, weight.exponent.squeeze(-1) + a.exponent, wide)


def _needs_int64(bound: int) -> bool:
    return _FLOAT64 < bound <= _INT64


def quantize(number: Exact, grid: Grid) -> Exact:
    """Round to the grid once, half to even; the gradient passes where nothing was clamped."""
    if number.wide is None:
        return quantize_real(number.value, grid)
    steps = _rescale(number.wide, number.exponent - grid.exp2_inv).double()
    return _on_grid(number.value, steps, grid)


def quantize_real(value: Tensor, grid: Grid) -> Exact:
    """Quantize real numbers (float64) that are not known to be exact."""
    return _on_grid(value, (value.detach() * grid.steps_per_unit(value)).round(), grid)


def _on_grid(value: Tensor, steps: Tensor, grid: Grid) -> Exact:
    clamped = steps.clamp(*grid.mantissas)
    result = StraightThrough.apply(value, clamped / grid.steps_per_unit(value), clamped == steps)
    return Exact(result, _exponent(value, grid))


def _exponent(value: Tensor, grid: Grid) -> int | Tensor:
    if not grid.is_per_channel:
        return grid.exp2_inv
    exponents = torch.tensor(grid.exponents, device=value.device)
    return exponents.view(-1, *[1] * (value.dim() - 1))


def _power_of_two(exponent: int | Tensor) -> float | Tensor:
    return torch.exp2(exponent.double()) if isinstance(exponent, Tensor) else 2.0**exponent


def _integer_matmul(a: Tensor, weight: Tensor) -> Tensor:
    """Multiply int64 matrices through float64 products of 16-bit limbs, each exact for K up to 2**21.

    Torch has no int64 product on a GPU, and a slow one on a CPU. Sums wrap around and come out right.
    """
    total = 0
    for i, a_limb in enumerate((a & 0xFFFF, a >> _LIMB)):
        for j, weight_limb in enumerate((weight & 0xFFFF, weight >> _LIMB)):
            product = torch.nn.functional.linear(a_limb.double(), weight_limb.double()).long()
            total = total + (product << _LIMB * (i + j))
    return total


def _rescale(mantissa: Tensor, shift: int | Tensor) -> Tensor:
    """Return ``rne(mantissa * 2**-shift)`` for a mantissa of at most 62 bits, saturated to 36."""
    shift = torch.as_tensor(shift, device=mantissa.device)
    right = shift.clamp(0, _INT64_BITS)
    odd = (mantissa >> right) & 1
    rounded = (mantissa + (((1 << right) >> 1) - 1 + odd)) >> right
    rounded = torch.where(shift > _INT64_BITS, 0, rounded)  # at most a half, and a half goes to the even 0
    left = (-shift).clamp(0, _GRID_BITS + 1)
    limit = ((1 << _GRID_BITS) >> left) + 1
    scaled = mantissa.clamp(-limit, limit) << left
    return torch.where(shift > 0, rounded, scaled).clamp(-(1 << _GRID_BITS + 2), 1 << _GRID_BITS + 2)


class StraightThrough(torch.autograd.Function):
    """Stand for a real number by its quantized value; let the gradient through where `inside`."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, quantized: Tensor, inside: Tensor) -> Tensor:
        """Return the quantized value."""
        ctx.save_for_backward(inside)
        return quantized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient, zero where the value was clamped."""
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None
