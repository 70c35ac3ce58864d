"""The level of a tank, from the voltage of a pump: a virtual sensor."""

from recipes.cascaded_tanks.data import CascadedTanks
from recipes.cascaded_tanks.model import LevelSensor

__all__ = ["CascadedTanks", "LevelSensor"]
