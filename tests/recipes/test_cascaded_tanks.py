import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from recipes.cascaded_tanks import CascadedTanks, LevelSensor, data
from recipes.cascaded_tanks.plant import START, simulate, voltages


def sample_after_sample(voltage: np.ndarray) -> np.ndarray:
    """Integrate with scipy, a sample at a time: the lower level at the end of each."""

    def slope(t: float, levels: np.ndarray, volts: float) -> list[float]:
        upper, lower = levels
        spill = (upper - 1) ** 1.5 if upper > 1 else 0.0
        return [0.35 * volts - 0.3 * upper**0.5 - spill, 0.3 * upper**0.5 + 0.6 * spill - 0.3 * lower**0.5]

    levels, samples = np.array([START, START]), []
    for volts in voltage:
        levels = solve_ivp(slope, (0, 1), levels, "DOP853", args=(volts,), rtol=1e-11, atol=1e-11).y[:, -1]
        samples.append(levels[1])
    return np.array(samples)


@pytest.fixture(scope="module")
def tanks() -> CascadedTanks:
    made = CascadedTanks()
    made.setup("fit")
    return made


def test_plant_against_an_independent_integration() -> None:
    voltage = np.stack([np.repeat([0.6, 1.0, 0.3, 0.9], 12), np.full(48, 0.5)])
    levels = simulate(voltage)
    assert levels.shape == (2, 48) and levels.dtype == np.float64
    for series in range(2):
        np.testing.assert_allclose(levels[series], sample_after_sample(voltage[series]), atol=1e-5)


def test_the_upper_tank_spills_where_the_pump_is_full() -> None:
    full, most = simulate(np.ones((1, 200)))[0, -1], simulate(np.full((1, 200), 0.3 / 0.35))[0, -1]
    assert most == pytest.approx(1, abs=1e-4)  # what just fills both
    upper = next(level for level in np.linspace(1, 1.3, 100_001) if 0.3 * level**0.5 + (level - 1) ** 1.5 >= 0.35)
    assert full == pytest.approx((upper**0.5 + 2 * (upper - 1) ** 1.5) ** 2, abs=1e-4)


def test_an_empty_tank_stays_empty() -> None:
    levels = simulate(np.zeros((1, 100)))[0]
    assert np.isfinite(levels).all() and abs(levels[-1]) < 1e-2


def test_voltages_are_kept_for_2_to_15_samples() -> None:
    voltage = voltages(np.random.default_rng(3), series=50, samples=400)
    assert voltage.shape == (50, 400) and 0 <= voltage.min() < 0.01 and 0.99 < voltage.max() <= 1
    kept = np.concatenate([np.diff(np.flatnonzero(np.diff(row))) for row in voltage])
    assert sorted(set(kept)) == list(range(2, 16))


def test_examples_are_separate_series_normalised_by_the_training_ones(tanks: CascadedTanks) -> None:
    voltage = voltages(np.random.default_rng(17), 384, 128)
    for values, parts in (
        (voltage, (tanks.train_set.tensors[0][..., 0], tanks.test_set.tensors[0][..., 0])),
        (simulate(voltage), (tanks.train_set.tensors[1], tanks.test_set.tensors[1])),
    ):
        normalised = (values - values[:256].mean()) / values[:256].std()
        assert [part.shape for part in parts] == [(256, 128), (128, 128)]
        assert {part.dtype for part in parts} == {torch.float32}
        np.testing.assert_allclose(torch.cat(parts), normalised, atol=1e-6)


def test_nothing_of_the_test_series_reaches_the_training_set(
    tanks: CascadedTanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "simulate", lambda u: np.concatenate([simulate(u)[:256], 5 * simulate(u)[256:]]))
    other = CascadedTanks()
    other.setup("fit")
    assert all(map(torch.equal, other.train_set.tensors, tanks.train_set.tensors))
    assert not torch.equal(other.test_set.tensors[1], tanks.test_set.tensors[1])


def test_the_baseline_by_the_normal_equations(tanks: CascadedTanks) -> None:
    def rows(x: torch.Tensor) -> np.ndarray:
        series = x[..., 0].double().numpy()
        lags = [np.concatenate([np.zeros((len(series), lag)), series[:, : 128 - lag]], axis=1) for lag in range(32)]
        return np.stack([*lags, np.ones_like(series)], axis=-1).reshape(-1, 33)

    (x, y), (test_x, test_y) = (
        (rows(part.tensors[0]), part.tensors[1].double().numpy().reshape(-1))
        for part in (tanks.train_set, tanks.test_set)
    )
    error = test_x @ np.linalg.solve(x.T @ x, x.T @ y) - test_y
    expected = np.sqrt(np.mean(error**2) / np.mean((test_y - test_y.mean()) ** 2))
    assert tanks.baselines() == {"linear FIR": {"test/nrmse": pytest.approx(expected, rel=1e-6)}}


def test_the_models_metric_is_the_baselines(tanks: CascadedTanks) -> None:
    score = LevelSensor().score
    for x, y in tanks.test_dataloader():
        score.update(x[..., 0], y)
    x, y = (part.double() for part in tanks.test_set.tensors)
    assert score.compute().item() == pytest.approx(data.nrmse(x[..., 0].numpy(), y.numpy()), rel=1e-4)


def test_a_level_depends_on_voltages_up_to_its_sample(tanks: CascadedTanks) -> None:
    model, x = LevelSensor().eval(), tanks.test_set.tensors[0][:3]
    assert model(x).shape == (3, 128)
    torch.testing.assert_close(model(x[:, :50]), model(x)[:, :50])


def test_a_stack_of_both_directions_smooths(tanks: CascadedTanks) -> None:
    model, x = LevelSensor(hidden_size=5, num_layers=2, bidirectional=True).eval(), tanks.test_set.tensors[0][:3]
    assert (model.gru.num_layers, model.gru.bidirectional, model.head.in_features) == (2, True, 10)
    assert model(x).shape == (3, 128)
    assert not torch.allclose(model(x[:, :50]), model(x)[:, :50])
