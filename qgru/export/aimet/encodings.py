"""Grids as AIMET encodings, version 1.0.0 or 2.0.0.

The source is AIMET's specification of both (Docs/techniques/encoding_spec.rst of AIMET 2.42). In 1.0.0 ``is_sym`` says
that integers are signed, and ``offset`` is minus the zero point of the same grid counted from 0; per-channel parameters
have no axis. 2.0.0 has ONNX's own zero point and axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgru.grid import Grid

WIDTHS = (4, 8, 16)
"""Those that AIMET can write as QuantizeLinear; ONNX has no other types."""


def encodings(grids: Mapping[str, Grid], version: str = "1.0.0") -> dict[str, Any]:
    """Return the content of an ``.encodings`` file.

    Args:
        grids: by the name of the tensor; those with an exponent for each channel are parameters, whose last dimension
            is the channels.
        version: ``"1.0.0"`` or ``"2.0.0"``.

    Raises:
        ValueError: for another version, or a width that AIMET can't write; names the tensor.
    """
    if version not in _VERSIONS:
        raise ValueError(f"version is {version!r}; expected one of {', '.join(_VERSIONS)}")
    for name, grid in grids.items():
        if grid.bitwidth not in WIDTHS:
            raise ValueError(
                f"{name} has {grid.bitwidth} bits; expected {', '.join(map(str, WIDTHS))}: AIMET writes encodings as "
                "QuantizeLinear, which has no other types"
            )
    return {"version": version, **_VERSIONS[version](grids)}


def _version_1(grids: Mapping[str, Grid]) -> dict[str, Any]:
    sections: dict[str, list] = {"activation_encodings": [], "param_encodings": []}
    for name, grid in grids.items():
        entry = {
            "name": name,
            "enc_type": "PER_CHANNEL" if grid.is_per_channel else "PER_TENSOR",
            "dtype": "INT",
            "bw": grid.bitwidth,
            "is_sym": not grid.is_unsigned,
            "scale": [2.0**-exponent for exponent in grid.exponents],
            "offset": [grid.qmin - grid.zero_point] * len(grid.exponents),
        }
        sections["param_encodings" if grid.is_per_channel else "activation_encodings"].append(entry)
    return sections


def _version_2(grids: Mapping[str, Grid]) -> dict[str, Any]:
    return {"encodings": [_entry(name, grid) for name, grid in grids.items()]}


def _entry(name: str, grid: Grid) -> dict[str, Any]:
    kind = {"name": name, "output_dtype": f"{'u' * grid.is_unsigned}int{grid.bitwidth}"}
    if grid.is_per_channel:
        return {**kind, "y_scale": list(grid.scale), "axis": -1}
    return {**kind, "y_scale": grid.scale, "y_zero_point": grid.zero_point}


_VERSIONS = {"1.0.0": _version_1, "2.0.0": _version_2}
