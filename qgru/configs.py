"""A configuration from whatever names one: a preset, a file, a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgru.files import shown
from qgru.presets import preset, preset_names
from qgru.schema import BitwidthConfig


def load_config(config: str | Path | Mapping[str, Any] | BitwidthConfig) -> BitwidthConfig:
    """Turn a preset's name, the path of a JSON file, or a mapping into a ``BitwidthConfig``.

    Raises:
        FileNotFoundError: for a string that is neither a preset nor a file.
        ValueError: for a configuration that is not one; of a file, the message names it.
        TypeError: for anything else.
    """
    if isinstance(config, BitwidthConfig):
        return config
    if isinstance(config, Mapping):
        return BitwidthConfig.from_mapping(config)
    if not isinstance(config, str | Path):
        raise TypeError(f"the configuration is {shown(config)}; expected a preset's name, a path or a mapping")
    if not os.path.isfile(config) and str(config) in preset_names():
        return BitwidthConfig.from_mapping(preset(str(config)))
    if os.path.exists(config):
        return BitwidthConfig.from_json(config)
    presets = ", ".join(preset_names())
    raise FileNotFoundError(f"{shown(str(config))} is neither a file nor a preset (presets: {presets})")
