"""Two tanks, one above the other: a pump fills the upper one, which drains and spills into the lower one."""

from __future__ import annotations

import numpy as np

_PUMP, _DRAIN = 0.35, 0.3  # heights of the upper rim per sample: at full voltage, and from a tank filled to there
_WEIR, _CAUGHT = 1.0, 0.6  # of the spill over the rim; the share of it that the lower tank catches
START = 0.25  # of both levels


def rates(levels: np.ndarray, voltage: np.ndarray) -> np.ndarray:
    """Return d(levels)/dt by Torricelli's law, with a weir at the upper tank's rim (height 1).

    Args:
        levels: (2, series), upper and lower.
        voltage: (series,) of the pump, from 0 to 1.

    Returns:
        (2, series), per sample.
    """
    upper, lower = _DRAIN * np.sqrt(np.maximum(levels, 0))
    spill = _WEIR * np.maximum(levels[0] - 1, 0) ** 1.5
    return np.stack([_PUMP * voltage - upper - spill, upper + _CAUGHT * spill - lower])


def simulate(voltages: np.ndarray, steps: int = 8) -> np.ndarray:
    """Integrate several plants at once by Runge-Kutta steps of the fourth order; a voltage is held for a sample.

    Args:
        voltages: (series, samples).
        steps: of the integration in a sample.

    Returns:
        (series, samples) float64: the lower level at the end of each sample; both tanks start at `START`.
    """
    levels, step = np.full((2, len(voltages)), START), 1 / steps
    lower = np.empty(voltages.shape)
    for sample, voltage in enumerate(voltages.T):
        for _ in range(steps):
            first = rates(levels, voltage)
            second = rates(levels + step / 2 * first, voltage)
            third = rates(levels + step / 2 * second, voltage)
            fourth = rates(levels + step * third, voltage)
            levels = levels + step / 6 * (first + 2 * second + 2 * third + fourth)
        lower[:, sample] = levels[1]
    return lower


def voltages(generator: np.random.Generator, series: int, samples: int) -> np.ndarray:
    """Draw what an operator does to the pump: levels from 0 to 1, each kept for 2 to 15 samples.

    Returns:
        (series, samples).
    """
    most = samples // 2 + 1
    return np.stack(
        [np.repeat(generator.random(most), generator.integers(2, 16, most))[:samples] for _ in range(series)]
    )
