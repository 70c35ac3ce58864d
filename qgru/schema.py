"""The operator table and the bit width configuration, in its three forms: dataclass, nested mapping, JSON file.

``docs/numerics.md#operators`` says what each operator holds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qgru.files import read_json, shown, write_text

MIN_BITWIDTH, MAX_BITWIDTH = 1, 32
_REMARKS = ("description", "comment")
_LONGEST_NAME = 80  # beyond it, the nearest name takes long to find and helps nobody


@dataclass(frozen=True)
class Operator:
    """One quantized operator of a GRU time step.

    Attributes:
        name: canonical name, as JSON files and Hydra overrides write it, e.g. ``"gate.z_out"``.
        is_weight: True for the four parameters, which are symmetric and have one exponent per output channel.
        function: ``"sigmoid"`` or ``"tanh"`` where the operator holds a bounded function's output, else None.
    """

    name: str
    is_weight: bool = False
    function: str | None = None

    @property
    def short(self) -> str:
        """The part after the dot, as ``adjust_quant_config`` and ``quant_params.json`` use it."""
        return self.name.rpartition(".")[2]


OPTIONAL = "op.Rh_add_br"
"""The one operator that a configuration may leave out altogether: ``matmul.Rh``'s grid serves then."""

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            Operator("input.x"),
            Operator("output.h"),
            Operator("weight.W", is_weight=True),
            Operator("weight.R", is_weight=True),
            Operator("weight.bw", is_weight=True),
            Operator("weight.br", is_weight=True),
            Operator("matmul.Wx"),
            Operator("matmul.Rh"),
            Operator("gate.z_pre"),
            Operator("gate.z_out", function="sigmoid"),
            Operator("gate.r_pre"),
            Operator("gate.r_out", function="sigmoid"),
            Operator("gate.g_pre"),
            Operator("gate.g_out", function="tanh"),
            Operator("op.rRh"),
            Operator("op.old_contrib"),
            Operator("op.new_contrib"),
            Operator(OPTIONAL),
        )
    }
)

WEIGHTS = tuple(name for name, operator in OPERATORS.items() if operator.is_weight)
"""The four parameters, in the order of `nn.GRU`'s: W, R, bw, br."""

BIASES = WEIGHTS[2:]

ACTIVATIONS = tuple(name for name in OPERATORS if name not in WEIGHTS)
"""All other operators, the optional one last."""

_ALIASES = {"input.h": "output.h"}
_SHORT_NAMES = {operator.short: name for name, operator in OPERATORS.items()}
_FLAT_NAMES = {
    "input": "input.x",
    "output": "output.h",
    "weight_ih": "weight.W",
    "weight_hh": "weight.R",
    "bias_ih": "weight.bw",
    "bias_hh": "weight.br",
    "weight_ih_linear": "matmul.Wx",
    "weight_hh_linear": "matmul.Rh",
    "update_gate_input": "gate.z_pre",
    "update_gate_output": "gate.z_out",
    "reset_gate_input": "gate.r_pre",
    "reset_gate_output": "gate.r_out",
    "new_gate_input": "gate.g_pre",
    "new_gate_output": "gate.g_out",
    "mul_reset_hidden": "op.rRh",
    "mul_old_contribution": "op.old_contrib",
    "mul_new_contribution": "op.new_contrib",
}
_GROUPS = {name.partition(".")[0] for name in (*OPERATORS, *_ALIASES)}


def canonical_name(name: str) -> str:
    """Resolve a full name, a short name (``"z_out"``) or the alias ``"input.h"`` to the canonical name.

    Raises:
        ValueError: for any other name; the message suggests the nearest operator.
    """
    if name in OPERATORS:
        return name
    known = _ALIASES.get(name) or _SHORT_NAMES.get(name)
    if known:
        return known
    if name in _FLAT_NAMES:
        table = ", ".join(f"{flat} -> {dotted}" for flat, dotted in _FLAT_NAMES.items())
        raise ValueError(f"operator {name!r} is a flat name; write {_FLAT_NAMES[name]!r} (all of them: {table})")
    written = name if isinstance(name, str) and len(name) <= _LONGEST_NAME else shown(name)
    near = get_close_matches(written, [*OPERATORS, *_SHORT_NAMES], n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown operator {shown(name)}; the nearest is {near!r} (operators: {', '.join(OPERATORS)})")


@dataclass(frozen=True)
class OperatorConfig:
    """What a user chooses for one operator; the grid's exponent and zero point come from calibration.

    Attributes:
        bitwidth: 1 to 32.
        is_symmetric: True fixes the zero point at 0.
        is_unsigned: True counts from 0 to ``2**bitwidth - 1``.

    Raises:
        ValueError: where a field is of another type or out of range.
    """

    bitwidth: int = 8
    is_symmetric: bool = True
    is_unsigned: bool = False

    def __post_init__(self) -> None:
        if type(self.bitwidth) is not int or not MIN_BITWIDTH <= self.bitwidth <= MAX_BITWIDTH:
            raise ValueError(
                f"bitwidth is {shown(self.bitwidth)}; expected an integer from {MIN_BITWIDTH} to {MAX_BITWIDTH}"
            )
        for name in ("is_symmetric", "is_unsigned"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {shown(getattr(self, name))}; expected true or false")

    @property
    def qmin(self) -> int:
        """The smallest integer."""
        return 0 if self.is_unsigned else -(1 << (self.bitwidth - 1))

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return (1 << (self.bitwidth if self.is_unsigned else self.bitwidth - 1)) - 1


_FIELDS = {entry.name for entry in fields(OperatorConfig)}


@dataclass(frozen=True)
class BitwidthConfig:
    """The bit widths of all operators of a layer.

    Attributes:
        operators: canonical name to ``OperatorConfig``. Operators left out are filled in with the default (8 bits,
            symmetric, signed), save for the optional ``op.Rh_add_br``, which stays out.
        disable_quantization: True keeps the layer in float whatever its switches say.

    Raises:
        ValueError: for an unknown operator, or an asymmetric weight.
    """

    operators: Mapping[str, OperatorConfig] = field(default_factory=dict)
    disable_quantization: bool = False

    def __post_init__(self) -> None:
        given = {canonical_name(name): config for name, config in self.operators.items()}
        for name, config in given.items():
            if OPERATORS[name].is_weight and not config.is_symmetric:
                raise ValueError(f"operator {name!r} has is_symmetric = False; weights are symmetric, expected True")
        if type(self.disable_quantization) is not bool:
            raise ValueError(f"disable_quantization is {shown(self.disable_quantization)}; expected true or false")
        complete = {name: given.get(name, OperatorConfig()) for name in OPERATORS if name != OPTIONAL or name in given}
        object.__setattr__(self, "operators", MappingProxyType(complete))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self.operators), self.disable_quantization)

    def __hash__(self) -> int:
        return hash((tuple(self.operators.items()), self.disable_quantization))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> BitwidthConfig:
        """Read the JSON form or the nested form, with or without the ``"GRU_config"`` wrapper.

        Raises:
            ValueError: naming the operator or key, its value, and what was expected.
        """
        if mapping is None:
            raise ValueError("the configuration is None; expected a mapping")
        body = _section(mapping, "the configuration", optional=("GRU_config", "default_config", "operator_config"))
        if "GRU_config" in body:
            body = _section(body["GRU_config"], "GRU_config", optional=("default_config", "operator_config"))
        default = _section(body.get("default_config"), "default_config", optional=("disable_quantization",))
        operators: dict[str, OperatorConfig] = {}
        for written, entry in _flatten(_section(body.get("operator_config"), "operator_config")):
            name, config = canonical_name(written), _operator_config(written, entry)
            if operators.setdefault(name, config) != config:
                aliases = [alias for alias in (*_ALIASES, *_SHORT_NAMES) if canonical_name(alias) == name]
                raise ValueError(f"operator {name!r} is given twice (it is {aliases[0]!r} too) with different settings")
        return cls(operators, default.get("disable_quantization", False))

    @classmethod
    def from_json(cls, path: str | Path) -> BitwidthConfig:
        """Read a JSON file.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where it is not JSON or not a configuration; the message names the file.
        """
        content = read_json(path)
        try:
            return cls.from_mapping(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_mapping(self) -> dict[str, Any]:
        """Return the JSON form: dotted operator names under ``GRU_config``."""
        return {
            "GRU_config": {
                "default_config": {"disable_quantization": self.disable_quantization},
                "operator_config": {name: asdict(config) for name, config in self.operators.items()},
            }
        }

    def to_nested(self) -> dict[str, Any]:
        """Return the Hydra form: the value of ``GRU_config`` with nested operator names."""
        nested: dict[str, Any] = {}
        for name, config in self.operators.items():
            group, _, leaf = name.partition(".")
            nested.setdefault(group, {})[leaf] = asdict(config)
        return {"default_config": {"disable_quantization": self.disable_quantization}, "operator_config": nested}

    def to_json(self, path: str | Path) -> None:
        """Write the JSON form, whole or not at all."""
        write_text(path, json.dumps(self.to_mapping(), indent=2) + "\n")


def _section(value: Any, name: str, optional: Collection[str] | None = None) -> Mapping[str, Any]:
    """Return a mapping without remarks; `optional` lists the keys that may be there (None: any)."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}; expected a mapping")
    section = {key: entry for key, entry in value.items() if key not in _REMARKS}
    unknown = [key for key in section if optional is not None and key not in optional]
    if unknown:
        raise ValueError(f"{name} holds {shown(unknown[0])}; expected {' or '.join(map(repr, sorted(optional or ())))}")
    return section


def _flatten(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, entry) whether operators are written dotted or nested."""
    for key, entry in section.items():
        if _is_group(key, entry):
            yield from ((f"{key}.{leaf}", value) for leaf, value in _section(entry, key).items() if value is not None)
        elif entry is not None:
            yield key, entry


def _is_group(key: str, entry: Any) -> bool:
    """Tell the nested group `input` from the seed project's flat operator `input`, which holds fields."""
    return key in _GROUPS and not (isinstance(entry, Mapping) and _FIELDS & set(entry))


def _operator_config(name: str, entry: Any) -> OperatorConfig:
    canonical_name(name)
    try:
        return OperatorConfig(**_section(entry, "its entry", optional=_FIELDS))
    except ValueError as error:
        raise ValueError(f"operator {name!r}: {error}") from error
