"""The Mackey-Glass delay differential equation, integrated to the fourth order."""

from __future__ import annotations

import numpy as np

DELAY = 17
_GROWTH, _DECAY, _POWER = 0.2, 0.1, 10


def rate(now: np.ndarray, delayed: np.ndarray) -> np.ndarray:
    """Return dx/dt, given x(t) and x(t - DELAY)."""
    return _GROWTH * delayed / (1 + delayed**_POWER) - _DECAY * now


def simulate(histories: np.ndarray, samples: int, skip: int = 300, step: float = 0.1) -> np.ndarray:
    """Integrate several series at once by Runge-Kutta steps, and sample them once per unit of time.

    Args:
        histories: (series,), the value that each has at all times up to zero.
        samples: of each series.
        skip: units of time to leave out first, until a series has settled on the attractor.
        step: of the integration; both 1 and `DELAY` are multiples of it.

    Returns:
        (series, samples) float64, sample k at the time skip + k + 1.
    """
    lag, every = round(DELAY / step), round(1 / step)
    steps = (skip + samples) * every
    x = np.tile(np.asarray(histories, dtype=np.float64), (lag + steps + 1, 1))
    middle = x.copy()  # middle[i] lies half a step after x[i]
    slope = rate(x[lag], x[0])
    for i in range(lag, lag + steps):
        between, delayed = middle[i - lag], x[i - lag + 1]
        second = rate(x[i] + step / 2 * slope, between)
        third = rate(x[i] + step / 2 * second, between)
        fourth = rate(x[i] + step * third, delayed)
        x[i + 1] = x[i] + step / 6 * (slope + 2 * second + 2 * third + fourth)
        following = rate(x[i + 1], delayed)
        middle[i] = (x[i] + x[i + 1]) / 2 + step / 8 * (slope - following)  # cubic Hermite, as exact as the steps
        slope = following
    return x[lag + (skip + 1) * every :: every].T
