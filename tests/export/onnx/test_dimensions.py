"""Which dimensions are fixed where a model can't have all of them dynamic."""

from __future__ import annotations

import warnings

import pytest
import torch

from qgru.export.onnx.dimensions import as_dynamic_as_possible, dynamic_axes, dynamic_shapes

X, HX = torch.zeros(3, 1, 4, 2), torch.zeros(1, 3, 5)


class Exporter:
    """Exports once the dimensions that it needs are fixed; `needed` is None where nothing helps."""

    def __init__(self, *needed: tuple[int, int], never: bool = False) -> None:
        self.needed, self.never, self.tried = frozenset(needed), never, []

    def __call__(self, fixed):
        self.tried.append(fixed)
        if self.never or not self.needed <= fixed:
            raise RuntimeError(f"attempt {len(self.tried)}")
        return "a file"


def test_nothing_is_tried_twice_where_all_may_vary():
    exporter = Exporter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_dynamic_as_possible(exporter, ["x"], (X,)) == "a file"
    assert exporter.tried == [frozenset()]


@pytest.mark.parametrize(
    ("args", "needed", "fixed", "attempts"),
    [
        ((X,), [(0, 1)], "dimension 1 of 'x' at 1", 2),
        ((X,), [(0, 0)], "dimension 0 of 'x' at 3", 4),
        ((X,), [(0, 0), (0, 1)], "dimension 0 of 'x' at 3, dimension 1 of 'x' at 1", 4),
        ((X, HX), [(1, 1)], "dimension 1 of 'hx' at 3", 5),
        ((X, HX), [(0, 1), (1, 1)], "dimension 1 of 'x' at 1, dimension 1 of 'hx' at 3", 7),
    ],
)
def test_as_few_as_will_do(args, needed, fixed, attempts):
    exporter = Exporter(*needed)
    with pytest.warns(UserWarning, match=rf"^qgru: the file fixes {fixed}: .*RuntimeError.*dynamic_axes says"):
        assert as_dynamic_as_possible(exporter, ["x", "hx"], args) == "a file"
    assert len(exporter.tried) == len(set(exporter.tried)) == attempts


@pytest.mark.parametrize("args", [(), (7,), (X,), (X, HX)])
def test_where_it_is_not_the_dimensions_the_first_error_is_raised(args):
    exporter = Exporter(never=True)
    with pytest.raises(RuntimeError, match="^attempt 1$"):
        as_dynamic_as_possible(exporter, ["x", "hx"], args)
    assert len(exporter.tried) <= 3


def test_what_the_exporters_are_told():
    fixed = frozenset([(0, 1), (1, 0)])
    assert dynamic_axes(["x", "hx"], (X, HX), fixed) == {"x": {0: "x_dim_0"}, "hx": {1: "hx_dim_1"}}
    auto = torch.export.Dim.AUTO
    assert dynamic_shapes((X, [None, HX]), fixed) == ({0: auto}, [None, {1: auto}])
