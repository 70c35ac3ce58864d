"""The folder of a layer: the header, vectors, and the program that compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from qgru.direction import directions_of
from qgru.export.hls.cell import array, namespace
from qgru.export.hls.types import Operator, stored_type
from qgru.files import put_in_place
from qgru.gru import QuantGRU

STEPS = 32
"""Time steps of a folder's vectors."""


@dataclass(frozen=True)
class HlsReport:
    """A folder for high-level synthesis.

    Attributes:
        path: the folder.
        name: of the header and of its namespace.
        format: ``"hls"``.
        differing_integers: None: the folder's own test counts them, where the ``ap_fixed`` headers are.
    """

    path: Path
    name: str
    format: str = "hls"
    differing_integers: int | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        return f"not run: g++ -I<ap_types> test.cpp -o test && ./test, in {self.path}"


def write_folder(gru: QuantGRU, folder: Path, name: str) -> HlsReport:
    """Write a layer's ``<name>.h``, ``<name>_vectors.h`` and ``test.cpp``, all of them or none.

    Args:
        gru: calibrated, of any number of layers and one direction; it is left as it was.
        folder: made where missing.
        name: an identifier in C++.

    Raises:
        ValueError: where it is bidirectional, or naming the operator that has no type or ROM.
        RuntimeError: where it is not calibrated.
        OSError: where the folder can't be written to.
    """
    if gru.bidirectional:
        raise ValueError("bidirectional is True; expected one direction: a time step can't wait for the sequence's end")
    gru.ensure_calibrated()
    files = {f"{name}.h": header(gru, name), "test.cpp": _test(name)}
    x, batch = _example(gru), int(not gru.batch_first)
    files[f"{name}_vectors.h"] = _vectors(name, x, gru.forward_integers(x.unsqueeze(batch))[0].squeeze(batch))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        for file, text in files.items():
            (Path(temporary) / file).write_text(text, encoding="utf-8")
        put_in_place(Path(temporary), folder)
    return HlsReport(folder, name)


def header(gru: QuantGRU, name: str) -> str:
    """Return ``<name>.h``; see `write_folder`."""
    layers = [str(direction).replace(" ", "_") for direction in directions_of(gru)]
    cells = ""
    for layer, direction in zip(layers, directions_of(gru), strict=True):
        cells += namespace(layer, str(direction), gru.grids(*direction), gru.quantized_weights(*direction))
    x = Operator.of("input.x", gru.input_grid)
    y = Operator.of("output.h", gru.output_grid)
    return f"""\
// A quantized GRU of {gru.num_layers} layer(s), {gru.input_size} inputs and {gru.hidden_size} units.
//
// A grid's integer q stands for (q - zero point) * 2^-n. Types hold that value, and round and saturate as grids do.
// x: n {x.grid.exp2_inv}, zero point {x.grid.zero_point}. y: n {y.grid.exp2_inv}, zero point {y.grid.zero_point}.
#pragma once

#include <ap_fixed.h>
#include <ap_int.h>

namespace {name} {{

template <class To, class From>
To same_bits(const From& value) {{
  To result;
  result.range(To::width - 1, 0) = value.range(To::width - 1, 0);
  return result;
}}

// Round to a grid; from more bits than are dropped, for ap_fixed would read past its last one.
template <class To, class From>
To rounded(const From& value) {{
  const int exponent = From::width - From::iwidth, dropped = exponent - (To::width - To::iwidth);
  const int width = 1 + (dropped > From::width ? dropped : From::width);
  return To(ap_fixed<width, width - exponent>(value));
}}

// For a grid with a zero point, whose mantissas are not as many below 0 as a type's.
template <class T>
T clamped(const T& value, long long low, long long high) {{
  const ap_int<T::width> mantissa = same_bits<ap_int<T::width> >(value);
  if (mantissa < low) return same_bits<T>(ap_int<T::width>(low));
  return mantissa > high ? same_bits<T>(ap_int<T::width>(high)) : value;
}}
{cells}
typedef {stored_type(x.grid)} x_q;
typedef {stored_type(y.grid)} y_q;

struct state {{
{"".join(f"  {layer}::output_h_t {layer}_h[{layer}::hidden];{chr(10)}" for layer in layers)}}};

inline void reset(state& s) {{
{"".join(_reset(layer) for layer in layers)}}}

// One time step on integers.
inline void step(state& s, const x_q x[{gru.input_size}], y_q y[{gru.hidden_size}]) {{
  {layers[0]}::input_x_t {layers[0]}_x[{layers[0]}::inputs];
inputs:
  for (int i = 0; i < {gru.input_size}; ++i)
    {layers[0]}_x[i] = same_bits<{layers[0]}::input_x_t>({x.type.bits}(ap_int<34>(x[i]) - ({x.grid.zero_point})));
{_calls(gru, layers)}outputs:
  for (int i = 0; i < {gru.hidden_size}; ++i)
    y[i] = y_q(ap_int<34>(same_bits<{y.type.bits} >(s.{layers[-1]}_h[i])) + ({y.grid.zero_point}));
}}

}}  // namespace {name}
"""


def _reset(layer: str) -> str:
    return f"reset_{layer}:\n  for (int i = 0; i < {layer}::hidden; ++i) s.{layer}_h[i] = 0;\n"


def _calls(gru: QuantGRU, layers: Sequence[str]) -> str:
    text = f"  {layers[0]}::step({layers[0]}_x, s.{layers[0]}_h);\n"
    for index, (below, layer) in enumerate(zip(layers, layers[1:], strict=False), 1):
        fed = Operator.of("input.x", gru.grids(index)["input.x"])
        value = fed.quantize(f"s.{below}_h[i]", f"{layer}::")
        text += f"""\
  {layer}::input_x_t {layer}_x[{layer}::inputs];
feed_{layer}:
  for (int i = 0; i < {layer}::inputs; ++i) {layer}_x[i] = {value};
  {layer}::step({layer}_x, s.{layer}_h);
"""
    return text


def _example(gru: QuantGRU) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    grid = gru.input_grid
    return torch.randint(grid.qmin, grid.qmax + 1, (STEPS, gru.input_size), generator=generator)


def _vectors(name: str, x: Tensor, y: Tensor) -> str:
    arrays = array(f"inputs[{len(x)}][{x.shape[1]}]", x.tolist())
    arrays += array(f"outputs[{len(y)}][{y.shape[1]}]", y.tolist())
    return f"""\
// Inputs, and what qgru computes of them from a state of zeros.
namespace {name}_vectors {{
const int steps = {len(x)};
{arrays}}}  // namespace {name}_vectors
"""


def _test(name: str) -> str:
    return f"""\
// g++ -I<ap_types> test.cpp -o test && ./test
#include <cstdio>

#include "{name}.h"
#include "{name}_vectors.h"

int main() {{
  using namespace {name}_vectors;
  const int in = sizeof inputs[0] / sizeof inputs[0][0], out = sizeof outputs[0] / sizeof outputs[0][0];
  {name}::state state;
  {name}::reset(state);
  int differing = 0;
  for (int t = 0; t < steps; ++t) {{
    {name}::x_q x[in];
    {name}::y_q y[out];
    for (int i = 0; i < in; ++i) x[i] = inputs[t][i];
    {name}::step(state, x, y);
    for (int i = 0; i < out; ++i) differing += y[i] != outputs[t][i];
  }}
  std::printf("{name}: %d of %d integers differ\\n", differing, steps * out);
  return differing != 0;
}}
"""
