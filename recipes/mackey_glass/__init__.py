"""The Mackey-Glass series, one delay ahead."""

from recipes.mackey_glass.data import MackeyGlass
from recipes.mackey_glass.model import MackeyGlassForecaster

__all__ = ["MackeyGlass", "MackeyGlassForecaster"]
