"""A configuration from whatever names one: a preset, a file, a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qgru.files import shown
from qgru.presets import AUTO, preset, preset_names, read_preset
from qgru.schema import BitwidthConfig


def load_config(config: str | Path | Mapping[str, Any] | BitwidthConfig) -> BitwidthConfig:
    """Turn a preset's name, the path of a JSON or YAML file, or a mapping into a ``BitwidthConfig``.

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
        return _of_preset(str(config))
    if os.path.exists(config):
        return _from_yaml(config) if str(config).endswith(".yaml") else BitwidthConfig.from_json(config)
    if str(config) == AUTO:
        raise ValueError(f"{AUTO!r} is no bit widths, but a search for them; expected it in QuantizationLifecycle")
    presets = ", ".join(preset_names())
    raise FileNotFoundError(f"{shown(str(config))} is neither a file nor a preset (presets: {presets})")


@cache
def _of_preset(name: str) -> BitwidthConfig:
    return BitwidthConfig.from_mapping(preset(name))


def _from_yaml(path: str | Path) -> BitwidthConfig:
    quant = read_preset(path)
    try:
        return BitwidthConfig.from_mapping(quant)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
