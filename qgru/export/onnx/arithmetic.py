"""Exact arithmetic on dequantized values, in ONNX operators.

Every value carries a bound on what it takes to represent it, so that each operator runs in float32 where that is
provably exact, in float64 where only that is, and is refused where neither is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from qgru.export.onnx.program import Builder, Constant, Dimension, Value
from qgru.grid import Grid
from qgru.ops.plan import TABLE_BITS
from qgru.ops.reference import activation_table

_FLOAT32, _FLOAT64 = 2.0**24, 2.0**53
_OPERATORS = {"sigmoid": "Sigmoid", "tanh": "Tanh"}


@dataclass(frozen=True)
class Target:
    """What the file may hold.

    Attributes:
        opset: version of ONNX's default domain; 16-bit QuantizeLinear begins with 21.
        has_uint16: False where the exporter can't write uint16; int16 with a shifted zero point serves then.
    """

    opset: int
    has_uint16: bool = True

    def container(self, grid: Grid) -> Container | None:
        """Return the integer type that QuantizeLinear stores the grid in, or None where it has none."""
        if grid.bitwidth <= 8:
            return Container("uint8" if grid.is_unsigned else "int8")
        if grid.bitwidth > 16 or self.opset < 21:
            return None
        if grid.is_unsigned and not self.has_uint16:
            return Container("int16", offset=1 << grid.bitwidth - 1)
        return Container("uint16" if grid.is_unsigned else "int16")


@dataclass(frozen=True)
class Container:
    """A type that stores ``q - offset``; a float type holds ``q - zero_point``."""

    dtype: str
    offset: int = 0

    def saturates_like(self, grid: Grid) -> bool:
        """True where the type's bounds are the grid's."""
        bounds = np.iinfo(self.dtype)
        return (bounds.min, bounds.max) == (grid.qmin - self.offset, grid.qmax - self.offset)


@dataclass(frozen=True)
class Exact:
    """A tensor whose elements are multiples of ``2**-exponent`` and at most `limit` in magnitude.

    `exponent` and `limit` are float64 arrays that broadcast along the last dimension.
    """

    value: Value
    exponent: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True)
class Weight:
    """Weights (inputs, channels), or a bias (channels,), with the reals that they stand for."""

    exact: Exact
    reals: np.ndarray


class Arithmetic:
    """Appends exact operators to a graph. What can't be exact is an error that names the quantizer it is for."""

    def __init__(self, builder: Builder, target: Target, where: str) -> None:
        self.builder = builder
        self.target = target
        self.where = where

    def add(self, operator: str, *terms: Exact) -> Exact:
        """Return the sum."""
        exponent = np.maximum.reduce(np.broadcast_arrays(*(term.exponent for term in terms)))
        limit = np.sum(np.broadcast_arrays(*(term.limit for term in terms)), axis=0)
        dtype = self._dtype(operator, exponent, limit)
        values = [self.builder.cast(term.value, dtype) for term in terms]
        shape = max((value.shape for value in values), key=len)
        # Sum and not Add: ONNX Runtime fuses DequantizeLinear, Add and QuantizeLinear into a kernel that adds the zero
        # point before it rounds, which moves ties.
        return Exact(self.builder.op("Sum", *values, dtype=dtype, shape=shape), exponent, limit)

    def multiply(self, operator: str, a: Exact, b: Exact) -> Exact:
        """Return the elementwise product of two tensors of one shape."""
        exponent, limit = a.exponent + b.exponent, a.limit * b.limit
        dtype = self._dtype(operator, exponent, limit)
        inputs = (self.builder.cast(a.value, dtype), self.builder.cast(b.value, dtype))
        return Exact(self.builder.op("Mul", *inputs, dtype=dtype, shape=a.value.shape), exponent, limit)

    def one_minus(self, operator: str, a: Exact) -> Exact:
        """Return ``1 - a``."""
        exponent, limit = np.maximum(a.exponent, 0.0), 1.0 + a.limit
        dtype = self._dtype(operator, exponent, limit)
        inputs = (Constant.of(1.0, dtype), self.builder.cast(a.value, dtype))
        return Exact(self.builder.op("Sub", *inputs, dtype=dtype, shape=a.value.shape), exponent, limit)

    def matmul(self, operator: str, a: Exact, weight: Weight) -> Exact:
        """Return ``a @ weight`` for a (..., inputs)."""
        exponent = np.max(a.exponent) + weight.exact.exponent
        limit = np.max(a.limit) * np.abs(weight.reals).sum(axis=0)
        dtype = self._dtype(operator, exponent, limit)
        left, right = self.builder.cast(a.value, dtype), self.builder.cast(weight.exact.value, dtype)
        shape = (*left.shape[:-1], right.shape[-1])
        return Exact(self.builder.op("MatMul", left, right, dtype=dtype, shape=shape), exponent, limit)

    def unfused(self, a: Exact) -> Exact:
        """Return the same tensor as a sum of one term, which ONNX Runtime does not fuse as what is just dequantized."""
        return replace(a, value=self.builder.op("Sum", a.value, dtype=a.value.dtype, shape=a.value.shape))

    def split(self, a: Exact, sizes: tuple[int, ...]) -> list[Exact]:
        """Cut the last dimension into parts."""
        cuts, channels = np.cumsum(sizes)[:-1], a.value.shape[-1:]
        exponents = np.split(np.broadcast_to(a.exponent, channels), cuts)
        limits = np.split(np.broadcast_to(a.limit, channels), cuts)
        return [Exact(*part) for part in zip(self.builder.split(a.value, sizes), exponents, limits, strict=True)]

    def weight(self, integers: torch.Tensor, grid: Grid) -> Weight:
        """Return weights, given as (channels, inputs), or a bias (channels,): integers in the file, dequantized."""
        array = integers.cpu().numpy().T
        scale = np.broadcast_to(2.0 ** -np.array(grid.exponents, dtype=np.float64), array.shape[-1:])
        reals = array * scale
        exact = Exact(self._stored_weight(array, scale, grid), _finest_exponent(array, scale), _largest(reals))
        return Weight(exact, reals)

    def _dtype(self, operator: str, exponent: np.ndarray, limit: np.ndarray) -> str:
        if _fits(_FLOAT32, exponent, limit):
            return "float32"
        if _fits(_FLOAT64, exponent, limit):
            return "float64"
        bits = int(np.ceil(np.log2(np.max(limit * 2.0**exponent))))
        raise ValueError(f"{self.where}: {operator} quantizes a value of {bits} bits; ONNX's float64 is exact up to 53")

    def _stored_weight(self, array: np.ndarray, scale: np.ndarray, grid: Grid) -> Value:
        if grid.bitwidth > 24:  # DequantizeLinear goes through float32
            real = self.builder.cast(Constant.of(array, "int64"), "float64")
            return self.builder.op("Mul", real, Constant.of(scale, "float64"), dtype="float64", shape=array.shape)
        container = self.target.container(grid) or Container("int32")
        inputs = [Constant.of(array - container.offset, container.dtype), Constant.of(scale, "float32")]
        if container.offset:
            inputs.append(Constant.of(np.full(scale.shape, -container.offset), container.dtype))
        axis = array.ndim - 1
        return self.builder.op("DequantizeLinear", *inputs, dtype="float32", shape=array.shape, axis=axis)

    def quantize(self, a: Exact | Value, grid: Grid) -> Exact:
        """Return ``Q(a)``, onto the grid and back. A plain value may hold any real number."""
        return self._dequantize(*self._quantize(a, grid), grid)

    def activate(self, function: str, pre: Exact, pre_grid: Grid, grid: Grid) -> Exact:
        """Return ``Q(function(Q(pre)))`` for ``"sigmoid"`` or ``"tanh"``: a table, as in the definition."""
        if pre_grid.bitwidth > TABLE_BITS:
            point = self.builder.cast(self.quantize(pre, pre_grid).value, "float64")
            real = self.builder.op(_OPERATORS[function], point, dtype="float64", shape=point.shape)
            return self.quantize(real, grid)
        stored, container = self._quantize(pre, pre_grid)
        table, held = self._table(function, pre_grid, container, grid)
        return self._dequantize(self._look_up(table, stored), held, grid)

    def _look_up(self, table: Constant, index: Value) -> Value:
        """Append ``table[index]`` in one dimension: ten times as fast as Gather of single elements in ONNX Runtime."""
        flat = (index.shape,)
        indices = self._reshape(self.builder.cast(index, "int32"), [-1], flat)
        found = self.builder.op("GatherElements", table, indices, dtype=table.dtype, shape=flat, axis=0)
        return self._reshape(found, [-1, index.shape[-1]], index.shape)

    def _reshape(self, value: Value, sizes: list[int], shape: tuple[Dimension, ...]) -> Value:
        return self.builder.op("Reshape", value, Constant.of(sizes, "int64"), dtype=value.dtype, shape=shape)

    def _quantize(self, a: Exact | Value, grid: Grid) -> tuple[Value, Container]:
        value, container = (a.value if isinstance(a, Exact) else a), self.target.container(grid)
        if isinstance(a, Exact) and _fits(_FLOAT32, a.exponent, a.limit):
            value = self.builder.cast(value, "float32")
        if container and value.dtype == "float32":
            if not container.saturates_like(grid):
                value = self._clip(value, *grid.real_range)
            return self._quantize_linear(value, container, grid), container
        dtype = wider(value.dtype, _grid_dtype(grid))
        scaled = self._scale(self.builder.cast(value, dtype), 2.0**grid.exp2_inv)
        rounded = self.builder.op("Round", scaled, dtype=dtype, shape=scaled.shape)
        steps = self._clip(rounded, *grid.mantissas)
        if container is None:
            return steps, Container(dtype, offset=grid.zero_point)
        return self._quantize_linear(
            self.builder.cast(self._scale(steps, grid.scale), "float32"), container, grid
        ), container

    def _dequantize(self, stored: Value, container: Container, grid: Grid) -> Exact:
        if container.dtype.startswith("float"):
            value = self.builder.cast(self._scale(stored, grid.scale), _grid_dtype(grid))
        else:
            inputs = (stored, *_scale_and_zero_point(grid, container))
            value = self.builder.op("DequantizeLinear", *inputs, dtype="float32", shape=stored.shape)
        return Exact(value, np.array(float(grid.exp2_inv)), np.array(grid.mantissa_bound * grid.scale))

    def _quantize_linear(self, value: Value, container: Container, grid: Grid) -> Value:
        inputs = (value, *_scale_and_zero_point(grid, container))
        return self.builder.op("QuantizeLinear", *inputs, dtype=container.dtype, shape=value.shape)

    def _scale(self, value: Value, factor: float) -> Value:
        return self.builder.op("Mul", value, Constant.of(factor, value.dtype), dtype=value.dtype, shape=value.shape)

    def _clip(self, value: Value, low: float, high: float) -> Value:
        bounds = (Constant.of(low, value.dtype), Constant.of(high, value.dtype))
        return self.builder.op("Clip", value, *bounds, dtype=value.dtype, shape=value.shape)

    def _table(self, function: str, pre: Grid, index: Container, out: Grid) -> tuple[Constant, Container]:
        held = self.target.container(out) or Container(_grid_dtype(out), offset=out.zero_point)
        outputs = activation_table(function, pre, out).numpy() - held.offset
        table = np.empty_like(outputs)
        # GatherElements counts negative indices from the end.
        table[(np.arange(pre.qmin, pre.qmax + 1) - index.offset) % len(table)] = outputs
        return Constant.of(table, held.dtype), held


def _fits(bound: float, exponent: np.ndarray, limit: np.ndarray) -> bool:
    return bool(np.all(limit * 2.0**exponent <= bound))


def _grid_dtype(grid: Grid) -> str:
    return "float32" if grid.mantissa_bound <= _FLOAT32 else "float64"


def wider(*dtypes: str) -> str:
    """Return the type among float32 and float64 that holds them all."""
    return "float64" if "float64" in dtypes else "float32"


def _scale_and_zero_point(grid: Grid, container: Container) -> tuple[Constant, Constant]:
    zero_point = grid.zero_point - container.offset
    return Constant.of(grid.scale, "float32"), Constant.of(zero_point, container.dtype)


def _finest_exponent(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the exponent that each channel needs: of its lowest set bit, ``-inf`` where all is zero."""
    with np.errstate(divide="ignore"):
        lowest = np.where(integers == 0, -np.inf, -np.log2((integers & -integers) * scale))
    return lowest.max(axis=0) if integers.ndim == 2 else lowest


def _largest(reals: np.ndarray) -> np.ndarray:
    return np.abs(reals).max(axis=0) if reals.ndim == 2 else np.abs(reals)
