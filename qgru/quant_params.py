"""`quant_params.json`: the grids of a layer, for the people who write the firmware.

``docs/numerics.md#files`` describes every key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qgru.direction import Direction, directions_of
from qgru.files import read_json, shown, write_text
from qgru.grid import Grid
from qgru.schema import BIASES, OPERATORS, OPTIONAL, BitwidthConfig, canonical_name
from qgru.state import CellState

_MODEL_FIELDS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
_GATE_ORDER = "rzn"


def describe(cell: CellState, name: str) -> dict[str, Any]:
    """Return what `QuantGRU.get_quant_config` says of an operator."""
    source = "matmul.Rh" if name == OPTIONAL and OPTIONAL not in cell.config.operators else name
    config = cell.config.operators[source]
    grid = cell.grids[source] if cell.grids else None
    found = {"exp2_inv": None, "zero_point": None, "scale": None}
    if grid:
        exponent, scale = (list(v) if isinstance(v, tuple) else v for v in (grid.exp2_inv, grid.scale))
        found = {"exp2_inv": exponent, "zero_point": grid.zero_point, "scale": scale}
    kind = {"bitwidth": config.bitwidth, "is_symmetric": config.is_symmetric, "is_unsigned": config.is_unsigned}
    return {**kind, **found}


def summary(gru: nn.RNNBase, cells: Sequence[CellState]) -> str:
    """Return a table of the operators of a layer's cells as text."""
    lines = []
    for direction, cell in zip(directions_of(gru), cells, strict=True):
        lines.append(str(direction))
        for name in cell.config.operators:
            fields = describe(cell, name)
            kind = f"{'u' * fields['is_unsigned']}int{fields['bitwidth']}"
            exponent = fields["exp2_inv"]
            if isinstance(exponent, list):
                exponent = f"{min(exponent)}..{max(exponent)}"
            lines.append(f"  {name:<15} {kind:<7} exp2_inv {exponent}, zero_point {fields['zero_point']}")
    return "\n".join(lines)


def to_mapping(
    gru: nn.RNNBase, cells: Sequence[CellState], weights: Sequence[Mapping[str, Tensor]] | None = None
) -> dict[str, Any]:
    """Return the file's content for a calibrated layer.

    Args:
        gru: the layer.
        cells: of every direction of it, with grids.
        weights: of every direction, canonical operator name to integers; None leaves them out.
    """
    content: dict[str, Any] = {"model_info": {name: getattr(gru, name) for name in _MODEL_FIELDS}}
    content["model_info"]["gate_order"] = _GATE_ORDER
    for index, (direction, cell) in enumerate(zip(directions_of(gru), cells, strict=True)):
        grids = cell.grids or {}
        entries = {OPERATORS[name].short: _entry(grids[name]) for name in OPERATORS if name in grids}
        for name, integers in weights[index].items() if weights else ():
            if gru.bias or name not in BIASES:
                entries[OPERATORS[name].short]["quantized_weights"] = integers.tolist()
        content[direction.section] = entries
    return content


def save(
    gru: nn.RNNBase,
    cells: Sequence[CellState],
    path: str | Path,
    weights: Sequence[Mapping[str, Tensor]] | None = None,
) -> None:
    """Write the file, whole or not at all; the arguments are `to_mapping`'s."""
    write_text(path, json.dumps(to_mapping(gru, cells, weights), indent=2) + "\n")


def load(gru: nn.RNNBase, cells: Sequence[CellState], path: str | Path) -> tuple[CellState, ...]:
    """Return a layer's cells with the grids of a file that fits it.

    Weights in the file are not read: the parameters stay the module's own.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: naming the file, what differs or is malformed, and what was expected.
    """
    content = read_json(path)
    try:
        return _cells(gru, cells, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _cells(gru: nn.RNNBase, olds: Sequence[CellState], content: Any) -> tuple[CellState, ...]:
    info = _mapping(content, "the file").get("model_info")
    _check_model(gru, _mapping(info, "model_info"))
    order = info.get("gate_order", "zrn")
    if not isinstance(order, str) or sorted(order) != sorted(_GATE_ORDER):
        raise ValueError(f"gate_order is {shown(order)}; expected the letters {_GATE_ORDER!r} in some order")
    expected = [direction.section for direction in directions_of(gru)]
    extra = [key for key in content if key.startswith("operators") and key not in expected]
    if extra:
        raise ValueError(f"section {shown(extra[0])} belongs to another module; expected {', '.join(expected)}")
    known = zip(directions_of(gru), olds, strict=True)
    cells = {direction: _cell(gru, content, direction.section, old, order) for direction, old in known}
    for direction, cell in cells.items():
        if cell.grids["input.x"] != cells[Direction(direction.layer)].grids["input.x"]:
            raise ValueError(f"{direction.section}.x differs from the other direction's; expected one grid for both")
    return tuple(cells.values())


def _cell(gru: nn.RNNBase, content: Mapping[str, Any], section: str, old: CellState, order: str) -> CellState:
    grids: dict[str, Grid] = {}
    for short, entry in _mapping(content.get(section), f"section {section!r}").items():
        name = canonical_name(short)
        if name in grids:
            raise ValueError(f"section {section!r} gives the operator {name!r} twice")
        if gru.bias or name not in BIASES:
            grids[name] = _grid(gru, f"{section}.{short}", name, entry, order)
    for name in () if gru.bias else BIASES:
        own = old.config.operators[name]
        grids[name] = Grid(own.bitwidth, True, own.is_unsigned, 0)
    missing = [name for name in OPERATORS if name not in grids and name != OPTIONAL]
    if missing:
        raise ValueError(f"section {section!r} lacks the operator {missing[0]!r}")
    configs = BitwidthConfig({name: grid.config for name, grid in grids.items()}, old.config.disable_quantization)
    return CellState(configs, {name: grids[name] for name in configs.operators})


def _check_model(gru: nn.RNNBase, info: Mapping[str, Any]) -> None:
    for name in _MODEL_FIELDS:
        own = getattr(gru, name)
        found = info.get(name, 1 if name == "num_layers" else own)
        if name != "batch_first" and (type(found) is not type(own) or found != own):  # a layout changes no number
            raise ValueError(f"{name} is {shown(found)}; expected {own!r}, the module's")


def _grid(gru: nn.RNNBase, place: str, name: str, entry: Any, order: str) -> Grid:
    try:
        fields = _mapping(entry, "its entry")
        dtype = fields.get("dtype")
        kind = re.fullmatch(r"(U?)INT([0-9]{1,2})", dtype) if isinstance(dtype, str) else None
        if kind is None:
            raise ValueError(f"dtype is {shown(dtype)}; expected INT<bits> or UINT<bits>")
        is_weight = OPERATORS[name].is_weight
        exponent, zero_point = _exponent(fields, is_weight), fields.get("zero_point", 0)
        for number in zero_point if is_weight and isinstance(zero_point, list) else [zero_point]:
            if _integer("zero_point", number) and is_weight:
                raise ValueError(f"zero_point is {number}; expected 0, weights are symmetric")
        if is_weight:
            exponent, zero_point = _per_channel(exponent, 3 * gru.hidden_size, order), 0
        return Grid(int(kind[2]), fields.get("symmetric", zero_point == 0), bool(kind[1]), exponent, zero_point)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _exponent(fields: Mapping[str, Any], is_weight: bool) -> int | list[int]:
    key = next((key for key in ("n", "exp2_inv", "scale") if key in fields), None)
    if key is None:
        raise ValueError("has none of 'n', 'exp2_inv' and 'scale'; expected one")
    given = fields[key]
    if is_weight and isinstance(given, list):
        return [_one_exponent(key, number) for number in given]
    return _one_exponent(key, given)


def _one_exponent(key: str, number: Any) -> int:
    return _log2(number) if key == "scale" else _integer(key, number)


def _integer(key: str, value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{key} is {shown(value)}; expected an integer")
    return value


def _log2(scale: Any) -> int:
    mantissa, exponent = math.frexp(scale) if type(scale) in (int, float) else (0, 0)
    if mantissa != 0.5:
        raise ValueError(f"scale is {shown(scale)}; expected a power of two")
    return 1 - exponent


def _per_channel(exponent: Any, channels: int, order: str) -> tuple[int, ...]:
    given = exponent if isinstance(exponent, list) else [exponent] * channels
    if len(given) != channels:
        raise ValueError(f"has {len(given)} channels; expected {channels}, three for each hidden unit")
    hidden = channels // 3
    gates = {gate: given[i * hidden : (i + 1) * hidden] for i, gate in enumerate(order)}
    return tuple(n for gate in _GATE_ORDER for n in gates[gate])


def _entry(grid: Grid) -> dict[str, Any]:
    scales = [2.0**-n for n in grid.exponents]
    lowest, highest = grid.mantissas
    lists = {
        "scale": scales,
        "zero_point": [grid.zero_point] * len(scales),
        "real_min": [lowest * scale for scale in scales],
        "real_max": [highest * scale for scale in scales],
        "n": list(grid.exponents),
    }
    values = lists if grid.is_per_channel else {name: value[0] for name, value in lists.items()}
    return {
        "dtype": f"{'U' * grid.is_unsigned}INT{grid.bitwidth}",
        "symmetric": grid.is_symmetric,
        "enc_type": "PER_CHANNEL" if grid.is_per_channel else "PER_TENSOR",
        **values,
    }


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}; expected an object")
    return value
