"""Integer input and output: the float path's integers, layouts, and errors."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from qgru import Grid, QuantGRU
from tests.calibrated import calibrated
from tests.random_gru import random_gru


def of_direction(gru: QuantGRU) -> list[Grid]:
    grid = gru.output_grid
    return [grid] if isinstance(grid, Grid) else list(grid)


def random_integers(rng: random.Random, grid: Grid, *shape: int) -> Tensor:
    count = torch.tensor(shape).prod()
    return torch.tensor([rng.randint(grid.qmin, grid.qmax) for _ in range(int(count))]).view(shape)


@pytest.mark.parametrize("seed", range(24))
def test_it_gives_the_integers_of_the_real_path(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    widths = (range(2, 9), range(2, 17), range(9, 30))[seed % 3]
    gru, _ = random_gru(seed, tmp_path / "q.json", widths, torch.float64, batch_first=False)
    x_q = random_integers(rng, gru.input_grid, rng.randint(1, 6), rng.randint(1, 4), gru.input_size)
    directions = 2 if gru.bidirectional else 1
    grids = [gru.grids(i // directions, i % directions == 1)["output.h"] for i in range(gru.num_layers * directions)]
    hx_q = torch.stack([random_integers(rng, grid, x_q.shape[1], gru.hidden_size) for grid in grids])
    output, h_n = gru.forward_integers(x_q, hx_q)
    with torch.no_grad():
        hx = torch.stack([grid.dequantize(h) for grid, h in zip(grids, hx_q, strict=True)])
        real, real_n = gru(gru.input_grid.dequantize(x_q), hx)
    for part, values, grid in zip(
        output.chunk(directions, -1), real.chunk(directions, -1), of_direction(gru), strict=True
    ):
        assert torch.equal(grid.dequantize(part), values)
    for last, values, grid in zip(h_n, real_n, grids, strict=True):
        assert torch.equal(grid.dequantize(last), values)


def test_stages_chain_without_a_real_number() -> None:
    gru = calibrated(7, 5, "int8")
    x_q = torch.randint(-128, 128, (6, 3, 5), dtype=torch.int8)
    whole, last = gru.forward_integers(x_q)
    first, state = gru.forward_integers(x_q[:2])
    rest, end = gru.forward_integers(x_q[2:], state)
    assert torch.equal(torch.cat((first, rest)), whole) and torch.equal(end, last) and whole.dtype == torch.int32


def test_layouts_are_forwards() -> None:
    gru = calibrated(7, 5, "int8", batch_first=True, bidirectional=True)
    x_q = torch.randint(-128, 128, (3, 6, 5))
    output, h_n = gru.forward_integers(x_q)
    assert (output.shape, h_n.shape) == ((3, 6, 14), (2, 3, 7))
    alone, alone_n = gru.forward_integers(x_q[0])
    assert torch.equal(alone, output[0]) and torch.equal(alone_n, h_n[:, 0])
    packed, _ = gru.forward_integers(pack_padded_sequence(x_q, [6, 4, 1], batch_first=True))
    padded, _ = pad_packed_sequence(packed, batch_first=True)
    assert torch.equal(padded[2, :1], gru.forward_integers(x_q[2, :1])[0])


def test_bad_input_is_an_error_that_names_it() -> None:
    gru = calibrated(7, 5, "int8")
    with pytest.raises(TypeError, match="x_q is torch.float32"):
        gru.forward_integers(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="x_q holds integers from 0 to 128; expected -128 to 127"):
        gru.forward_integers(torch.arange(130)[:15].view(1, 3, 5) * 0 + torch.tensor([0, 1, 2, 3, 128]))
    with pytest.raises(ValueError, match="hx_q holds"):
        gru.forward_integers(torch.zeros(2, 3, 5, dtype=torch.int8), torch.full((1, 3, 7), 500))
    with pytest.raises(RuntimeError, match="size 5, got 4"):
        gru.forward_integers(torch.zeros(2, 3, 4, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="not calibrated"):
        QuantGRU(5, 7).forward_integers(torch.zeros(2, 3, 5, dtype=torch.int8))
    with torch.no_grad():
        gru.weight_hh_l0[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        gru.forward_integers(torch.zeros(2, 3, 5, dtype=torch.int8))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_of_none(bidirectional: bool) -> None:
    gru = calibrated(7, 5, "int8", num_layers=2, bidirectional=bidirectional)
    directions = 1 + bidirectional
    for hx_q in (None, torch.zeros(2 * directions, 0, 7, dtype=torch.int8)):
        output, h_n = gru.forward_integers(torch.zeros(6, 0, 5, dtype=torch.int8), hx_q)
        assert (output.shape, h_n.shape) == ((6, 0, 7 * directions), (2 * directions, 0, 7))
        assert output.dtype == h_n.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_sixteen_bits(dtype: torch.dtype) -> None:
    """They are real numbers like others: float32 ones of the same values give the same integers."""
    gru = calibrated(7, 5, "int16", num_layers=2, bidirectional=True).to(dtype)
    wide = copy.deepcopy(gru).float()
    x_q, hx_q = torch.randint(-30000, 30000, (6, 3, 5)), torch.randint(-30000, 30000, (4, 3, 7))
    for one, other in zip(gru.forward_integers(x_q, hx_q), wide.forward_integers(x_q, hx_q), strict=True):
        assert torch.equal(one, other)
