"""Next month's sea-surface temperature off the coast of Peru."""

from recipes.sea_surface_temperature.data import ElNino
from recipes.sea_surface_temperature.model import TemperatureForecaster

__all__ = ["ElNino", "TemperatureForecaster"]
