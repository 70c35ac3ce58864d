import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from recipes.forecasting import windows
from recipes.mackey_glass import MackeyGlass, MackeyGlassForecaster, data
from recipes.mackey_glass.series import simulate


def method_of_steps(history: float, delays: int) -> np.ndarray:
    """Integrate delay after delay with scipy, each an ordinary equation driven by the one before: t = 1, 2, ..."""
    solution, samples, x = lambda t: np.array([history]), [], history
    for begin in range(0, 17 * delays, 17):
        previous = solution

        def slope(t: float, x: np.ndarray, previous=previous) -> np.ndarray:
            delayed = previous(t - 17)
            return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

        times = np.arange(begin + 1, begin + 18)
        result = solve_ivp(slope, (begin, begin + 17), [x], "DOP853", times, True, rtol=1e-12, atol=1e-12)
        solution, x = result.sol, result.y[0, -1]
        samples.extend(result.y[0])
    return np.array(samples)


@pytest.fixture(scope="module")
def mackey_glass() -> MackeyGlass:
    made = MackeyGlass()
    made.setup("fit")
    return made


@pytest.mark.parametrize("history", [0.5, 1.2])
def test_series_against_an_independent_integration(history: float) -> None:
    expected = method_of_steps(history, delays=12)
    series = simulate(np.array([history, 0.9]), samples=150, skip=54)
    assert series.shape == (2, 150) and series.dtype == np.float64
    np.testing.assert_allclose(series[0], expected[54:], atol=1e-6)


def test_a_shorter_step_gives_the_same_series_to_the_fourth_order() -> None:
    exact, coarse, fine = (simulate(np.array([0.7]), samples=80, skip=0, step=step) for step in (0.025, 0.5, 0.25))
    assert 10 < np.abs(coarse - exact).max() / np.abs(fine - exact).max() < 25


def test_windows_against_a_loop() -> None:
    series = np.arange(24.0).reshape(2, 12)
    inputs, targets = windows(series, window=4, horizon=3)
    assert inputs.shape == (2, 6, 4) and targets.shape == (2, 6)
    for row in range(2):
        for begin in range(6):
            assert inputs[row, begin].tolist() == series[row, begin : begin + 4].tolist()
            assert targets[row, begin] == series[row, begin + 3 + 3]


def test_examples_are_windows_of_separate_series_normalised_by_the_training_ones(mackey_glass: MackeyGlass) -> None:
    series = simulate(np.random.default_rng(17).uniform(0.5, 1.3, 16), samples=400)
    normalised = (series - series[:8].mean()) / series[:8].std()
    for part, (x, y) in (
        (normalised[:8], mackey_glass.train_set.tensors),
        (normalised[8:], mackey_glass.test_set.tensors),
    ):
        assert x.shape == (8 * 366, 18, 1) and y.shape == (8 * 366,)
        assert x.dtype == y.dtype == torch.float32
        for example in (0, 365, 366, 8 * 366 - 1):
            row, begin = divmod(example, 366)
            np.testing.assert_allclose(x[example, :, 0], part[row, begin : begin + 18], atol=1e-6)
            assert y[example].item() == pytest.approx(part[row, begin + 17 + 17], abs=1e-6)


def test_nothing_of_the_test_series_reaches_the_training_set(
    mackey_glass: MackeyGlass, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(histories: np.ndarray, samples: int) -> np.ndarray:
        series = simulate(histories, samples)
        return np.concatenate([series[:8], 5 * series[8:]])

    monkeypatch.setattr(data, "simulate", altered)
    other = MackeyGlass()
    other.setup("fit")
    assert all(map(torch.equal, other.train_set.tensors, mackey_glass.train_set.tensors))
    assert not torch.equal(other.test_set.tensors[0], mackey_glass.test_set.tensors[0])


def test_baselines_by_the_normal_equations(mackey_glass: MackeyGlass) -> None:
    (x, y), (test_x, test_y) = (
        [part.double().numpy() for part in dataset.tensors]
        for dataset in (mackey_glass.train_set, mackey_glass.test_set)
    )
    x, test_x = (np.concatenate([part[..., 0], np.ones((len(part), 1))], axis=1) for part in (x, test_x))
    weights = np.linalg.solve(x.T @ x, x.T @ y)
    spread = np.sqrt(np.mean((test_y - test_y.mean()) ** 2))
    expected = {
        "last value": np.sqrt(np.mean((test_x[:, 17] - test_y) ** 2)) / spread,
        "linear AR": np.sqrt(np.mean((test_x @ weights - test_y) ** 2)) / spread,
    }
    baselines = mackey_glass.baselines()
    assert baselines.keys() == expected.keys()
    for name, value in expected.items():
        assert baselines[name]["test/nrmse"] == pytest.approx(value, rel=1e-6)


def test_the_models_metric_is_the_baselines(mackey_glass: MackeyGlass) -> None:
    score = MackeyGlassForecaster().score
    for x, y in mackey_glass.test_dataloader():
        score.update(x[:, -1, 0], y)
    assert score.compute().item() == pytest.approx(mackey_glass.baselines()["last value"]["test/nrmse"], rel=1e-4)
