from dataclasses import replace

import pytest
import torch
from torch import nn

import qgru
from qgru import QuantGRU
from qgru.schema import OPERATORS
from qgru.search import refine_exponents
from qgru.search.refine import _Candidate, _moved
from qgru.state import BUFFERS
from tests.calibrated import quantize

BATCHES = [torch.randn(7, 6, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def calibrated(bitwidth=6, is_symmetric=True, **kwargs):
    torch.manual_seed(3)
    gru = QuantGRU(3, 5, **kwargs)
    gru.set_all_bitwidth(bitwidth, is_symmetric)
    return quantize(gru, torch.cat(BATCHES, 1))


def relative_error(gru):
    """Of both outputs of a `QuantGRU`, each relative to its variance in float."""
    results = {}
    for gru.use_quantization in (False, True):
        with torch.no_grad():
            outputs = [gru(batch) for batch in BATCHES]
        results[gru.use_quantization] = [torch.cat([pair[i].flatten() for pair in outputs]).double() for i in (0, 1)]
    pairs = zip(results[True], results[False], strict=True)
    return sum(float((q - f).square().mean() / f.var(unbiased=False)) for q, f in pairs) / 2


def buffers(gru):
    return {name: getattr(gru, name).clone() for name in BUFFERS}


def exponents(gru, layer=0, reverse=False):
    return {name: grid.exponents for name, grid in gru.grids(layer, reverse).items()}


def test_a_grid_that_is_far_off_is_brought_back():
    gru = calibrated(8)
    good = gru.get_quant_config("Rh")["exp2_inv"]
    gru.adjust_quant_config("Rh", exp2_inv=good - 3)
    moves = refine_exponents(gru, BATCHES)
    assert [str(move) for move in moves[:2]] == ["matmul.Rh finer"] * 2
    assert gru.get_quant_config("Rh")["exp2_inv"] >= good - 1


def test_the_errors_told_are_those_of_the_outputs():
    gru = calibrated(4)
    before = relative_error(gru)
    moves = refine_exponents(gru, BATCHES)
    assert moves[0].before == pytest.approx(before, rel=1e-6)
    assert moves[-1].after == pytest.approx(relative_error(gru), rel=1e-6)
    assert [move.after for move in moves[:-1]] == [move.before for move in moves[1:]]
    assert all(move.after < 0.99 * move.before for move in moves)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_exponents_move_as_told_and_nothing_else_does(is_symmetric):
    gru = calibrated(5, is_symmetric, num_layers=2 - is_symmetric, bidirectional=is_symmetric)
    gru.adjust_quant_config("x", exp2_inv=gru.get_quant_config("x")["exp2_inv"] + 3)
    gru.use_quantization = False
    places = [(0, False), (0, True)] if is_symmetric else [(0, False), (1, False)]
    before = {place: gru.grids(*place) for place in places}
    moves = refine_exponents(gru, BATCHES)
    expected = {place: dict(grids) for place, grids in before.items()}
    for move in moves:
        for reverse in {move.direction.reverse} | ({True} if move.operator == "input.x" and is_symmetric else set()):
            grids = expected[move.direction.layer, reverse]
            grid = grids[move.operator]
            moved = [exponent + move.step for exponent in grid.exponents]
            grids[move.operator] = replace(grid, exp2_inv=tuple(moved) if grid.is_per_channel else moved[0])
            if move.operator == "matmul.Rh":
                grids["op.Rh_add_br"] = grids["matmul.Rh"]
    assert moves[0].operator == "input.x" and {place: gru.grids(*place) for place in places} == expected
    assert not gru.use_quantization and not {move.operator for move in moves if OPERATORS[move.operator].function}


def test_layers_inside_a_model_by_name():
    torch.manual_seed(0)
    model = qgru.convert(nn.ModuleDict({"a": nn.GRU(3, 4), "b": nn.GRU(4, 4, bias=False)}))
    for gru in model.values():
        gru.set_all_bitwidth(5)

    def call(module, x):
        return module["b"](module["a"](x)[0])[0]

    qgru.stages.calibrate(model, BATCHES, call)
    qgru.stages.finalize(model)
    model["a"].adjust_quant_config("Wx", exp2_inv=model["a"].get_quant_config("Wx")["exp2_inv"] + 3)
    seen = []
    moves = refine_exponents(model, BATCHES, call, progress=lambda *told: seen.append(told))
    assert str(moves[0]) == "a/matmul.Wx coarser" and moves[0].layer == "a"
    assert not {text for *_, text in seen if text.startswith(("b/weight.bw", "b/weight.br"))}
    assert all(0 < done <= total for done, total, _ in seen) and seen[-1][0] == seen[-1][1]


def test_a_failure_leaves_the_grids_as_they_were():
    gru, calls = calibrated(4), []
    before = buffers(gru)

    def call(module, batch):
        calls.append(batch)
        if len(calls) > 60:  # when the first move has been made
            raise KeyError("audio")
        return module(batch)[0]

    with pytest.raises(RuntimeError, match="audio"):
        refine_exponents(gru, BATCHES, call)
    assert all(torch.equal(before[name], value) for name, value in buffers(gru).items())
    assert gru.use_quantization and gru.has_observations()


def test_what_was_only_observed_is_finalized_with_it():
    gru = calibrated(4)
    expected, moved = exponents(gru), refine_exponents(gru, BATCHES)
    refined = buffers(gru)
    other = calibrated(4)
    other.reset_calibration()
    other.calibrating = True
    other(torch.cat(BATCHES, 1))
    other.calibrating = False
    assert not other.is_calibrated()
    assert refine_exponents(other, BATCHES) == moved and moved
    assert all(torch.equal(refined[name], value) for name, value in buffers(other).items())
    other(BATCHES[0])  # which does not finalize anew
    assert exponents(other) == exponents(gru) != expected


def test_without_grids_and_observations_there_is_nothing_to_refine():
    with pytest.raises(RuntimeError, match="not calibrated"):
        refine_exponents(QuantGRU(3, 5), BATCHES)
    with pytest.raises(ValueError, match="batches is empty"):
        refine_exponents(calibrated(), [])


def test_no_move_leaves_the_ranges_of_grids_and_of_exact_arithmetic():
    gru = calibrated(8)
    gru.adjust_quant_config("x", exp2_inv=64)
    state = gru._quant_state()
    direction = qgru.direction.Direction()
    assert _moved(gru, state, _Candidate("", direction, "input.x", 1)) is None
    coarsest = max(grid.bitwidth - grid.exp2_inv for name, grid in gru.grids().items() if name.startswith("matmul"))
    gru.adjust_quant_config("bw", exp2_inv=60 - coarsest)  # a sum may take 60 bits
    gru.adjust_quant_config("Rh", exp2_inv=8 - coarsest)
    state = gru._quant_state()
    assert _moved(gru, state, _Candidate("", direction, "matmul.Rh", 1)) is not None
    assert _moved(gru, state, _Candidate("", direction, "matmul.Rh", -1)) is None
