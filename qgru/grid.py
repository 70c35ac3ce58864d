"""A quantization grid: bounds, the one rounding rule, and the way back; see ``docs/numerics.md#grids``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qgru.schema import OperatorConfig

MIN_EXPONENT, MAX_EXPONENT = -64, 64


@dataclass(frozen=True)
class Grid:
    """Integers ``qmin .. qmax`` that stand for the reals ``(q - zero_point) * 2**-exp2_inv``.

    Attributes:
        bitwidth: 1 to 32.
        is_symmetric: True where the zero point is 0.
        is_unsigned: True counts from 0, False from ``-2**(bitwidth - 1)``.
        exp2_inv: exponent in [-64, 64]; one for a tensor, or a tuple with one for each index of dimension 0.
        zero_point: the integer that stands for 0.

    Raises:
        ValueError: where a value is off the ranges above; the message names it.
    """

    bitwidth: int
    is_symmetric: bool
    is_unsigned: bool
    exp2_inv: int | tuple[int, ...]
    zero_point: int = 0

    def __post_init__(self) -> None:
        OperatorConfig(self.bitwidth, self.is_symmetric, self.is_unsigned)
        for exponent in self.exponents:
            if type(exponent) is not int or not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
                raise ValueError(f"exp2_inv is {exponent!r}; expected an integer in [{MIN_EXPONENT}, {MAX_EXPONENT}]")
        if type(self.zero_point) is not int:
            raise ValueError(f"zero_point is {self.zero_point!r}; expected an integer")
        if self.is_symmetric and self.zero_point != 0:
            raise ValueError(f"zero_point is {self.zero_point}; expected 0 on a symmetric grid")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise ValueError(f"zero_point is {self.zero_point}; expected it on the grid, {self.qmin} to {self.qmax}")

    @cached_property
    def config(self) -> OperatorConfig:
        """The part of the grid that a user chooses."""
        return OperatorConfig(self.bitwidth, self.is_symmetric, self.is_unsigned)

    @cached_property
    def qmin(self) -> int:
        """The smallest integer."""
        return self.config.qmin

    @cached_property
    def qmax(self) -> int:
        """The largest integer."""
        return self.config.qmax

    @cached_property
    def mantissas(self) -> tuple[int, int]:
        """The smallest and largest ``q - zero_point``."""
        return self.qmin - self.zero_point, self.qmax - self.zero_point

    @cached_property
    def mantissa_bound(self) -> int:
        """The largest magnitude of ``q - zero_point``."""
        return max(map(abs, self.mantissas))

    @cached_property
    def real_range(self) -> tuple[float, float]:
        """The smallest and largest real number of a grid with one exponent, exact in float64."""
        low, high = self.mantissas
        return low * 2.0**-self.exp2_inv, high * 2.0**-self.exp2_inv

    @property
    def exponents(self) -> tuple[int, ...]:
        """The exponents as a tuple, also where there is one for the whole tensor."""
        return self.exp2_inv if isinstance(self.exp2_inv, tuple) else (self.exp2_inv,)

    @property
    def is_per_channel(self) -> bool:
        """True where dimension 0 has an exponent for each index."""
        return isinstance(self.exp2_inv, tuple)

    @property
    def scale(self) -> float | tuple[float, ...]:
        """``2**-exp2_inv``, exact in float64."""
        scales = tuple(2.0**-exponent for exponent in self.exponents)
        return scales if self.is_per_channel else scales[0]

    def steps_per_unit(self, like: Tensor) -> Tensor | float:
        """Return ``2**exp2_inv`` in float64, shaped to broadcast along dimension 0 of `like` if per channel."""
        if not self.is_per_channel:
            return 2.0**self.exp2_inv
        steps = torch.tensor([2.0**exponent for exponent in self.exponents], dtype=torch.float64, device=like.device)
        return steps.view(-1, *[1] * (like.dim() - 1))

    def quantize(self, value: Tensor) -> Tensor:
        """Return ``clamp(rne(value * 2**exp2_inv) + zero_point, qmin, qmax)`` as int64, of value's shape.

        Infinities saturate.

        Raises:
            ValueError: where `value` holds NaN.
        """
        if torch.isnan(value).any():
            raise ValueError("the tensor to quantize holds NaN; expected numbers")
        steps = (value.double() * self.steps_per_unit(value)).round() + self.zero_point
        return steps.clamp(self.qmin, self.qmax).long()

    def dequantize(self, integers: Tensor) -> Tensor:
        """Return ``(integers - zero_point) * 2**-exp2_inv`` as float64, of the integers' shape."""
        return (integers - self.zero_point).double() / self.steps_per_unit(integers)
