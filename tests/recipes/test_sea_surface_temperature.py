import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from statsmodels.datasets import elnino

from recipes.sea_surface_temperature import ElNino, data
from recipes.sea_surface_temperature.data import climatology, load_temperatures

TRAIN_MONTHS, TEST_MONTHS = 585, 147  # the last 20 % of 732, begun


def read_file() -> list[float]:
    with open(Path(elnino.__file__).parent / "elnino.csv") as file:
        return [float(value) for row in list(csv.reader(file))[1:] for value in row[1:]]


def monthly_means(temperatures: list[float], months: int) -> list[float]:
    by_month = [[t for i, t in enumerate(temperatures[:months]) if i % 12 == month] for month in range(12)]
    return [sum(values) / len(values) for values in by_month]


@pytest.fixture
def el_nino() -> ElNino:
    made = ElNino()
    made.setup("fit")
    return made


def test_temperatures_are_those_of_the_file() -> None:
    assert load_temperatures().tolist() == read_file()


def test_targets_are_every_month_once_and_the_test_set_the_last_fifth(el_nino: ElNino) -> None:
    temperatures = read_file()
    means = monthly_means(temperatures, TRAIN_MONTHS)
    anomalies = [t - means[i % 12] for i, t in enumerate(temperatures)]
    assert (len(el_nino.train_set), len(el_nino.test_set)) == (TRAIN_MONTHS - 24, TEST_MONTHS)
    scale = np.std(anomalies[:TRAIN_MONTHS])
    for first, examples in ((24, el_nino.train_set), (TRAIN_MONTHS, el_nino.test_set)):
        for month, (x, change) in enumerate(examples, start=first):
            assert x.shape == (24, 1)
            np.testing.assert_allclose(x[:, 0] * scale, anomalies[month - 24 : month], atol=1e-6)
            forecast = means[month % 12] + anomalies[month - 1] + change.item()
            assert forecast == pytest.approx(temperatures[month], abs=1e-6)


def test_nothing_of_the_test_months_reaches_the_training_set(el_nino: ElNino, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = load_temperatures()
    altered[TRAIN_MONTHS:] += 100 * np.random.default_rng(0).standard_normal(TEST_MONTHS)
    monkeypatch.setattr(data, "load_temperatures", lambda: altered)
    other = ElNino()
    other.setup("fit")
    assert all(map(torch.equal, other.train_set.tensors, el_nino.train_set.tensors))
    assert torch.equal(other.test_set.tensors[0][0], el_nino.test_set.tensors[0][0])
    assert not torch.equal(other.test_set.tensors[1], el_nino.test_set.tensors[1])


def test_climatology_of_a_series_that_stops_within_a_year() -> None:
    temperatures = np.array([*range(12), *range(10, 22), 40.0, 50.0])
    expected = [5.0 + month for month in range(12)]
    np.testing.assert_allclose(climatology(temperatures, 24), [*expected, *expected, *expected[:2]])


def test_the_baseline_is_climatology_and_a_first_order_autoregression(el_nino: ElNino) -> None:
    temperatures = read_file()
    means = monthly_means(temperatures, TRAIN_MONTHS)
    anomalies = [t - means[i % 12] for i, t in enumerate(temperatures)]
    pairs = [(anomalies[i - 1], anomalies[i]) for i in range(1, TRAIN_MONTHS)]
    factor = sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs)
    errors = [
        temperatures[i] - (means[i % 12] + factor * anomalies[i - 1]) for i in range(TRAIN_MONTHS, len(temperatures))
    ]
    rmse = math.sqrt(sum(error**2 for error in errors) / TEST_MONTHS)
    assert el_nino.baselines()["climatology + AR(1)"]["test/rmse"] == pytest.approx(rmse, rel=1e-9)
