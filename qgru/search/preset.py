"""A found configuration as a preset that anyone can use and edit."""

from __future__ import annotations

from pathlib import Path

from qgru.files import write_text
from qgru.search.search import Point

_HEADER = """# @package _global_
# python train.py +quant={name}
# Found by a search: cost {cost:.3g} (int8 is 1), error {error:.3g} before QAT.
# {parts}
defaults:
  - /qgru_lifecycle@_global_
  - optional /qgru_schema@quant: typed
  - _self_

quant:
  default_config: {{disable_quantization: false}}
  operator_config:
"""


def write_preset(point: Point, folder: str | Path, name: str) -> None:
    """Write a point as ``bitwidth_config.json`` and as a Hydra preset, ``<name>.yaml``, with the reasons as comments.

    Args:
        point: what to write.
        folder: is made where it is missing.
        name: of the preset.
    """
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    point.config.to_json(directory / "bitwidth_config.json")
    write_text(directory / f"{name}.yaml", preset_text(point, name))


def preset_text(point: Point, name: str) -> str:
    """Return the Hydra preset."""
    header = _HEADER.format(name=name, cost=point.cost, error=point.measured, parts=point.parts)
    lines, last = [], None
    for operator, config in point.config.operators.items():
        group, _, leaf = operator.partition(".")
        if group != last:
            lines.append(f"    {group}:")
            last = group
        fields = ", ".join(
            f"{field}: {str(getattr(config, field)).lower()}" for field in ("bitwidth", "is_symmetric", "is_unsigned")
        )
        reason = point.reasons.get(operator)
        lines.append(f"      {leaf}: {{{fields}}}{f' # {reason}' if reason else ''}")
    return header + "\n".join(lines) + "\n"
