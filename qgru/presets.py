"""The presets that ship with the package: ``conf/quant``, wherever that is.

Standard library alone, and nothing of the package: Hydra's plugin executes this file without importing qgru.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

AUTO = "auto"
"""What stands among the presets and is none: a search for bit widths, see `qgru.callbacks.QuantizationLifecycle`."""


def conf_folder() -> Path:
    """Return Hydra's folder: inside the package where it is installed, beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in (conf_folder() / "quant").glob("*.yaml") if path.stem != AUTO)


def preset(name: str) -> dict[str, Any]:
    """Return a preset's bit widths, in the nested form.

    Raises:
        FileNotFoundError: where there is no such preset.
    """
    return read_preset(conf_folder() / "quant" / f"{name}.yaml")


def read_preset(path: str | Path) -> dict[str, Any]:
    """Return the bit widths of a file that is written as a preset is, in the nested form.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file, where it is no YAML, or holds no bit widths under ``quant``.
    """
    from omegaconf import DictConfig, OmegaConf  # only presets need it
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
        quant = content.get("quant") if isinstance(content, DictConfig) else None
        if isinstance(quant, DictConfig):
            return OmegaConf.to_container(quant, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"{path}: holds no quant; expected bit widths, written as in a preset of conf/quant")
