// The time loop: a cluster of CTAs owns ROWS batch rows, a CTA of it a slice of the hidden units, a warp the r, z and n
// rows of R of the same 16 units. R stays on the chip for all steps; the state goes around through shared memory.

#define K64 (PADDED / 64)
#define COLUMN_TILES (ROWS == 16 ? 2 : 1)
#define STATE_STRIDE ((PADDED + 63) / 128 * 128 + 64)  // 64 bytes past a multiple of 128: no bank conflicts
#define THREADS (32 * WARPS)
#define UNITS (16 * CTA_TILES)
#define STAGES 6
#define CONSTANTS_IN_REGISTERS (TILES_A_WARP == 1 && REGISTER_K64 <= 4)
#define WORDS (ELEMENTS * CODE_WORDS)  // of a lane and tile

struct ForwardArgs {
    const signed char* R_codes;  // (3, units, PADDED)
    const real* constants;       // (units, 8)
    const int* R_offset;         // (3, units)
    const byte* diverged;        // (3, units): a NaN in the parameters
    const byte* also_diverged;   // (1): a NaN in another layer's, or null
    const float* tables;         // r, z, g
    const float* h0;             // (batch, hidden)
    word* codes;                 // (time, groups, tiles, 32, ELEMENTS * CODE_WORDS): Wx in; pre-activations, Rh_g out
    const byte* flags;           // (time, groups, ROWS)
    byte* bits;                  // (time, groups, tiles, 32, 2, ELEMENTS): this kernel writes the second half
    float* out;                  // (time, batch, hidden), strided
    float* last;                 // (batch, hidden)
    long long time_stride, batch_stride;
    int time, batch, groups, reverse;
    int z_table, g_table;        // where these start
    int h_code;                  // code = mantissa + h_code fits int8
    int unused;
    Numbers n;
};

struct __align__(16) Shared {
    signed char state[2][ROWS][STATE_STRIDE];
    int4 fragments[(K64 - REGISTER_K64) * GATES * TILES_A_WARP * 2 + 1][THREADS];
    word codes[STAGES][TILES_A_WARP][THREADS][WORDS];
    byte flags[STAGES][THREADS][ROWS];
    real constants[2][2][UNITS / 2][4];  // of even and odd units: scales, biases; neighbours' without bank conflicts
    int offsets[UNITS][4];
#if SHARED_TABLES
    float tables[TABLE_ENTRIES];
#endif
};

__device__ __forceinline__ int column_tile(int j) { return ROWS == 16 ? j >> 1 : 0; }
__device__ __forceinline__ int accumulator(int j, int u) { return ROWS == 4 ? 2 * u : 2 * u + (j & 1); }

__device__ __forceinline__ void prefetch(Shared& s, int stage, const word* codes, const byte* flags, bool valid) {
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
        copy_all<WORDS * 4>(s.codes[stage][i][threadIdx.x], codes + i * 32 * WORDS, valid);
    copy_async<ROWS>(s.flags[stage][threadIdx.x], flags, valid);
    commit_copies();
}

__device__ __forceinline__ real accumulated(int acc) {
#if BIASED_SUMS
    return sum(__int_as_float(acc), -ROUND);
#else
    return (real)acc;
#endif
}

__device__ __forceinline__ void write_pair(float* to, float2 v, int unit) {
    if (HIDDEN % 2 == 0) {
        if (unit < HIDDEN) *(float2*)to = v;
    } else {
        if (unit < HIDDEN) to[0] = v.x;
        if (unit + 1 < HIDDEN) to[1] = v.y;
    }
}

// Give the other CTAs of the cluster this CTA's slice of the new state.
__device__ __forceinline__ void share_state(Shared& s, int buffer, int first_unit) {
#if CLUSTER > 1
    __syncthreads();
    constexpr int chunks = UNITS / 16;
    for (int i = threadIdx.x; i < ROWS * chunks * (CLUSTER - 1); i += THREADS) {
        int peer = i / (ROWS * chunks), chunk = i % (ROWS * chunks);
        peer += peer >= first_unit / UNITS;
        const signed char* from = &s.state[buffer][chunk / chunks][first_unit + chunk % chunks * 16];
        store_remote(address_in(shared_address(from), peer), *(const int4*)from);
    }
#endif
    cluster_barrier();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ ForwardArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    const Numbers& n = a.n;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    int rank = cluster_rank(), group = blockIdx.x / CLUSTER, first_unit = rank * UNITS;
    int tile = warp * TILES_A_WARP;  // of this CTA
    int step = a.reverse ? -1 : 1, t = a.reverse ? a.time - 1 : 0;
    constexpr int units = CLUSTER * UNITS;

    long long slot = slot_of(t, a.groups, group, CLUSTER * CTA_TILES, rank * CTA_TILES + tile);
    long long slots = (long long)step * a.groups * CLUSTER * CTA_TILES * 32;  // from a step to the next
    word* codes_at = a.codes + slot * WORDS;
    const byte* flags_at = a.flags + ((long long)t * a.groups + group) * ROWS;
    int flags_step = step * a.groups * ROWS;
    for (int i = 0; i < STAGES - 1; ++i)
        prefetch(s, i, codes_at + min(i, a.time - 1) * slots * WORDS, flags_at + min(i, a.time - 1) * flags_step, i < a.time);
    int ahead = min(STAGES - 1, a.time - 1);
    flags_at += ahead * (long long)flags_step;
    const word* next_codes = codes_at + ahead * slots * WORDS;
    byte* bits_at = a.bits + (2 * slot + 1) * ELEMENTS;

    int4 R[TILES_A_WARP][GATES][REGISTER_K64][2];
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
            for (int k = 0; k < K64; ++k)
#pragma unroll
                for (int high = 0; high < 2; ++high) {
                    int unit = first_unit + unit_of(tile + i, g) + high;
                    int4 v = *(const int4*)(a.R_codes + (long long)(gate * units + unit) * PADDED + k * 64 + q * 16);
                    if (k < REGISTER_K64) R[i][gate][k < REGISTER_K64 ? k : 0][high] = v;
                    else s.fragments[(((k - REGISTER_K64) * GATES + gate) * TILES_A_WARP + i) * 2 + high][threadIdx.x] = v;
                }
    for (int i = threadIdx.x; i < UNITS * 8; i += THREADS)
        s.constants[i / 8 % 2][i / 4 % 2][i / 16][i % 4] = a.constants[first_unit * 8 + i];
    for (int i = threadIdx.x; i < UNITS * GATES; i += THREADS)
        s.offsets[i / GATES][i % GATES] = a.R_offset[i % GATES * units + first_unit + i / GATES];
#if SHARED_TABLES
    for (int i = threadIdx.x; i < TABLE_ENTRIES; i += THREADS) s.tables[i] = a.tables[i];
    Tables tables = {s.tables, s.tables + a.z_table, s.tables + a.g_table};
#else
    Tables tables = {a.tables, a.tables + a.z_table, a.tables + a.g_table};
#endif
    bool diverged = a.also_diverged != nullptr && *a.also_diverged;
    for (int i = threadIdx.x; i < GATES * units; i += THREADS) diverged |= a.diverged[i] != 0;
    diverged = __syncthreads_or(diverged);

    // The initial state: every CTA needs all of it, each lane its own elements.
    unsigned start_lost = 0;  // a bit a row
    for (int i = threadIdx.x; i < ROWS * PADDED; i += THREADS) {
        int row = i / PADDED, unit = i % PADDED;
        float v = group * ROWS + row < a.batch && unit < HIDDEN ? a.h0[(group * ROWS + row) * (long long)HIDDEN + unit] : 0;
        if (isnan(v)) start_lost |= 1u << row;
        float m = quantized(isnan(v) ? 0.0f : v, n.h_steps, n.h_least, n.h_most);
        s.state[0][row][unit] = (int)m + a.h_code;
    }
    for (int row = 0; row < ROWS; ++row)
        if (__syncthreads_or(start_lost >> row & 1)) start_lost |= 1u << row;
    if (diverged) start_lost = ~0u;
    real h[TILES_A_WARP][ELEMENTS];
    bool lost[ROWS / 4];
#pragma unroll
    for (int j = 0; j < ROWS / 4; ++j) {
        lost[j] = start_lost >> row_of(q, j) & 1;
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u)
                h[i][2 * j + u] = (real)(s.state[0][row_of(q, j)][first_unit + unit_of(tile + i, g) + u] - a.h_code);
    }
#if CONSTANTS_IN_REGISTERS
    real constants[2][2][4];
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int i = 0; i < 8; ++i) constants[u][i / 4][i % 4] = s.constants[u][i / 4][unit_of(tile, g) / 2][i % 4];
#endif
    float* out_at[ROWS / 4];
    bool row_valid[ROWS / 4];
#pragma unroll
    for (int j = 0; j < ROWS / 4; ++j) {
        int row = group * ROWS + row_of(q, j);
        row_valid[j] = row < a.batch;
        out_at[j] = a.out + t * a.time_stride + row * a.batch_stride + first_unit + unit_of(tile, g);
    }
    cluster_barrier();

    for (int done = 0, stage = 0, buffer = 0; done < a.time; ++done, buffer ^= 1) {
        wait_copies<STAGES - 2>();
        int acc[TILES_A_WARP][GATES][COLUMN_TILES][4];
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    int start = BIASED_SUMS ? 0x4B400000 : 0;
#if STATE_OFFSET
                    start += s.offsets[unit_of(tile + i, g) + u][gate];
#endif
                    for (int c = 0; c < COLUMN_TILES; ++c) acc[i][gate][c][2 * u] = acc[i][gate][c][2 * u + 1] = start;
                }
#pragma unroll
        for (int k = 0; k < K64; ++k)
#pragma unroll
            for (int c = 0; c < COLUMN_TILES; ++c) {
                int row = ROWS == 4 ? g >> 1 : c * 8 + g;  // four rows: each stands in two columns
                int4 b = *(const int4*)&s.state[buffer][row][k * 64 + q * 16];
#pragma unroll
                for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) {
                        if (k < REGISTER_K64) {
                            int4* pair = R[i][gate][k < REGISTER_K64 ? k : 0];
                            mma64(acc[i][gate][c], pair[0], pair[1], b);
                        } else {
                            int at = (((k - REGISTER_K64) * GATES + gate) * TILES_A_WARP + i) * 2;
                            mma64(acc[i][gate][c], s.fragments[at][threadIdx.x], s.fragments[at + 1][threadIdx.x], b);
                        }
                    }
            }
        const byte* flags = s.flags[stage][threadIdx.x];
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i) {
            int unit = unit_of(tile + i, g);
            const word* codes = s.codes[stage][i][threadIdx.x];
#if TRAIN
            word saved[WORDS];
            word bits[(ELEMENTS + 3) / 4] = {};
#endif
#pragma unroll
            for (int j = 0; j < ROWS / 4; ++j) {
                int row = row_of(q, j);
                bool active = flags[row] & ACTIVE;
                if (i == 0) lost[j] |= (flags[row] & LOST) != 0;
                word state = 0;
                float2 out;
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    int e = 2 * j + u;
                    real sums[GATES], z, new_gate;
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate)
                        sums[gate] = accumulated(acc[i][gate][column_tile(j)][accumulator(j, u)]);
                    Gates gates;
#if CONSTANTS_IN_REGISTERS
                    const real *scales = constants[u][0], *biases = constants[u][1];
#else
                    const real *scales = s.constants[u][0][unit / 2], *biases = s.constants[u][1][unit / 2];
#endif
                    gates_of(gates, n, tables, sums, scales, biases, codes + e * CODE_WORDS, z, new_gate);
                    Blend b = blended(n, z, new_gate, h[i][e]);
                    real y = active ? b.h : sum(h[i][e], ROUND);
                    h[i][e] = sum(y, -ROUND);
                    state |= (low_bits(y) - low_bits(ROUND) + a.h_code & 0xFF) << 8 * u;
                    (u ? out.y : out.x) = lost[j] ? nan_value() : (float)h[i][e] * n.h_step;
#if TRAIN
                    pack_codes(saved + e * CODE_WORDS, gates.index[0], gates.index[1], gates.index[2],
                               index_of(gates.Rh[2], n.Rh_lo));
                    bits[e / 4] |= (gates.Rh_inside | gates.pre_inside << 3) << 8 * (e % 4);
#endif
                }
                *(unsigned short*)&s.state[buffer ^ 1][row][first_unit + unit] = state;
                if (row_valid[j]) write_pair(out_at[j] + 16 * i, out, first_unit + unit);
            }
#if TRAIN
            store<WORDS>(codes_at + i * 32 * WORDS, saved);
            byte* to = bits_at + i * 64 * ELEMENTS;
            if (ELEMENTS == 2) *(unsigned short*)to = bits[0];
            else store<(ELEMENTS + 3) / 4>((word*)to, bits);
#endif
        }
        share_state(s, buffer ^ 1, first_unit);
        prefetch(s, stage == 0 ? STAGES - 1 : stage - 1, next_codes, flags_at, done + STAGES - 1 < a.time);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        codes_at += slots * WORDS;
        bits_at += slots * 2 * ELEMENTS;
        if (done + STAGES < a.time) {
            next_codes += slots * WORDS;
            flags_at += flags_step;
        }
#pragma unroll
        for (int j = 0; j < ROWS / 4; ++j) out_at[j] += step * a.time_stride;
    }

#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < ROWS / 4; ++j) {
            int row = group * ROWS + row_of(q, j), unit = first_unit + unit_of(tile + i, g);
            float2 out = {(float)h[i][2 * j] * n.h_step, (float)h[i][2 * j + 1] * n.h_step};
            if (lost[j]) out = {nan_value(), nan_value()};
            if (row_valid[j]) write_pair(a.last + (long long)row * HIDDEN + unit, out, unit);
        }
}
