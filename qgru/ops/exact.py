"""Exact arithmetic on numbers that are integers times powers of two, with straight-through gradients.

A float64 holds such a number exactly up to 53 bits; beyond, and up to the 62 bits of the exactness domain, an int64
mantissa goes along with it. Past 62 bits only the float64 is left, and the last integer may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qgru.grid import Grid

FLOAT64_BITS, INT64_BITS = 53, 62
_LIMB = 16
_GRID_BITS = 34  # every 32-bit grid saturates below 2**34, whatever its zero point


@dataclass(frozen=True)
class Exact:
    """A tensor of numbers ``mantissa * 2**-exponent`` with ``abs(mantissa) <= 2**bits``.

    Attributes:
        value: the numbers in float64; this is the tensor that carries the gradient.
        bits: the bound on the mantissa.
        exponent: one for the tensor, or int64 with one for each channel (broadcasts with `value`).
        wide: the int64 mantissa where `value` may have been rounded, else None.
    """

    value: Tensor
    bits: int
    exponent: int | Tensor
    wide: Tensor | None = None

    @property
    def mantissa(self) -> Tensor:
        """The integers, int64."""
        if self.wide is not None:
            return self.wide
        return (self.value.detach() * _power_of_two(self.exponent)).long()

    def map(self, function: Callable[[Tensor], Tensor]) -> Exact:
        """Apply an indexing or layout function; the exponent is one for the tensor."""
        return Exact(function(self.value), self.bits, self.exponent, None if self.wide is None else function(self.wide))

    def split(self, channels: int) -> list[Exact]:
        """Cut the last dimension into pieces of `channels`, per-channel exponents with it."""
        values = self.value.split(channels, -1)
        wides = [None] * len(values) if self.wide is None else self.wide.split(channels, -1)
        per_channel = isinstance(self.exponent, Tensor)
        exponents = self.exponent.split(channels, -1) if per_channel else [self.exponent] * len(values)
        return [Exact(v, self.bits, e, w) for v, e, w in zip(values, exponents, wides, strict=True)]

    def unbind(self) -> list[Exact]:
        """Take dimension 0 apart."""
        wides = [None] * len(self.value) if self.wide is None else self.wide.unbind(0)
        return [Exact(v, self.bits, self.exponent, w) for v, w in zip(self.value.unbind(0), wides, strict=True)]


def add(*terms: Exact) -> Exact:
    """Return the exact sum, on the finest exponent of all terms and channels."""
    coarsest = [int(t.exponent.min()) if isinstance(t.exponent, Tensor) else t.exponent for t in terms]
    finest = max(int(t.exponent.max()) if isinstance(t.exponent, Tensor) else t.exponent for t in terms)
    aligned = max(term.bits - exponent for term, exponent in zip(terms, coarsest, strict=True)) + finest
    bits = aligned + (len(terms) - 1).bit_length()
    value = sum((term.value for term in terms[1:]), terms[0].value)
    if not FLOAT64_BITS < bits <= INT64_BITS:
        return Exact(value, bits, finest)
    return Exact(value, bits, finest, sum(term.mantissa << (finest - term.exponent) for term in terms))


def multiply(a: Exact, b: Exact) -> Exact:
    """Return the exact product, element by element."""
    bits, value, exponent = a.bits + b.bits, a.value * b.value, a.exponent + b.exponent
    wide = a.mantissa * b.mantissa if FLOAT64_BITS < bits <= INT64_BITS else None
    return Exact(value, bits, exponent, wide)


def one_minus(a: Exact, grid: Grid) -> Exact:
    """Return ``1 - a`` exactly for `a` on `grid`: on its exponent, or on 0 where its steps are coarser than 1."""
    difference = add(Exact(torch.ones_like(a.value), 0, 0), Exact(-a.value, a.bits, a.exponent))
    one, step = 1 << max(grid.exp2_inv, 0), 1 << max(-grid.exp2_inv, 0)
    ends = (one - step * (q - grid.zero_point) for q in (grid.qmin, grid.qmax))
    return replace(difference, bits=max((abs(end) - 1).bit_length() for end in ends))


def matmul(a: Exact, weight: Exact) -> Exact:
    """Return ``a @ weight.T`` exactly.

    Args:
        a: (..., K), one exponent.
        weight: (M, K), an exponent for each of the M channels, shaped (M, 1).

    Returns:
        (..., M) with exponents of shape (M,).
    """
    bits = a.bits + weight.bits + (a.value.shape[-1] - 1).bit_length()
    value = torch.nn.functional.linear(a.value, weight.value)
    exponent = weight.exponent.squeeze(-1) + a.exponent
    wide = _integer_matmul(a.mantissa, weight.mantissa) if FLOAT64_BITS < bits <= INT64_BITS else None
    return Exact(value, bits, exponent, wide)


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
    clamped = steps.clamp(grid.qmin - grid.zero_point, grid.qmax - grid.zero_point)
    result = StraightThrough.apply(value, clamped / grid.steps_per_unit(value), clamped == steps)
    return Exact(result, grid.bitwidth, _exponent(value, grid))


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
    """Return ``rne(mantissa * 2**-shift)``, saturated to 36 bits."""
    shift = torch.as_tensor(shift, device=mantissa.device)
    right = shift.clamp(0, INT64_BITS)
    odd = (mantissa >> right) & 1
    rounded = (mantissa + (((1 << right) >> 1) - 1 + odd)) >> right
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
