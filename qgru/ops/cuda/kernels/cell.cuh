// The pointwise part of a time step, for one element (a hidden unit of a row), as integers in `real`.
#pragma once
#include "codes.cuh"
#include "real.cuh"

// Powers of two and clamping bounds of the grids. A bound named *_lo or *_hi carries ROUND.
struct Numbers {
    real Wx_base;                             // 2^23 - the smallest mantissa: biased code to mantissa
    real r_from_Wx, z_from_Wx, g_from_Wx;     // from a grid's steps to those of the sum's grid
    real Rh_lo, Rh_hi, Rh_least;
    real r_from_Rh, r_lo, r_hi;
    real z_from_Rh, z_lo, z_hi;
    real c_from_Rh, c_lo, c_hi;
    real m_lo, m_hi;
    real g_from_m, g_lo, g_hi;
    real old_lo, old_hi;
    real z_step;                              // minus the value of one step of the z table's entries
    real new_lo, new_hi;
    real h_from_old, h_from_new, h_lo, h_hi;
    float h_step;                             // value of one step
    float h_steps, h_least, h_most;           // steps per unit, and the range of mantissas
};

struct Gates {  // rounded and clamped mantissas plus ROUND, and what the next rounding reads
    real Rh[GATES], pre[GATES];
    int index[GATES];  // of the pre-activations' tables
    word Rh_inside, pre_inside;  // a bit a gate: not clamped
};

struct Tables {
    const float *r, *z, *g;
};

__device__ __forceinline__ real table(const float* values, int i) {
#if SHARED_TABLES
    return values[i];
#else
    return __ldg(values + i);
#endif
}

__device__ __forceinline__ word same(real a, real b) { return a == b; }

// The sum before a gate's rounding: mantissa of Wx, in the sum's steps, plus biases.
__device__ __forceinline__ real projected(const Numbers& n, const word* codes, int gate, real from_Wx, real bias) {
    return fused(sum(biased_code(codes, gate), -n.Wx_base), from_Wx, bias);
}

__device__ __forceinline__ int index_of(real y, real lo) { return low_bits(y) - low_bits(lo); }

// Everything up to the outputs of the gates. `s.Rh` and `s.Rh_inside` are given, `biases` are the unit's; the entries of
// the tables come scaled, so that r * c, z * h and (1 - z) * g are in steps of their product's grid.
__device__ __forceinline__ void gates_of(Gates& s, const Numbers& n, const Tables& tables, const real* biases,
                                         const word* codes, real& z, real& g) {
    real r_pre = sum(fused(sum(s.Rh[0], -ROUND), n.r_from_Rh, projected(n, codes, 0, n.r_from_Wx, biases[0])), ROUND);
    real z_pre = sum(fused(sum(s.Rh[1], -ROUND), n.z_from_Rh, projected(n, codes, 1, n.z_from_Wx, biases[1])), ROUND);
    s.pre[0] = clamped(r_pre, n.r_lo, n.r_hi);
    s.pre[1] = clamped(z_pre, n.z_lo, n.z_hi);
    s.index[0] = index_of(s.pre[0], n.r_lo);
    s.index[1] = index_of(s.pre[1], n.z_lo);
    real r = table(tables.r, s.index[0]);
    z = table(tables.z, s.index[1]);
    real c = sum(clamped(sum(fused(sum(s.Rh[2], -ROUND), n.c_from_Rh, biases[3]), ROUND), n.c_lo, n.c_hi), -ROUND);
    real m = sum(clamped(fused(r, c, ROUND), n.m_lo, n.m_hi), -ROUND);
    real g_pre = sum(fused(m, n.g_from_m, projected(n, codes, 2, n.g_from_Wx, biases[2])), ROUND);
    s.pre[2] = clamped(g_pre, n.g_lo, n.g_hi);
    s.index[2] = index_of(s.pre[2], n.g_lo);
    g = table(tables.g, s.index[2]);
    s.pre_inside = same(r_pre, s.pre[0]) | same(z_pre, s.pre[1]) << 1 | same(g_pre, s.pre[2]) << 2;
}

struct Blend {
    real y_old, old_contrib, y_new, new_contrib, y_h, h;  // each before and after clamping, plus ROUND
    real complement;                                      // the real number 1 - z
};

__device__ __forceinline__ Blend blended(const Numbers& n, real z, real g, real h) {
    Blend b;
    b.y_old = fused(z, h, ROUND);
    b.old_contrib = clamped(b.y_old, n.old_lo, n.old_hi);
    b.complement = fused(z, n.z_step, 1);
    b.y_new = fused(b.complement, g, ROUND);
    b.new_contrib = clamped(b.y_new, n.new_lo, n.new_hi);
    real old_part = sum(b.old_contrib, -ROUND) * n.h_from_old;
    b.y_h = sum(fused(sum(b.new_contrib, -ROUND), n.h_from_new, old_part), ROUND);
    b.h = clamped(b.y_h, n.h_lo, n.h_hi);
    return b;
}
