"""`quant_params.json`: the grids of a layer, for the people who write the firmware."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qgru.direction import directions_of
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
        entries = {OPERATORS[name].short: _entry(grid) for name, grid in (cell.grids or {}).items()}
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
    """Write the file; the arguments are `to_mapping`'s."""
    Path(path).write_text(json.dumps(to_mapping(gru, cells, weights), indent=2) + "\n", encoding="utf-8")


def load(gru: nn.RNNBase, cells: Sequence[CellState], path: str | Path) -> tuple[CellState, ...]:
    """Return a layer's cells with the grids of a file that fits it.

    Weights in the file are not read: the parameters stay the module's own.

    Raises:
        ValueError: naming the file, what differs or is malformed, and what was expected.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return _cells(gru, cells, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _cells(gru: nn.RNNBase, known: Sequence[CellState], content: Any) -> tuple[CellState, ...]:
    info = _mapping(content, "the file").get("model_info")
    _check_model(gru, _mapping(info, "model_info"))
    order = info.get("gate_order", "zrn")
    if not isinstance(order, str) or sorted(order) != sorted(_GATE_ORDER):
        raise ValueError(f"gate_order is {order!r}; expected the letters {_GATE_ORDER!r} in some order")
    expected = [direction.section for direction in directions_of(gru)]
    extra = [key for key in content if key.startswith("operators") and key not in expected]
    if extra:
        raise ValueError(f"section {extra[0]!r} belongs to another module; expected {', '.join(expected)}")
    cells = []
    for section, old in zip(expected, known, strict=True):
        entries = _mapping(content.get(section), f"section {section!r}")
        names = {short: canonical_name(short) for short in entries}
        kept = {short: name for short, name in names.items() if gru.bias or name not in BIASES}
        grids = {name: _grid(gru, section, short, entries[short], order) for short, name in kept.items()}
        missing = [n for n in OPERATORS if n != OPTIONAL and n not in grids and (gru.bias or n not in BIASES)]
        if missing:
            raise ValueError(f"section {section!r} lacks the operator {missing[0]!r}")
        for name in BIASES if not gru.bias else ():
            own = old.config.operators[name]
            grids[name] = Grid(own.bitwidth, True, own.is_unsigned, 0)
        configs = BitwidthConfig({name: grid.config for name, grid in grids.items()}, old.config.disable_quantization)
        cells.append(CellState(configs, {name: grids[name] for name in configs.operators}))
    pairs = zip(cells[::2], cells[1::2], strict=True) if gru.bidirectional else ()
    if any(a.grids["input.x"] != b.grids["input.x"] for a, b in pairs):
        raise ValueError("operator 'input.x' differs between the directions of a layer; expected one grid for both")
    return tuple(cells)


def _check_model(gru: nn.RNNBase, info: Mapping[str, Any]) -> None:
    for name in _MODEL_FIELDS:
        own = getattr(gru, name)
        found = info.get(name, 1 if name == "num_layers" else own)
        if found != own and name != "batch_first":  # a layout, not a property of the numbers
            raise ValueError(f"{name} is {found!r}; expected {own!r}, the module's")


def _grid(gru: nn.RNNBase, section: str, short: str, entry: Any, order: str) -> Grid:
    name = canonical_name(short)
    try:
        fields = _mapping(entry, "its entry")
        kind = re.fullmatch(r"(U?)INT(\d+)", str(fields.get("dtype")))
        if kind is None:
            raise ValueError(f"dtype is {fields.get('dtype')!r}; expected INT<bits> or UINT<bits>")
        exponent, zero_point = _exponent(fields), fields.get("zero_point", 0)
        if OPERATORS[name].is_weight:
            exponent = _per_channel(exponent, 3 * gru.hidden_size, order)
            zero_point = next((z for z in zero_point if z), 0) if isinstance(zero_point, list) else zero_point
        return Grid(int(kind[2]), fields.get("symmetric", zero_point == 0), bool(kind[1]), exponent, zero_point)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{section}.{short}: {error}") from error


def _exponent(fields: Mapping[str, Any]) -> Any:
    for key in ("n", "exp2_inv"):
        if key in fields:
            return fields[key]
    if "scale" not in fields:
        raise ValueError("has none of 'n', 'exp2_inv' and 'scale'; expected one")
    scale = fields["scale"]
    return [_log2(s) for s in scale] if isinstance(scale, list) else _log2(scale)


def _log2(scale: float) -> int:
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5:
        raise ValueError(f"scale is {scale!r}; expected a power of two")
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
        raise ValueError(f"{name} is {value!r}; expected an object")
    return value
