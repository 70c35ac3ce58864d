"""What is claimed of a target: the effect on a grid or a layer, who says so, and since when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from qgru.files import shown
from qgru.schema import OPERATORS

EFFECTS = ("exact", "rounded elsewhere", "float", "refused")
"""What becomes of an operator: our integers at some price, other integers, no integers, nothing at all."""

VERIFIED = ("run", "by documentation")

GRID_FACTS = ("bitwidth", "is_symmetric", "is_unsigned", "exp2_inv", "is_per_channel")
LAYER_FACTS = ("bidirectional", "num_layers", "bias")
_REQUIRED = ("effect", "does", "instead", "source", "date", "verified")
_OPTIONAL = ("operators", "takes")


@dataclass(frozen=True)
class Claim:
    """What a target does with grids, or with a layer.

    Attributes:
        effect: one of `EFFECTS`.
        does: what the target does, a clause.
        instead: what to set or to export instead.
        source: a URL, or a document of this repository.
        date: ISO; the source's where it has one, else the day on which it was read or run.
        verified: ``"run"``, or ``"by documentation"`` where nothing was run.
        operators: those that it is about; none where it is about the layer.
        takes: facts to the values that the target takes as they are, whatever `effect` says: of a grid ``bitwidth``,
            ``is_symmetric``, ``is_unsigned``, ``exp2_inv``, ``is_per_channel`` (its exponents differ); of a layer
            ``bidirectional``, ``num_layers``, ``bias``. Empty where it takes none.
    """

    effect: str
    does: str
    instead: str
    source: str
    date: str
    verified: str
    operators: tuple[str, ...] = ()
    takes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str) -> Claim:
        """Read an entry of ``claims`` in ``conf/target/*.yaml``.

        Args:
            mapping: the attributes; `operators` may have wildcards, and values of `takes` be single.
            where: what messages call it.

        Raises:
            ValueError: naming the key, its value and what was expected.
        """
        where = f"{where}, claims"
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{where}: {shown(mapping)}; expected a mapping")
        for key in mapping:
            if key not in (*_REQUIRED, *_OPTIONAL):
                raise ValueError(f"{where} holds {shown(key)}; expected {', '.join((*_REQUIRED, *_OPTIONAL))}")
        operators = _operators(where, mapping.get("operators", ()))
        takes = _takes(where, mapping.get("takes", {}), GRID_FACTS if operators else LAYER_FACTS)
        return cls(**checked(where, {key: mapping.get(key) for key in _REQUIRED}), operators=operators, takes=takes)

    def differing(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether what has these facts is not taken as it is; a fact that is None is not known, and so is not."""
        return not self.takes or any(facts[name] not in values for name, values in self.takes.items())


def checked(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a claim's fields.

    Raises:
        ValueError: naming the one that is not what `Claim` says.
    """
    for name, value in fields.items():
        known = {"effect": EFFECTS, "verified": VERIFIED}.get(name)
        if known and value not in known:
            raise ValueError(f"{where}: {name} is {shown(value)}; expected one of {', '.join(known)}")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {name} is {shown(value)}; expected a text")
    try:
        date.fromisoformat(fields["date"])
    except ValueError as error:
        raise ValueError(f"{where}: date is {shown(fields['date'])}; expected one like 2026-01-31") from error
    return fields


def _operators(where: str, patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ValueError(f"{where}: operators is {shown(patterns)}; expected a list")
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in OPERATORS):
            raise ValueError(f"{where}: operators holds {shown(pattern)}; expected one of {', '.join(OPERATORS)}")
    return tuple(name for name in OPERATORS if any(fnmatchcase(name, pattern) for pattern in patterns))


def _takes(where: str, given: Any, facts: Sequence[str]) -> Mapping[str, tuple[Any, ...]]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: takes is {shown(given)}; expected a mapping")
    takes = {name: tuple(v) if isinstance(v, Sequence) else (v,) for name, v in given.items()}
    for name, values in takes.items():
        if name not in facts or not values or not all(type(value) in (int, bool) for value in values):
            entry = shown({name: given[name]})
            raise ValueError(f"{where}: takes holds {entry}; expected integers or booleans of {', '.join(facts)}")
    return MappingProxyType(takes)
