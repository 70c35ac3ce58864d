// What a step's gradient is multiplied with, for every element: nothing of it waits for the walk.
#pragma once
#include "cell.cuh"
#include "chunk.cuh"
#include "slots.cuh"

// What a layer knows beforehand.
struct ElementArgs {
    Chunk chunk;
    long long codes, flags, bits, states, constants, x_codes;  // sections of the workspace
    const float* tables;  // values of r, z, g, then slopes, which are 0 where the output is clamped
    int time, batch, hidden, units, tiles, groups;
    int z_table, g_table, table_entries;  // where tables start, and how long they are together
    int input, x_padded, x_width, x_offset;  // mantissa = code + x_offset
    int h_offset;                            // likewise
    Numbers n;
    float r_value, z_value, c_value, g_value;  // from table entries and mantissas to real numbers
};

struct Factors {
    float direct, z, g, c, r;  // of the state before and of the gates; c and r multiply g's
    word bits;                 // of the clamps of Wx and, from bit 3 on, of Rh
    float h;                   // mantissa of the state before
};

__device__ __forceinline__ float where(bool inside, float v) { return inside ? v : 0.0f; }

// `Wx_bits` as project wrote them, `bits` as forward did.
__device__ __forceinline__ Factors factors_of(const ElementArgs& a, const Tables& values, const Tables& slopes,
                                              const word* codes, word Wx_bits, word bits, real br_g, float h_real) {
    const Numbers& n = a.n;
    int i_r = plain_code(codes, 0), i_z = plain_code(codes, 1), i_g = plain_code(codes, 2);
    real r = table(values.r, i_r), z = table(values.z, i_z), g = table(values.g, i_g);
    real h = h_real * n.h_steps;
    Blend b = blended(n, z, g, h);
    bool passes = b.y_h == b.h, old_passes = passes && b.y_old == b.old_contrib;
    bool new_passes = passes && b.y_new == b.new_contrib;
    real Rh_g = (real)plain_code(codes, 3) + n.Rh_least;
    real y_c = sum(fused(Rh_g, n.c_from_Rh, br_g), ROUND), c_held = clamped(y_c, n.c_lo, n.c_hi);
    real c = sum(c_held, -ROUND), y_m = fused(r, c, ROUND);
    bool m_passes = y_m == clamped(y_m, n.m_lo, n.m_hi);
    Factors f;
    f.direct = where(old_passes, (float)z * a.z_value);
    f.z = where(bits >> 4 & 1, (where(old_passes, h_real) - where(new_passes, (float)g * a.g_value)) * table(slopes.z, i_z));
    f.g = where(new_passes && bits >> 5 & 1, (float)b.complement * table(slopes.g, i_g));
    f.c = where(m_passes && y_c == c_held, (float)r * a.r_value);
    f.r = where(m_passes && bits >> 3 & 1, (float)c * a.c_value * table(slopes.r, i_r));
    f.bits = Wx_bits | (bits & 7) << 3;
    f.h = h;
    return f;
}

// A lane's place: two units of LANE_ROWS rows, at one step.
struct Place {
    int t, walk, unit;
    bool units[2];
    long long slot;
};

__device__ __forceinline__ Place place_of(const ElementArgs& a, int step, int group, int tile) {
    Place p;
    p.t = a.chunk.first_time + step;
    p.walk = a.chunk.reverse ? a.time - 1 - p.t : p.t;
    p.unit = unit_of(tile, (threadIdx.x & 31) >> 2);
    p.units[0] = p.unit < a.hidden;
    p.units[1] = p.unit + 1 < a.hidden;
    p.slot = slot_of(p.t, a.groups, group, a.tiles, tile, 0);
    return p;
}

// The real states of two units before a step: given, or as the time loop left them.
__device__ __forceinline__ float2 given_state(const ElementArgs& a, const Place& p, int row) {
    const float* from = a.chunk.h0 + (long long)row * a.hidden + p.unit;
    bool known = a.chunk.h0 != nullptr, aligned = a.hidden % 2 == 0 && ((address)a.chunk.h0 & 7) == 0;
    float2 h = load_pair(from, known && p.units[0], known && p.units[1], aligned);
    const Numbers& n = a.n;
    h.x = quantized(isnan(h.x) ? 0.0f : h.x, n.h_steps, n.h_least, n.h_most) * n.h_step;
    h.y = quantized(isnan(h.y) ? 0.0f : h.y, n.h_steps, n.h_least, n.h_most) * n.h_step;
    return h;
}
__device__ __forceinline__ float2 computed_state(const ElementArgs& a, const Place& p, long long element) {
    const byte* from = a.chunk.workspace + a.states + element * H_LIMBS;
    int first = H_LIMBS == 1 ? ((const char2*)from)->x : ((const short2*)from)->x;
    int second = H_LIMBS == 1 ? ((const char2*)from)->y : ((const short2*)from)->y;
    return {p.units[0] ? (float)(first + a.h_offset) * a.n.h_step : 0.0f,
            p.units[1] ? (float)(second + a.h_offset) * a.n.h_step : 0.0f};
}

// The two elements of row number `j`.
__device__ __forceinline__ void load_factors(const ElementArgs& a, const Place& p, int j, int row, Factors (&f)[2]) {
    const Chunk& c = a.chunk;
    const float* slope = a.tables + a.table_entries;
    Tables values = {a.tables, a.tables + a.z_table, a.tables + a.g_table};
    Tables slopes = {slope, slope + a.z_table, slope + a.g_table};
    long long slot = p.slot + (j >> 1) * 32, element = slot * SLOT_ELEMENTS + (j & 1) * 2;
    long long step = (long long)a.groups * a.tiles * 32 * SLOT_TILES * SLOT_ELEMENTS;
    const word* codes = (const word*)(c.workspace + a.codes) + element * CODE_WORDS;
    const byte* bits = c.workspace + a.bits + 2 * slot * SLOT_ELEMENTS + (j & 1) * 2;
    float2 h = p.walk == 0 ? given_state(a, p, row) : computed_state(a, p, element + (c.reverse ? step : -step));
#pragma unroll
    for (int u = 0; u < 2; ++u) {
        real br_g = ((const real*)(c.workspace + a.constants))[(p.unit + u) * 8 + 7];
        f[u] = factors_of(a, values, slopes, codes + u * CODE_WORDS, bits[u], bits[SLOT_ELEMENTS + u], br_g, u ? h.y : h.x);
    }
}

__device__ __forceinline__ byte flags_of(const ElementArgs& a, const Place& p, int group, int row_in_group) {
    long long at = ((long long)p.t * a.groups + group) * ROWS + row_in_group;
    return (a.chunk.workspace + a.flags)[at];
}
