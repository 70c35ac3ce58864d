"""The bounds that decide between float32, float64, tables and refusal."""

import numpy as np
import pytest
import torch

from qgru import Grid
from qgru.export.onnx.arithmetic import Arithmetic, Exact, Target
from qgru.export.onnx.program import Builder, Value


def exact(dtype: str, exponent: float, limit: float) -> Exact:
    return Exact(Value(dtype, ("B", 1)), np.array(exponent), np.array(limit))


@pytest.mark.parametrize(("bits", "dtype"), [(24, "float32"), (25, "float64"), (53, "float64")])
def test_a_sum_runs_in_the_narrowest_exact_type(bits, dtype):
    arithmetic = Arithmetic(Builder(()), Target(21), "layer 0")
    total = arithmetic.add(
        "gate.z_pre", exact("float32", 10, 2.0 ** (bits - 11)), exact("float32", 0, 2.0 ** (bits - 11))
    )
    assert total.value.dtype == dtype
    with pytest.raises(ValueError, match="layer 0: output.h quantizes a value of 54 bits"):
        arithmetic.add("output.h", exact("float64", 10, 2.0**42), exact("float64", 0, 2.0**43))


def test_zeros_need_no_bits():
    arithmetic = Arithmetic(Builder(()), Target(21), "layer 0")
    weight = arithmetic.weight(torch.tensor([[0, 0], [4, 12]]), Grid(8, True, False, (64, 3), 0))
    assert weight.exact.exponent.tolist() == [-np.inf, 1.0]
    product = arithmetic.matmul("matmul.Wx", exact("float32", 4, 8.0), weight)
    assert product.value.dtype == "float32"


@pytest.mark.parametrize(
    ("target", "grid", "stored"),
    [
        (Target(13), Grid(8, True, True, 0, 0), "uint8"),
        (Target(13), Grid(2, True, False, 0, 0), "int8"),
        (Target(20), Grid(9, True, False, 0, 0), None),
        (Target(21), Grid(9, True, False, 0, 0), "int16"),
        (Target(21), Grid(16, True, True, 0, 0), "uint16"),
        (Target(21, has_uint16=False), Grid(12, True, True, 0, 0), "int16"),
        (Target(21), Grid(17, True, False, 0, 0), None),
    ],
)
def test_containers(target, grid, stored):
    container = target.container(grid)
    assert (container and container.dtype) == stored
    if container:
        bounds = np.iinfo(container.dtype)
        assert bounds.min <= grid.qmin - container.offset <= grid.qmax - container.offset <= bounds.max
