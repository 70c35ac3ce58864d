"""The float layer as a graph: ONNX's own GRU, one for each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qgru.export.onnx.program import Builder, Constant, Program, Value

Parameters = Sequence[np.ndarray]


def gru_program(layers: Sequence[Sequence[Parameters]], has_hx: bool) -> Program:
    """Build the graph of a whole module.

    Args:
        layers: for each layer and direction ``weight_ih, weight_hh`` and, unless absent, ``bias_ih, bias_hh``.
        has_hx: False leaves hx out of the program's inputs; the initial state is zero then.

    Returns:
        A program from input (T, B, input) and hx (layers * directions, B, hidden) to output
        (T, B, directions * hidden) and h_n (layers * directions, B, hidden).
    """
    weight_ih, weight_hh, *_ = layers[0][0]
    dtype, hidden, directions = str(weight_ih.dtype), weight_hh.shape[1], len(layers[0])
    input = Value(dtype, ("T", "B", weight_ih.shape[1]))
    hx = Value(dtype, (len(layers) * directions, "B", hidden))
    builder = Builder((input, hx) if has_hx else (input,))
    sequence, finals = input, []
    for layer, cells in enumerate(layers):
        h0 = None
        if has_hx:
            rows = Constant.of(range(layer * directions, (layer + 1) * directions), "int64")
            h0 = builder.op("Gather", hx, rows, dtype=dtype, shape=(directions, "B", hidden), axis=0)
        weights = [Constant.of(np.stack(stacked), dtype) for stacked in zip(*map(_reordered, cells), strict=True)]
        sequence, final = _append_layer(builder, sequence, h0, weights)
        finals.append(final)
    return builder.program(sequence, builder.concatenate(finals, axis=0))


def _append_layer(builder: Builder, sequence: Value, h0: Value | None, weights: list[Constant]) -> tuple[Value, Value]:
    directions, _, hidden = weights[1].shape
    dtype, bias = sequence.dtype, weights[2] if len(weights) == 3 else None
    states, final = builder.node(
        "GRU",
        (sequence, weights[0], weights[1], bias, None, h0),
        [Value(dtype, ("T", directions, "B", hidden)), Value(dtype, (directions, "B", hidden))],
        hidden_size=hidden,
        linear_before_reset=1,
        direction="bidirectional" if directions == 2 else "forward",
    )
    by_batch = builder.op("Transpose", states, dtype=dtype, shape=("T", "B", directions, hidden), perm=[0, 2, 1, 3])
    flat = Constant.of([0, 0, -1], "int64")
    return builder.op("Reshape", by_batch, flat, dtype=dtype, shape=("T", "B", directions * hidden)), final


def _reordered(parameters: Parameters) -> list[np.ndarray]:
    """Return W, R and the concatenated biases in ONNX's gate order z, r, h."""
    turned = [np.concatenate([np.split(p, 3)[gate] for gate in (1, 0, 2)]) for p in parameters]
    return [*turned[:2], np.concatenate(turned[2:])] if len(turned) > 2 else turned
