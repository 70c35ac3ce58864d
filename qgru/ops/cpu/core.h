// One time step of the quantized GRU on integers: the definition for firmware, with no dependency.
//
// A number is `mantissa * 2^-exponent`; a mantissa on a grid is `q - zero_point`. Inside the exactness domain every
// product and sum below fits int64. Names are the definition's: z, r, g the gates, c = Rh_g + br_g, m = r * c.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace qgru {

enum Gate { R, Z, G };  // PyTorch's order

// A grid: mantissas lo .. hi (lo <= 0 <= hi), each worth 2^-exponent.
struct Grid {
  int64_t lo, hi;
  int exponent;
};

struct Exact {
  int64_t mantissa;
  int exponent;
};

// A value on a grid; `inside` is false where it was clamped, and the gradient stops.
struct Quantized {
  int64_t mantissa;
  bool inside;
};

inline Quantized clamp(int64_t steps, const Grid& grid) {
  const int64_t mantissa = std::clamp(steps, grid.lo, grid.hi);
  return {mantissa, mantissa == steps};
}

// clamp(rne(value * 2^grid.exponent)): round once, half to even.
inline Quantized quantize(Exact value, const Grid& grid) {
  const int shift = value.exponent - grid.exponent;
  const int64_t mantissa = value.mantissa;
  if (shift > 62 || mantissa == 0) return {0, true};
  if (shift > 0) {
    const int64_t floor = mantissa >> shift;
    const int64_t rest = mantissa - (floor << shift), half = int64_t{1} << (shift - 1);
    return clamp(floor + (rest > half || (rest == half && (floor & 1))), grid);
  }
  const int left = std::min(-shift, 40);  // a grid has at most 33 bits
  if (mantissa > grid.hi >> left) return {grid.hi, false};
  if (mantissa < -(-grid.lo >> left)) return {grid.lo, false};
  return clamp(mantissa << left, grid);
}

// The same for a real number that is not known to be exact; infinities saturate.
inline Quantized quantize(double value, const Grid& grid) {
  const double steps = std::nearbyint(std::ldexp(value, grid.exponent));
  if (!(steps >= static_cast<double>(grid.lo))) return {grid.lo, false};
  if (steps > static_cast<double>(grid.hi)) return {grid.hi, false};
  return {static_cast<int64_t>(steps), true};
}

inline double real(int64_t mantissa, int exponent) { return std::ldexp(static_cast<double>(mantissa), -exponent); }

template <class... Terms>
Exact add(Terms... terms) {
  const int finest = std::max({terms.exponent...});
  return {((terms.mantissa << (finest - terms.exponent)) + ...), finest};
}

inline Exact multiply(Exact a, Exact b) { return {a.mantissa * b.mantissa, a.exponent + b.exponent}; }

// 1 - a, on a's exponent, or on 0 where its steps are coarser than 1.
inline Exact one_minus(Exact a) { return add(Exact{1, 0}, Exact{-a.mantissa, a.exponent}); }

// sigma and tanh are float64 functions of the grid point, rounded once by the output's grid.
inline int64_t sigmoid(int64_t pre, const Grid& from, const Grid& to) {
  return quantize(1.0 / (1.0 + std::exp(-real(pre, from.exponent))), to).mantissa;
}
inline int64_t tanh(int64_t pre, const Grid& from, const Grid& to) {
  return quantize(std::tanh(real(pre, from.exponent)), to).mantissa;
}

// The grids of one layer and direction; those of the weights are per channel and come with the integers.
struct Grids {
  Grid x, h, Wx, Rh, z_pre, z_out, r_pre, r_out, g_pre, g_out, rRh, old_contrib, new_contrib, Rh_add_br;
};

// Of one hidden unit, for the three gates: the exact matrix products, before rounding, and the biases.
struct Unit {
  Exact Wx[3], Rh[3], bw[3], br[3];
};

// Everything a step computes of one hidden unit, as the backward pass needs it.
struct Step {
  Quantized Wx[3], Rh[3], r_pre, z_pre, g_pre, c, m, old_contrib, new_contrib, h;
  int64_t r, z, g;
};

// One hidden unit, one time step. `gate(which, pre)` returns the mantissa of sigma (R, Z) or tanh (G) of `pre`.
template <class Gates>
Step step(const Unit& unit, int64_t h, const Grids& on, const Gates& gate) {
  Step s;
  for (const int i : {R, Z, G}) {
    s.Wx[i] = quantize(unit.Wx[i], on.Wx);
    s.Rh[i] = quantize(unit.Rh[i], on.Rh);
  }
  const auto Wx = [&](int i) { return Exact{s.Wx[i].mantissa, on.Wx.exponent}; };
  const auto Rh = [&](int i) { return Exact{s.Rh[i].mantissa, on.Rh.exponent}; };

  s.z_pre = quantize(add(Wx(Z), Rh(Z), unit.bw[Z], unit.br[Z]), on.z_pre);
  s.r_pre = quantize(add(Wx(R), Rh(R), unit.bw[R], unit.br[R]), on.r_pre);
  s.z = gate(Z, s.z_pre.mantissa);
  s.r = gate(R, s.r_pre.mantissa);
  const Exact z{s.z, on.z_out.exponent}, r{s.r, on.r_out.exponent};

  s.c = quantize(add(Rh(G), unit.br[G]), on.Rh_add_br);
  s.m = quantize(multiply(r, {s.c.mantissa, on.Rh_add_br.exponent}), on.rRh);
  s.g_pre = quantize(add(Wx(G), unit.bw[G], Exact{s.m.mantissa, on.rRh.exponent}), on.g_pre);
  s.g = gate(G, s.g_pre.mantissa);

  s.old_contrib = quantize(multiply(z, {h, on.h.exponent}), on.old_contrib);
  s.new_contrib = quantize(multiply(one_minus(z), {s.g, on.g_out.exponent}), on.new_contrib);
  const Exact old_contrib{s.old_contrib.mantissa, on.old_contrib.exponent};
  const Exact new_contrib{s.new_contrib.mantissa, on.new_contrib.exponent};
  s.h = quantize(add(old_contrib, new_contrib), on.h);
  return s;
}

}  // namespace qgru
