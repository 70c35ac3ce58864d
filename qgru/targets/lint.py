"""What becomes of a model on a target, operator by operator, before anybody is surprised by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from qgru.configs import load_config
from qgru.direction import directions_of
from qgru.grid import Grid
from qgru.gru import QuantGRU
from qgru.schema import BIASES, OPERATORS, BitwidthConfig, OperatorConfig
from qgru.search.cost import layers_of
from qgru.state import CellState
from qgru.targets.claim import LAYER_FACTS, Claim
from qgru.targets.preset import preset
from qgru.targets.target import Target, load_target

_REFUSED = "refused"


@dataclass(frozen=True)
class Problem:
    """What a target does not take as it is.

    Attributes:
        layer: its qualified name, and the layer and direction in it.
        operator: canonical name; None where it is the layer as a whole.
        grid: the operator's grid, before calibration its configuration.
        effect: ``"exact"``, ``"rounded elsewhere"``, ``"float"``, or ``"refused"``: it can't be exported.
        does: what the target does with it.
        instead: what to set or to export instead.
        source: of the claim; a URL, or a document of this repository.
        date: of the source, ISO; empty for a class of chips that only its own file defines.
        verified: ``"run"``, or ``"by documentation"`` where nothing was run.
    """

    layer: str
    operator: str | None
    grid: Grid | OperatorConfig | None
    effect: str
    does: str
    instead: str
    source: str
    date: str
    verified: str

    def __str__(self) -> str:
        return describe([self])


def lint(
    model: nn.Module,
    target: str | Path | Mapping[str, Any] | Target,
    config: str | Path | Mapping[str, Any] | BitwidthConfig | None = None,
) -> list[Problem]:
    """Return what a target does not take of a model's quantized layers as it is; what it takes is exact there.

    Args:
        model: a converted module, or a layer; before calibration, what depends on its exponents counts as not taken.
        target: as `load_target` takes it.
        config: bit widths for all layers and directions, as before calibration; None for their own.

    Raises:
        ValueError: where the module holds no quantized layer, or the target is none.
        FileNotFoundError: where there is no such target.
    """
    target = load_target(target)
    chosen = None if config is None else load_config(config)
    return [
        problem
        for name, layer in layers_of(model).items()
        for problem in _of_layer(name or type(layer).__name__, layer, target, chosen)
    ]


def check(
    model: nn.Module,
    target: str | Path | Mapping[str, Any] | Target,
    config: str | Path | Mapping[str, Any] | BitwidthConfig | None = None,
) -> list[Problem]:
    """Refuse what can't be exported to a target; return what the target will compute otherwise than we do.

    Args:
        model: a converted module, or a layer.
        target: as `load_target` takes it.
        config: bit widths for all layers and directions; None for their own.

    Raises:
        ValueError: naming each operator that can't be exported, and what to set instead; and as `lint`.
        FileNotFoundError: as `lint`.
    """
    problems = lint(model, target, config)
    refused = [problem for problem in problems if problem.effect == _REFUSED]
    if refused:
        raise ValueError(f"{load_target(target).name} does not take the model:\n{describe(refused)}")
    return [problem for problem in problems if problem.effect != "exact"]


def describe(problems: Sequence[Problem]) -> str:
    """Return problems as text: a line for each claim, with all that it is about, and one for each source."""
    groups: dict[tuple[str, ...], list[Problem]] = {}
    origins: dict[str, int] = {}
    for problem in problems:
        origin = ", ".join(part for part in (problem.source, problem.date, problem.verified) if part)
        number = origins.setdefault(origin, len(origins) + 1)
        groups.setdefault((problem.effect, problem.does, problem.instead, f"[{number}]"), []).append(problem)
    lines = []
    for (effect, does, instead, number), found in groups.items():
        operators = ", ".join(dict.fromkeys(problem.operator or "" for problem in found))
        layers = ", ".join(dict.fromkeys(problem.layer for problem in found))
        subject = f"{operators} of {layers}" if operators else layers
        lines.append(f"{effect}: {subject}: {does}; instead: {instead} {number}")
    return "\n".join([*lines, *(f"[{number}] {origin}" for origin, number in origins.items())])


def _of_layer(name: str, layer: QuantGRU, target: Target, config: BitwidthConfig | None) -> Iterator[Problem]:
    facts = {fact: getattr(layer, fact) for fact in LAYER_FACTS}
    for claim in target.claims:
        if not claim.operators and claim.differing(facts):
            yield _problem(name, None, None, claim)
    directions = directions_of(layer)
    for direction, cell in zip(directions, layer._quant_state().cells, strict=True):
        where = f"{name} ({direction})" if len(directions) > 1 else name
        yield from _of_cell(where, cell if config is None else CellState(config), layer.bias, target)


def _of_cell(where: str, cell: CellState, bias: bool, target: Target) -> Iterator[Problem]:
    known = cell.grids or cell.config.operators
    grids = {name: grid for name, grid in known.items() if bias or name not in BIASES}
    yield from _forbidden(where, cell.config, grids, target)
    for claim in target.claims:
        for operator in claim.operators:
            if operator in grids and claim.differing(_facts(operator, grids[operator])):
                yield _problem(where, operator, grids[operator], claim)


def _forbidden(where: str, config: BitwidthConfig, grids: Mapping[str, Any], target: Target) -> Iterator[Problem]:
    """Yield what the rules forbid."""
    broken = [(names, sentence) for names, sentence in target.rules.broken(config) if names[0] in grids]
    if not broken:
        return
    nearest = preset(target, config).operators
    for operators, sentence in broken:
        moved = (f"operator_config.{name}.bitwidth={nearest[name].bitwidth}" for name in operators)
        yield Problem(
            where,
            operators[0],
            grids[operators[0]],
            _REFUSED,
            sentence,
            " and ".join(moved),
            target.source,
            target.date,
            target.verified,
        )


def _facts(operator: str, grid: Grid | OperatorConfig) -> dict[str, Any]:
    known = {"bitwidth": grid.bitwidth, "is_symmetric": grid.is_symmetric, "is_unsigned": grid.is_unsigned}
    if isinstance(grid, OperatorConfig):
        return {**known, "exp2_inv": None, "is_per_channel": None if OPERATORS[operator].is_weight else False}
    exponents = set(grid.exponents)
    is_per_channel = len(exponents) > 1
    return {**known, "exp2_inv": None if is_per_channel else exponents.pop(), "is_per_channel": is_per_channel}


def _problem(layer: str, operator: str | None, grid: Grid | OperatorConfig | None, claim: Claim) -> Problem:
    said = {entry.name: getattr(claim, entry.name) for entry in fields(Problem) if hasattr(claim, entry.name)}
    return Problem(layer, operator, grid, **said)
