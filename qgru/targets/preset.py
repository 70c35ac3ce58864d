"""Bit widths for a target: those of a preset, each moved to the nearest that the target takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qgru.configs import load_config
from qgru.schema import BitwidthConfig
from qgru.targets.rules import BIAS_OF, GATES, PRODUCTS, Rules, operands
from qgru.targets.target import Target, load_target

_KINDS = ("is_symmetric", "is_unsigned")

Widths = dict[str, int]


def preset(
    target: str | Path | Mapping[str, Any] | Target,
    base: str | Path | Mapping[str, Any] | BitwidthConfig = "int8",
) -> BitwidthConfig:
    """Return the bit widths of a preset as a target takes them.

    Every operator gets the least width that the target takes and that is not narrower than `base`'s, else its widest;
    a table that is too large gets a narrower pre-activation; signs and symmetry are the target's where it has only one.

    Args:
        target: as `load_target` takes it.
        base: the bit widths to begin with, as `load_config` takes them.

    Returns:
        A configuration without violations of the target's rules.

    Raises:
        ValueError: where the target's rules allow none.
    """
    target, base = load_target(target), load_config(base)
    bits = _widths(target.rules, {name: operator.bitwidth for name, operator in base.operators.items()})
    kinds: dict[str, dict[str, bool]] = {name: {} for name in bits}
    for claim in target.claims:
        for name in kinds.keys() & set(claim.operators):
            kinds[name] |= {key: claim.takes[key][0] for key in _KINDS if len(claim.takes.get(key, ())) == 1}
    operators = {
        name: replace(operator, bitwidth=bits[name], **kinds[name]) for name, operator in base.operators.items()
    }
    config = BitwidthConfig(operators, base.disable_quantization)
    violations = target.rules.violations(config)
    if violations:
        raise ValueError(f"{target.name} takes no widths near these: {'; '.join(violations)}")
    return config


def _widths(rules: Rules, wanted: Widths) -> Widths:
    bits = {name: _nearest(rules.widths[name], width) for name, width in wanted.items()}
    for pair in PRODUCTS:
        bits |= dict(zip(pair, _operands(rules, pair, wanted), strict=True))
    for gate in GATES:
        bits |= _table(rules, f"gate.{gate}_pre", f"gate.{gate}_out", bits)
    for weight, bias in BIAS_OF.items():
        if rules.wide_biases and bits[bias] < bits[weight]:
            bits[bias] = _nearest(rules.widths[bias], bits[weight])
    return bits


def _nearest(allowed: tuple[int, ...], wanted: int) -> int:
    return next((width for width in allowed if width >= wanted), allowed[-1])


def _operands(rules: Rules, pair: tuple[str, str], wanted: Widths) -> tuple[int, int]:
    """Return the cheapest product that is narrower in nothing, else the one that narrows least."""

    def lost(bits: tuple[int, int]) -> int:
        return sum(max(wanted[name] - width, 0) for name, width in zip(pair, bits, strict=True))

    return min(operands(rules, pair), key=lambda bits: (lost(bits), bits[0] * bits[1]))


def _table(rules: Rules, pre: str, out: str, bits: Widths) -> Widths:
    """Return the widths of a table that fits: the output's own where any pre-activation does, else narrower."""
    cap = rules.max_table_bits
    for width in sorted((w for w in rules.widths[out] if w <= bits[out]), reverse=True):
        fitting = tuple(w for w in rules.widths[pre] if cap is None or width << w <= cap)
        if fitting:
            return {pre: _nearest(fitting, bits[pre]), out: width}
    raise ValueError(f"{rules.name} holds tables of {cap} bits, which no widths of {pre} and {out} fit")
