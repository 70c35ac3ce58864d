"""What calibration sees: the float values of every operator, all of them and no others, in whatever order they come."""

import copy
import math
import os
import random
import tempfile
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from qgru import QuantGRU, calibration
from tests.calibration.raw import BOUNDED, OBSERVED, calibrate, minmax, observe, random_batches, raw_values
from tests.oracle import OPTIONAL

pytestmark = pytest.mark.filterwarnings("ignore:.*saturate to 0", "ignore:outside the exactness domain")


def configured(seed: int, optional: bool = False, dtype: torch.dtype = torch.float64, **options: object) -> QuantGRU:
    """A module with every activation's width, symmetry and sign drawn at random."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    settings = {
        "num_layers": rng.choice((1, 2)),
        "bidirectional": rng.random() < 0.5,
        "bias": rng.random() < 0.8,
        **options,
    }
    gru = QuantGRU(3, 5, **settings, batch_first=rng.random() < 0.5, dtype=dtype)
    operators = {
        name: {"bitwidth": rng.randint(2, 16), "is_symmetric": rng.random() < 0.5, "is_unsigned": rng.random() < 0.2}
        for name in (*OBSERVED, *BOUNDED, *([OPTIONAL] if optional else []))
    }
    gru.load_bitwidth_config({"operator_config": operators})
    return gru


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_minmax_grids_follow_from_every_value(seed: int, optional: bool) -> None:
    gru = configured(seed, optional)
    batches = random_batches(gru, seed=seed, packed=bool(seed % 3))
    raw = raw_values(gru, batches)
    calibrate(gru, batches)
    for (layer, reverse), values in raw.items():
        grids = gru.grids(layer, reverse)
        for name in (*OBSERVED, *([OPTIONAL] if optional else [])):
            data = values["Rh alone" if optional and name == "matmul.Rh" else name]
            config = gru.bitwidth_config.operators[name]
            want = minmax(data.min(), data.max(), config.bitwidth, config.is_symmetric, config.is_unsigned)
            got = grids[name]
            assert (got.exp2_inv, got.zero_point) == (want.exp2_inv, want.zero_point), name
        if not optional:
            assert grids[OPTIONAL] == grids["matmul.Rh"]


def test_float32_is_seen_alike() -> None:
    for seed in range(4):
        gru = configured(seed, dtype=torch.float32)
        gru.set_all_bitwidth(8)
        batches = random_batches(gru, seed=seed)
        raw = raw_values(gru, batches)
        calibrate(gru, batches)
        for (layer, reverse), values in raw.items():
            for name in OBSERVED:
                config = gru.bitwidth_config.operators[name]
                wanted = {
                    minmax(values[name].min() * f, values[name].max() * f, 8, True, config.is_unsigned).exp2_inv
                    for f in (1 - 1e-5, 1, 1 + 1e-5)
                }
                assert gru.grids(layer, reverse)[name].exp2_inv in wanted, name


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
def test_the_order_and_size_of_batches_does_not_matter(method: str) -> None:
    gru = configured(1, num_layers=2, bidirectional=True)
    batches = random_batches(gru, 5)
    rows = [
        (x[i : i + 1, :n], [n], None if h0 is None else h0[:, i : i + 1])
        for x, lengths, h0 in batches
        for i, n in enumerate(lengths)
    ]
    random.Random(0).shuffle(rows)
    orders = [batches, batches[::-1], rows]
    copies = [calibrate(copy.deepcopy(gru), order, method, 97.0) for order in orders]
    for layer in range(2):
        for reverse in (False, True):
            assert copies[0].grids(layer, reverse) == copies[1].grids(layer, reverse) == copies[2].grids(layer, reverse)


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
def test_padding_is_never_seen(method: str) -> None:
    gru = configured(2, bidirectional=True, dtype=torch.float32)
    batches = random_batches(gru, 3)
    clean = [(x.clone(), lengths, h0) for x, lengths, h0 in batches]
    for x, lengths, _ in clean:
        for row, length in enumerate(lengths):
            x[row, length:] = math.nan
    first, second = (calibrate(copy.deepcopy(gru), data, method) for data in (batches, clean))
    assert first.grids(0, True) == second.grids(0, True) and first.grids() == second.grids()


def test_an_initial_state_counts_as_a_state() -> None:
    gru = QuantGRU(3, 5, batch_first=True)
    x, h0 = torch.randn(2, 4, 3) * 0.1, torch.zeros(1, 2, 5)
    h0[0, 1, 2] = -37.0
    calibrate(gru, [(x, None, h0)])
    grid = gru.grids()["output.h"]
    assert 37.0 <= grid.qmax * grid.scale < 74.0


def test_input_is_shared_by_the_directions_of_a_layer() -> None:
    gru = configured(4, num_layers=2, bidirectional=True)
    calibrate(gru, random_batches(gru))
    for layer in range(2):
        assert gru.grids(layer, False)["input.x"] == gru.grids(layer, True)["input.x"]
        assert gru.grids(layer, False)["matmul.Rh"].bitwidth == gru.grids(layer, True)["matmul.Rh"].bitwidth


def test_calibrating_leaves_the_float_forward_alone() -> None:
    """Same output, same gradients, same dropout masks as in `nn.GRU`."""
    gru = QuantGRU(3, 5, 2, dropout=0.5)
    plain = torch.nn.GRU(3, 5, 2, dropout=0.5)
    plain.load_state_dict(dict(gru.named_parameters()))
    gru.calibrating = True
    x = torch.randn(6, 2, 3)
    results = []
    for module in (plain, gru):
        torch.manual_seed(5)
        output = module(x)[0]
        output.sum().backward()
        results.append((output, module.weight_ih_l0.grad, torch.rand(2)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_calibrating_in_inference_mode_leaves_a_trainable_module() -> None:
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    with torch.inference_mode():
        gru(torch.randn(6, 2, 3))
    gru.calibrating = False
    gru.use_quantization = True
    gru(torch.randn(6, 2, 3))[0].sum().backward()
    assert gru.weight_ih_l0.grad.abs().sum() > 0


def test_statistics_are_those_of_the_full_precision_forward_under_autocast() -> None:
    gru = QuantGRU(3, 5)
    gru.calibrating = True
    with torch.autocast("cpu", torch.bfloat16):
        gru(torch.randn(30, 4, 3))
    gru.calibrating = False
    gru.finalize_calibration()
    assert gru.is_calibrated()


def test_new_data_refinalizes_at_the_next_quantized_forward() -> None:
    gru = QuantGRU(3, 5)
    gru.calibration_method = "minmax"
    x = torch.randn(6, 2, 3)
    observe(gru, [(x, None, None)])
    gru.use_quantization = True
    assert not gru.is_calibrated()
    gru(x)
    assert gru.is_calibrated()
    before = gru.grids()
    observe(gru, [(x * 64, None, None)])
    gru(x)
    after = gru.grids()
    assert after["input.x"].exp2_inv == before["input.x"].exp2_inv - 6
    gru(x)
    assert gru.grids() == after


def test_reset_forgets_observations_and_grids() -> None:
    gru = QuantGRU(3, 5)
    assert not gru.has_observations()
    calibrate(gru, [(torch.randn(6, 2, 3) * 100, None, None)])
    assert gru.has_observations() and gru.is_calibrated()
    gru.reset_calibration()
    assert not gru.has_observations() and not gru.is_calibrated()
    x = torch.randn(6, 2, 3)
    calibrate(gru, [(x, None, None)])
    fresh = QuantGRU(3, 5)
    fresh.load_state_dict(dict(gru.named_parameters()))
    assert calibrate(fresh, [(x, None, None)]).grids() == gru.grids()


@pytest.mark.parametrize("name", OBSERVED)
def test_histograms_count_every_value_once(name: str) -> None:
    gru = configured(3, num_layers=1, bidirectional=True)
    batches = random_batches(gru, 4)
    raw = raw_values(gru, batches)
    observe(gru, batches)
    for reverse in (False, True):
        edges, counts = (np.asarray(part) for part in calibration.histogram(gru, name, 0, reverse))
        values = raw[0, reverse][name]
        assert edges.shape == (len(counts) + 1,) and (np.diff(edges) > 0).all()
        assert counts.dtype.kind == "i" and counts.sum() == len(values)
        slack = 1e-6 * np.abs(values).max()
        assert edges[0] <= values.min() + slack and values.max() - slack <= edges[-1]
        below = np.searchsorted(np.sort(values), edges[1:-1])
        assert np.abs(np.cumsum(counts)[:-1] - below).max() <= 2


def _grids(gru: QuantGRU) -> list:
    gru.finalize_calibration()
    return [gru.grids(layer, reverse) for layer in (0, 1) for reverse in (False, True)]


def _rank(rank: int, file: str, results: dict) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    for count in (5, 1):
        gru = configured(6, num_layers=2, bidirectional=True)
        observe(gru, random_batches(gru, count)[rank::2])
        calibration.merge_ranks(gru)
        results[count, rank] = _grids(gru)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_end_with_the_grids_of_one_process() -> None:
    """Also where the second rank saw nothing."""
    with tempfile.TemporaryDirectory() as folder, mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (os.path.join(folder, "store"), results), nprocs=2)
        ranks = dict(results)
    for count in (5, 1):
        gru = configured(6, num_layers=2, bidirectional=True)
        observe(gru, random_batches(gru, count))
        assert ranks[count, 0] == ranks[count, 1] == _grids(gru)


def test_merging_without_ranks_changes_nothing() -> None:
    gru = configured(1)
    observe(gru, random_batches(gru))
    other = copy.deepcopy(gru)
    calibration.merge_ranks(gru)
    for module in (gru, other):
        module.finalize_calibration()
    assert gru.grids() == other.grids()
