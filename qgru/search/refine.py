"""Exponents moved by one where that brings the outputs closer to the float ones: for grids that no QAT follows.

Calibration fits each grid to its own values. Which errors cancel in the outputs, and which add up there, it can't know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from qgru.adjust import Change, adjusted
from qgru.convert import quantized_layers
from qgru.direction import Direction, directions_of, index_of
from qgru.gru import QuantGRU
from qgru.ops.domain import outside_domain
from qgru.schema import BIASES, OPERATORS
from qgru.search.evaluation import Evaluator
from qgru.search.sensitivity import Progress
from qgru.stages.passes import ForwardFn
from qgru.state import QuantState

_LEAST_GAIN = 0.01  # of the error: less is as likely a property of the batches
_SHORTLIST = 8  # of the moves that looked best before another was made


@dataclass(frozen=True)
class Move:
    """One operator's grid, a step coarser or finer.

    Attributes:
        layer: qualified name, empty where the module is the layer.
        direction: of the layer; ``input.x`` is moved in both that share it, and stands with the first.
        operator: canonical name.
        step: what was added to its exponents, -1 or 1.
        before: error of the outputs before this move.
        after: and after it.
    """

    layer: str
    direction: Direction
    operator: str
    step: int
    before: float
    after: float

    def __str__(self) -> str:
        return str(_Candidate(self.layer, self.direction, self.operator, self.step))


class _Candidate(NamedTuple):
    layer: str
    direction: Direction
    operator: str
    step: int

    def __str__(self) -> str:
        name = "/".join(filter(None, (self.layer, self.operator))) + self.direction.short_suffix
        return f"{name} {'finer' if self.step > 0 else 'coarser'}"


def refine_exponents(
    module: nn.Module,
    batches: Sequence[Any],
    forward_fn: ForwardFn | None = None,
    logits: bool = False,
    progress: Progress | None = None,
) -> list[Move]:
    """Move the exponents of single grids by one, each time by the move that lowers the outputs' error most.

    For a module that is deployed as calibrated: training follows badly from such grids. Zero points stay, so that a
    range grows or shrinks around the real zero; the grids of bounded functions are left alone, and no move leaves the
    exactness domain. It takes some hundred calls on every batch for each layer and direction.

    Args:
        module: a converted module whose layers are calibrated; its grids change at the end, or not at all.
        batches: what to compare outputs on, without labels.
        forward_fn: see `qgru.search.evaluation.Evaluator`.
        logits: likewise.
        progress: ``progress(done, total, text)``, after every measurement; the total grows with what is found.

    Returns:
        The moves made, in order; the error falls by a hundredth at least with each. None was worth it: an empty list.

    Raises:
        RuntimeError: where a layer is not calibrated.
        ValueError: see `qgru.search.evaluation.Evaluator`.
    """
    layers = {n: gru for n, gru in quantized_layers(module).items() if not gru.bitwidth_config.disable_quantization}
    states = {name: _calibrated(layer) for name, layer in layers.items()}
    evaluator = Evaluator(module, batches, forward_fn, logits)
    candidates = [candidate for name, layer in layers.items() for candidate in _candidates(name, layer)]

    def ranked(tried: Sequence[_Candidate]) -> list[tuple[float, _Candidate, QuantState]]:
        found = []
        for done, candidate in enumerate(tried, 1):
            state = _moved(layers[candidate.layer], states[candidate.layer], candidate)
            if state is not None:
                found.append((_error(evaluator, {**states, candidate.layer: state}), candidate, state))
            if progress:
                progress(evaluator.evaluations, evaluator.evaluations + len(tried) - done, str(candidate))
        return sorted(found, key=lambda entry: entry[0])

    least, moves = _error(evaluator, states), []
    is_done = False
    while not is_done:
        best = ranked(candidates)
        order, is_done = [candidate for _, candidate, _ in best], True
        while best and best[0][0] < (1 - _LEAST_GAIN) * least:
            error, candidate, states[candidate.layer] = best[0]
            moves.append(Move(*candidate, least, error))
            least, is_done = error, False
            best = ranked(order[:_SHORTLIST])
    for name, layer in layers.items():
        layer._write(replace(states[name], use_quantization=layer.use_quantization))
        layer._calibration.is_stale = False
    return moves


def _error(evaluator: Evaluator, states: Mapping[str, QuantState]) -> float:
    evaluator.evaluations += 1
    with evaluator._lent(states):
        return evaluator._difference.of(evaluator._outputs())


def _calibrated(layer: QuantGRU) -> QuantState:
    """Return what `QuantGRU.ensure_calibrated` would, switched on, and change nothing."""
    state, calibration = layer._quant_state(), layer._calibration
    if calibration.is_stale or not state.is_calibrated:
        state = calibration.calibrated(state, layer._cells(), layer.bias)
    return replace(state, use_quantization=True)


def _candidates(name: str, layer: QuantGRU) -> Iterator[_Candidate]:
    for direction in directions_of(layer):
        for operator in OPERATORS:
            is_shared = operator == "input.x" and direction.reverse
            is_fixed = OPERATORS[operator].function is not None or (operator in BIASES and not layer.bias)
            if not is_shared and not is_fixed:
                yield from (_Candidate(name, direction, operator, step) for step in (-1, 1))


def _moved(layer: QuantGRU, state: QuantState, move: _Candidate) -> QuantState | None:
    """Return a state with one grid moved, None where there is no such grid."""
    indices = [index_of(layer, move.direction)]
    if move.operator == "input.x" and layer.bidirectional:
        indices.append(indices[0] + 1)
    cells = list(state.cells)
    for index in indices:
        grid = cells[index].grids.get(move.operator)
        if grid is None:
            return None
        exponents = [exponent + move.step for exponent in grid.exponents]
        change = Change(move.operator, exp2_inv=exponents if grid.is_per_channel else exponents[0])
        try:
            cells[index] = adjusted(cells[index], change)
        except ValueError:  # off the exponents' range
            return None
    moved = replace(state, cells=tuple(cells))
    return moved if _outside(layer, moved) <= _outside(layer, state) else None


def _outside(layer: QuantGRU, state: QuantState) -> int:
    """Count the operators that are outside the exactness domain."""
    pairs = zip(state.prepared, layer.all_weights, strict=True)
    return sum(1 for cell, own in pairs for _ in outside_domain(cell.plan, own[0].shape[1], layer.hidden_size))
