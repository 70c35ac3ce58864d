"""A histogram of float32 values that merges exactly, in any order, without an agreed range.

A bin is a float's sign, exponent and first ten mantissa bits: 1024 bins an octave, whatever the range turns out to be.
Each bin keeps a count and, in units of the last mantissa bit, the sum and the sum of squares of the positions inside
it: integers, so that merging is associative, and enough to know the bin's mean and spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_KEPT_BITS, _DROPPED_BITS = 10, 13
KEYS = 1 << (1 + 8 + _KEPT_BITS)
"""How many bins there can be."""

_SIGN = KEYS >> 1
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Bins:
    """What a histogram knows of its values, bin by bin, in ascending order of value; all float64, (bins,).

    Attributes:
        mean: the mean of the bin's values.
        half_width: half the width of a uniform spread that has the bin's variance; 0 where all values are equal.
        count: how many.
    """

    mean: Tensor
    half_width: Tensor
    count: Tensor

    def mirrored(self) -> Bins:
        """Return the bins of the negated values."""
        return Bins(-self.mean.flip(0), self.half_width.flip(0), self.count.flip(0))

    def magnitudes(self) -> Bins:
        """Return the bins of the absolute values."""
        order = self.mean.abs().argsort()
        return Bins(self.mean.abs()[order], self.half_width[order], self.count[order])


def check_bounds(low: float, high: float) -> None:
    """Raise ValueError where the smallest or the largest of some values is NaN or not a float32 number."""
    if math.isnan(low) or math.isnan(high):
        raise ValueError("a value is NaN; expected finite float32 numbers")
    if not -_LARGEST <= low <= high <= _LARGEST:
        raise ValueError(f"the values range from {low} to {high}; expected finite float32 numbers")


@dataclass(frozen=True)
class Histogram:
    """Counts of values; merge with ``+``.

    Attributes:
        keys: (bins,) int64, ascending and without repetition.
        counts: (bins,) int64.
        sums: (bins,) int64, of positions inside the bin.
        squares: (bins,) int64, of squared positions.
        low: smallest value seen.
        high: largest value seen.
    """

    keys: Tensor
    counts: Tensor
    sums: Tensor
    squares: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Histogram:
        """Count `values`, of any shape and at least one; inside the bins they are rounded to float32.

        Raises:
            ValueError: where one is NaN or infinite.
        """
        low, high = (bound.item() for bound in values.detach().aminmax())
        check_bounds(low, high)
        bits = (values.detach().flatten().float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
        keys = ((bits >> _DROPPED_BITS) & (KEYS - 1)).long()
        position = (bits & ((1 << _DROPPED_BITS) - 1)).double()
        if len(keys) < KEYS and not keys.is_cuda:  # sorting beats counting into empty bins, but not on a GPU
            bins, index = keys.unique(return_inverse=True)
        else:
            bins, index = torch.arange(KEYS, device=keys.device), keys
        counts = torch.bincount(index, minlength=len(bins))
        seen = counts.nonzero().squeeze(1)
        weights = (position, position * position)
        sums, squares = (torch.bincount(index, w, len(bins))[seen].long().cpu() for w in weights)
        return cls(bins[seen].cpu(), counts[seen].cpu(), sums, squares, low, high)

    def __add__(self, other: Histogram) -> Histogram:
        keys, index = torch.cat([self.keys, other.keys]).unique(return_inverse=True)
        both = ((self.counts, other.counts), (self.sums, other.sums), (self.squares, other.squares))
        merged = (torch.zeros_like(keys).index_add_(0, index, torch.cat(pair)) for pair in both)
        return Histogram(keys, *merged, min(self.low, other.low), max(self.high, other.high))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def bins(self) -> Bins:
        """Return the bins as real numbers."""
        magnitude = ((self.keys % _SIGN) << _DROPPED_BITS).int()
        start = magnitude.view(torch.float32).double()
        unit = (magnitude + 1).view(torch.float32).double() - start
        count = self.counts.double()
        position = self.sums / count
        variance = (self.squares / count - position**2).clamp(min=0)
        sign = torch.where(self.keys >= _SIGN, -1.0, 1.0).double()
        mean = sign * (start + position * unit)
        order = mean.argsort()
        return Bins(mean[order], ((3 * variance).sqrt() * unit)[order], count[order])
