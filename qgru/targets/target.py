"""A target: its rules, and what is claimed of it, as ``conf/target/*.yaml`` hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgru.files import shown
from qgru.presets import conf_folder
from qgru.targets.claim import Claim, checked
from qgru.targets.rules import Rules

DEFAULT_TARGET = "fpga"


@dataclass(frozen=True)
class Target:
    """A chip or compiler.

    Attributes:
        name: what messages call it.
        rules: the bit widths that it takes; what they forbid can't be exported to it.
        claims: what becomes of what they allow.
        containers: for every operator the widths that its integers are stored in, ascending; None where they take their
            own bits.
        source: of the rules; a URL, or a document of this repository; a class of chips is defined by its own file.
        date: of `source`; empty where that is the target's own file.
        verified: as of a `Claim`.
    """

    name: str
    rules: Rules
    claims: tuple[Claim, ...]
    containers: Mapping[str, tuple[int, ...]] | None
    source: str
    date: str
    verified: str

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], name: str = "the target", source: str = "its own rules"
    ) -> Target:
        """Read the form of ``conf/target/*.yaml``.

        Args:
            mapping: the keys of `Rules.from_mapping`, and optionally ``name``, ``source``, ``date``, ``verified``,
                ``claims`` (a list for `Claim.from_mapping`) and ``containers`` (in the form of ``widths``).
            name: what messages call it where it names none.
            source: of the rules where it names none.

        Raises:
            ValueError: naming the key or operator, its value and what was expected.
        """
        rest = dict(mapping)
        name = rest.pop("name", name)
        claims, containers = rest.pop("claims", []), rest.pop("containers", None)
        given = {key: rest.pop(key) for key in ("source", "date", "verified") if key in rest}
        if not isinstance(claims, Sequence) or isinstance(claims, str):
            raise ValueError(f"{name}: claims is {shown(claims)}; expected a list")
        origin = {"source": source, "date": "", "verified": "by documentation"}
        return cls(
            name,
            Rules.from_mapping(rest, name),
            tuple(Claim.from_mapping(claim, name) for claim in claims),
            None if containers is None else Rules.from_mapping({"widths": containers}, f"{name}, containers").widths,
            **(checked(name, {key: given.get(key) for key in origin}) if given else origin),
        )


def load_target(target: str | Path | Mapping[str, Any] | Target | None = None) -> Target:
    """Return a target: a name (a file of ``conf/target``), a YAML file's path, or a mapping.

    None is ``"fpga"``.

    Raises:
        FileNotFoundError: for a string that is neither a target nor a file; lists the targets.
        ValueError: where it holds no target.
        TypeError: for anything else.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Mapping):
        return Target.from_mapping(target)
    chosen = DEFAULT_TARGET if target is None else target
    if not isinstance(chosen, str | Path):
        raise TypeError(f"the target is {shown(target)}; expected a name, a path or a mapping")
    is_shipped = str(chosen) in target_names()
    path = conf_folder() / "target" / f"{chosen}.yaml" if is_shipped else Path(chosen)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{shown(str(chosen))} is neither a file nor a target (targets: {', '.join(target_names())})"
        )
    from omegaconf import OmegaConf  # only files need it

    source = f"conf/target/{path.name}" if is_shipped else str(path)
    return Target.from_mapping(OmegaConf.to_container(OmegaConf.load(path)), path.stem, source)


def load_rules(target: str | Path | Mapping[str, Any] | Target | Rules | None = None) -> Rules:
    """Return the rules of a target; as `load_target`."""
    return target if isinstance(target, Rules) else load_target(target).rules


def target_names() -> list[str]:
    """Return the names of the targets that ship with the package."""
    return sorted(path.stem for path in (conf_folder() / "target").glob("*.yaml"))
