// The operands of the gradient's large products, from the gradient `d` of every state: the gates' gradients as two
// bfloat16 terms each (2^-18 of a number is lost), states and input as integers (one term of 8 bits, or two).

#include "factors.cuh"
#include "pairs.cuh"

__device__ __forceinline__ word bfloat_pair(float a, float b) {
    word packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
    return packed;
}

__device__ __forceinline__ uint2 two_terms(float a, float b) {
    word first = bfloat_pair(a, b);
    return make_uint2(first, bfloat_pair(a - __int_as_float(first << 16), b - __int_as_float(first & 0xFFFF0000)));
}

// The upper term of an integer of at most 17 bits; what is left fits bfloat16 too.
__device__ __forceinline__ float upper_term(float m) { return rintf(m * (1 / 256.0f)) * 256.0f; }

__device__ __forceinline__ void store_gates(uint2* row, int pairs, int pair, const uint2* gates) {
    *(uint4*)(row + 2 * pair) = make_uint4(gates[0].x, gates[0].y, gates[1].x, gates[1].y);
    row[2 * pairs + pair] = gates[2];
}

// Write one row's pair of units; add its biases' gradients to `sums`.
__device__ __forceinline__ void write_pair(const ElementArgs& a, const Place& p, long long row, const Factors (&f)[2],
                                           float2 d, float (&sums)[2][4]) {
    float gates[2][GATES], d_c[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
        float v = u ? d.y : d.x;
        gates[u][2] = v * f[u].g;
        gates[u][1] = v * f[u].z;
        gates[u][0] = gates[u][2] * f[u].r;
        d_c[u] = gates[u][2] * f[u].c;
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) sums[u][gate] += gates[u][gate];
        sums[u][3] += d_c[u];
    }
    uint2 dWx[GATES], dRh[GATES];
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate) {
        dWx[gate] = two_terms(where(f[0].bits >> gate & 1, gates[0][gate]), where(f[1].bits >> gate & 1, gates[1][gate]));
        float first = gate == 2 ? d_c[0] : gates[0][gate], second = gate == 2 ? d_c[1] : gates[1][gate];
        dRh[gate] = two_terms(where(f[0].bits >> 3 + gate & 1, first), where(f[1].bits >> 3 + gate & 1, second));
    }
    const Chunk& c = a.chunk;
    int pairs = PAIRS_OF(a.hidden), pair = p.unit / 2;
    store_gates(c.dWx + row * GATES * pairs, pairs, pair, dWx);
    store_gates(c.dRh + row * GATES * pairs, pairs, pair, dRh);
    word* h = c.h_operand + row * H_LIMBS * pairs + pair;
    if (H_LIMBS == 1) {
        h[0] = bfloat_pair(f[0].h, f[1].h);
    } else {
        float first = upper_term(f[0].h), second = upper_term(f[1].h);
        h[0] = bfloat_pair(first, second);
        h[pairs] = bfloat_pair(f[0].h - first, f[1].h - second);
    }
}

__device__ void write_gates(const ElementArgs& a, int tile) {
    int lane = threadIdx.x & 31, q = lane & 3, steps = a.chunk.end - a.chunk.start;
    const Chunk& c = a.chunk;
    bool even = a.hidden % 2 == 0;
    float sums[2][4] = {};
    Place p;
    for (int i = blockIdx.x; i < steps * a.groups; i += gridDim.x) {
        int group = i % a.groups, step = i / a.groups;
        p = place_of(a, step, group, tile);
        if (p.unit >= 2 * PAIRS_OF(a.hidden)) break;
#pragma unroll
        for (int j = 0; j < ROWS / 4; ++j) {
            int in_group = row_of(q, j), row = group * ROWS + in_group;
            if (row >= a.batch) continue;
            Factors f[2];
            load_factors(a, p, j, row, f);
            long long at = (long long)step * a.batch + row;
            bool active = flags_of(a, p, group, in_group) & ACTIVE;
            float2 d = load_pair(c.d + at * a.hidden + p.unit, active && p.units[0], active && p.units[1], even);
            write_pair(a, p, at, f, d, sums);
        }
    }
    p.unit = unit_of(tile, lane >> 2);
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            float v = sums[u][part];  // the quad's lanes hold different rows: add them in a fixed order
            v += __shfl_xor_sync(~0u, v, 1);
            v += __shfl_xor_sync(~0u, v, 2);
            if (q != 0 || p.unit + u >= a.hidden) continue;
            float* to = c.d_bias + ((long long)blockIdx.x * 4 + part) * a.hidden + p.unit + u;
            *to = c.end == a.time ? v : *to + v;
        }
}

__device__ void write_input(const ElementArgs& a) {
    const Chunk& c = a.chunk;
    int lane = threadIdx.x & 31, rows = (c.end - c.start) * a.batch, of_step = a.groups * ROWS;
    long long plane = (long long)a.time * of_step * a.x_padded;
    for (int i = blockIdx.x * WARPS + threadIdx.x / 32; i < rows; i += gridDim.x * WARPS) {
        int t = c.first_time + i / a.batch, row = i % a.batch;
        const signed char* from = (const signed char*)(c.workspace + a.x_codes) + ((long long)t * of_step + row) * a.x_padded;
        word* to = (word*)(c.x_operand + (long long)i * X_LIMBS * a.x_width);
        for (int k = 2 * lane; k < a.x_width; k += 64) {
            float m[2];
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                int code = from[k + u];
                if (X_LIMBS == 2) code = code * 256 + (byte)from[plane + k + u];
                m[u] = k + u < a.input ? (float)(code + a.x_offset) : 0.0f;
            }
            if (X_LIMBS == 1) {
                to[k / 2] = bfloat_pair(m[0], m[1]);
            } else {
                float first = upper_term(m[0]), second = upper_term(m[1]);
                to[k / 2] = bfloat_pair(first, second);
                to[(a.x_width + k) / 2] = bfloat_pair(m[0] - first, m[1] - second);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) operands(const __grid_constant__ ElementArgs a) {
    int tile = blockIdx.y * WARPS + threadIdx.x / 32;
    if (blockIdx.y == gridDim.y - 1) write_input(a);
    else if (tile < a.tiles) write_gates(a, tile);
}
