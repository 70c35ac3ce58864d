// What the reverse walk reads and keeps: its arguments, shared memory, and copies ahead of use.

#define K64 (PADDED / 64)
#define SOURCES CLUSTER                            // slices of k, each with its own scale
#define SOURCE_K64 (K64 / SOURCES)
#define ROWS_A_LANE (ROWS / 4)
#define LIMB_TILES (LIMBS == 3 ? 2 : 1)
#define COLUMN_TILES (ROWS_A_LANE * LIMB_TILES)    // columns 2q and 2q + 1 are two limbs of a lane's row
#define CHAINS (TILES_A_WARP * COLUMN_TILES <= 2 ? 3 : 1)  // independent sums, for the latency of the product
// Where registers allow, gradients are written and factors read while the product runs.
#define SHADOWED (TILES_A_WARP * ROWS_A_LANE == 1 && CLUSTER == 1)
#define K_STRIDE ((GATES * PADDED + 63) / 128 * 128 + 64)
#define THREADS (32 * WARPS)
#define UNITS (16 * CTA_TILES)
#define STAGES 4
#define WORDS (ELEMENTS * CODE_WORDS)  // of a lane and tile
#define PAIRS ((HIDDEN + 3) / 4 * 2)   // of hidden units, even: 16-byte stores
#define LARGEST (LIMBS == 3 ? 4161536.0f : 32512.0f)  // 127 in the first limb, and below the limit of ROUND

struct BackwardArgs {
    const signed char* Rt_codes;  // (units, 3, PADDED)
    const real* constants;        // (units, 8)
    const float* tables;          // values: r, z, g
    const float* slopes;          // derivatives, 0 where the output is clamped
    const float* h0;              // (batch, hidden)
    const word* codes;            // (time, groups, tiles, 32, ELEMENTS * CODE_WORDS)
    const byte* flags;            // (time, groups, ROWS)
    const byte* bits;             // (time, groups, tiles, 32, 2, ELEMENTS)
    const float* out;             // (time, batch, hidden), strided
    const float* d_out;           // (time, batch, hidden), strided, or null
    float* dh;                    // (batch, hidden): in, unless `dh_is_zero`, and out
    uint2* dWx;                   // (end - start, batch, 3 * PAIRS), in order of time: r and z of every pair, then g; see `pieces`
    uint2* dRh;
    word* h_operand;              // (end - start, batch, PAIRS) bfloat16 mantissas of the state before each step
    float* d_bias;                // (groups, 4, hidden): added to, but for the last steps; r, z, g and br_g
    long long out_time, out_batch, d_time, d_batch;
    int time, batch, groups, reverse;
    int start, end;               // the steps of the walk to go back over
    int z_table, g_table;
    int dh_is_zero, unused;
    Numbers n;
    float r_value, z_value, c_value, g_value;  // from table entries and mantissas to real numbers
    float dh_value;                            // from (R h) in units of the scales to real numbers
};

struct __align__(16) Shared {
    signed char limbs[8 * COLUMN_TILES][K_STRIDE];
    int4 fragments[(K64 - REGISTER_K64) * GATES * TILES_A_WARP * 2 + 1][THREADS];
    word codes[STAGES][TILES_A_WARP][THREADS][WORDS];
    word bits[STAGES][TILES_A_WARP][THREADS][ELEMENTS / 2];
    float2 d_out[STAGES][TILES_A_WARP][ROWS_A_LANE][THREADS];
    float2 before[STAGES][TILES_A_WARP][ROWS_A_LANE][THREADS];
    byte flags[STAGES][THREADS][ROWS];
    word largest[ROWS][WARPS];
    float steps[SOURCES][ROWS];  // of the fixed point
    real constants[2][2][UNITS / 2][4];  // of even and odd units: scales, biases
#if SHARED_TABLES
    float tables[TABLE_ENTRIES], slopes[TABLE_ENTRIES];
#endif
};

// Two neighbours' floats; an odd number of hidden units leaves no 8-byte alignment.
__device__ __forceinline__ void copy_pair(float2* to, const float* from, bool first, bool second, bool aligned) {
    if (aligned) {
        copy_async<8>(to, from, first);
    } else {
        copy_async<4>(&to->x, from, first);
        copy_async<4>(&to->y, from + 1, second);
    }
}

__device__ __forceinline__ float on_grid(const Numbers& n, float v) {
    return isnan(v) ? 0.0f : quantized(v, n.h_steps, n.h_least, n.h_most) * n.h_step;
}

// What a lane reads at a step of the walk.
struct Cursor {
    const word* codes;
    const byte *bits, *flags;
    const float *d_out[ROWS_A_LANE], *before[ROWS_A_LANE];
    long long codes_step, bits_step, d_step, before_step;
    int flags_step;

    __device__ __forceinline__ Cursor(const BackwardArgs& a, int walk, int group, int first_unit, int tile) {
        int t = a.reverse ? a.time - 1 - walk : walk, step = a.reverse ? 1 : -1;
        int lane = threadIdx.x & 31, q = lane & 3, unit = first_unit + unit_of(tile, lane >> 2);
        long long slot = slot_of(t, a.groups, group, CLUSTER * CTA_TILES, first_unit / 16 + tile);
        long long slots = (long long)step * a.groups * CLUSTER * CTA_TILES * 32;
        codes = a.codes + slot * WORDS;
        codes_step = slots * WORDS;
        bits = a.bits + slot * 2 * ELEMENTS;
        bits_step = slots * 2 * ELEMENTS;
        flags = a.flags + ((long long)t * a.groups + group) * ROWS;
        flags_step = step * a.groups * ROWS;
        d_step = step * a.d_time;
        before_step = step * a.out_time;
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            // Padding points at something that exists, though nothing is read of it.
            int row = min(group * ROWS + row_of(q, j), a.batch - 1), column = unit < HIDDEN ? unit : 0;
            d_out[j] = (a.d_out ? a.d_out + t * a.d_time + row * a.d_batch : a.out) + column;
            before[j] = a.out + (t + step) * a.out_time + row * a.out_batch + column;
        }
    }

    __device__ __forceinline__ void advance() {
        codes += codes_step;
        bits += bits_step;
        flags += flags_step;
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            d_out[j] += d_step;
            before[j] += before_step;
        }
    }
};

// What a lane may touch.
struct Inside {
    bool row[ROWS_A_LANE], unit[TILES_A_WARP][2], pair[TILES_A_WARP];
};

__device__ __forceinline__ void prefetch(const BackwardArgs& a, Shared& s, Cursor& at, int stage, int walk, bool d_aligned,
                                         const Inside& inside, int group, int first_unit, int tile) {
    bool valid = walk >= a.start;
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i) {
        copy_all<WORDS * 4>(s.codes[stage][i][threadIdx.x], at.codes + i * 32 * WORDS, valid);
        copy_all<ELEMENTS * 2>(s.bits[stage][i][threadIdx.x], at.bits + i * 64 * ELEMENTS, valid);
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            bool h = valid && inside.row[j], d = h && a.d_out != nullptr;
            const bool* unit = inside.unit[i];
            copy_pair(&s.d_out[stage][i][j][threadIdx.x], at.d_out[j] + 16 * i, d && unit[0], d && unit[1], d_aligned);
            if (walk == 0) continue;
            copy_pair(&s.before[stage][i][j][threadIdx.x], at.before[j] + 16 * i, h && unit[0], h && unit[1],
                      HIDDEN % 2 == 0);
        }
    }
    copy_async<ROWS>(s.flags[stage][threadIdx.x], at.flags, valid);
    commit_copies();
    if (walk > a.start) at.advance();
    if (walk != 0 || !valid) return;
    int lane = threadIdx.x & 31;
    for (int i = 0; i < TILES_A_WARP; ++i)
        for (int j = 0; j < ROWS_A_LANE; ++j)
            for (int u = 0; u < 2; ++u) {  // before the first step was h0
                if (!inside.row[j] || !inside.unit[i][u]) continue;
                int row = group * ROWS + row_of(lane & 3, j), unit = first_unit + unit_of(tile + i, lane >> 2) + u;
                float* to = (float*)&s.before[stage][i][j][threadIdx.x] + u;
                *to = on_grid(a.n, a.h0[(long long)row * HIDDEN + unit]);
            }
}
