"""The presets that ship with the package: ``conf/quant``, wherever that is.

Standard library alone, and nothing of the package: Hydra's plugin executes this file without importing qgru.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def conf_folder() -> Path:
    """Return Hydra's folder: inside the package where it is installed, beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in (conf_folder() / "quant").glob("*.yaml"))


def preset(name: str) -> dict[str, Any]:
    """Return a preset's bit widths, in the nested form.

    Raises:
        FileNotFoundError: where there is no such preset.
    """
    from omegaconf import OmegaConf  # only presets need it

    text = (conf_folder() / "quant" / f"{name}.yaml").read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text).quant)
