// The time loop: a cluster of CTAs owns ROWS batch rows, a CTA of it a slice of the hidden units, a warp the r, z and n
// rows of R of the same 16 units. R stays on the chip for all steps, as far as it fits: in registers, then in shared
// memory; the rest is read from L2 at every step. The state goes around through shared memory.

#include "product.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ ForwardArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    const Numbers& n = a.n;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    int rank = cluster_rank(), group = blockIdx.x / CLUSTER, first_unit = rank * UNITS;
    int part = warp / (WARPS / K_SPLIT), tile = warp % (WARPS / K_SPLIT) * TILES_A_WARP;  // of this CTA
    const Call& call = a.call;
    int step = call.reverse ? -1 : 1, t = call.reverse ? a.time - 1 : 0;
    constexpr int units = CLUSTER * UNITS;

    long long slot = slot_of(t, a.groups, group, CLUSTER * CTA_TILES, rank * CTA_TILES + tile, 0);
    long long slots = (long long)step * a.groups * CLUSTER * CTA_TILES * 32 * SLOT_TILES;  // from a step to the next
    word* codes_at = section<word>(call, a.codes) + slot * SLOT_ELEMENTS * CODE_WORDS;
    const byte* flags_at = section<byte>(call, a.flags) + ((long long)t * a.groups + group) * ROWS;
    int flags_step = step * a.groups * ROWS;
    for (int i = 0; i < STAGES - 1; ++i)
        prefetch(s, i, part, codes_at + min(i, a.time - 1) * slots * SLOT_ELEMENTS * CODE_WORDS, flags_at + min(i, a.time - 1) * flags_step, i < a.time);
    int ahead = min(STAGES - 1, a.time - 1);
    flags_at += ahead * (long long)flags_step;
    const word* next_codes = codes_at + ahead * slots * SLOT_ELEMENTS * CODE_WORDS;
    byte* bits_at = section<byte>(call, a.bits) + (2 * slot + 1) * SLOT_ELEMENTS;
    byte* states_at = section<byte>(call, a.states) + slot * SLOT_ELEMENTS * H_LIMBS;

    Weights R;
    R.load(s, section<signed char>(call, a.R_codes) + (long long)(first_unit + unit_of(tile, g)) * PADDED +
                  part * PART_K64 * 64 + q * 16);
    for (int i = threadIdx.x; i < UNITS * 8; i += THREADS)
        s.constants[i / 8 % 2][i / 4 % 2][i / 16][i % 4] = section<real>(call, a.constants)[first_unit * 8 + i];
    for (int i = threadIdx.x; i < UNITS * GATES; i += THREADS)
        s.offsets[i / GATES][i % GATES] = section<sum_type>(call, a.R_offset)[i % GATES * units + first_unit + i / GATES];
#if SUM_WIDE
    for (int i = threadIdx.x; i < UNITS * GATES; i += THREADS)
        s.scales[i / GATES][i % GATES] = section<real>(call, a.constants)[(first_unit + i / GATES) * 8 + i % GATES];
#endif
#if SHARED_TABLES
    for (int i = threadIdx.x; i < TABLE_ENTRIES; i += THREADS) s.tables[i] = a.tables[i];
    Tables tables = {s.tables, s.tables + a.z_table, s.tables + a.g_table};
#else
    Tables tables = {a.tables, a.tables + a.z_table, a.tables + a.g_table};
#endif
    bool diverged = call.diverged != nullptr && *call.diverged;
    for (int i = threadIdx.x; i < GATES * units; i += THREADS) diverged |= section<byte>(call, a.diverged)[i] != 0;
#if CLUSTER > 1
    if (threadIdx.x == 0) s.arrivals.init();
#endif
    diverged = __syncthreads_or(diverged);

    // The initial state: every CTA needs all of it, each lane its own elements.
    unsigned start_nan = 0;  // a bit a row
    for (int i = threadIdx.x; i < ROWS * PADDED; i += THREADS) {
        int row = i / PADDED, unit = i % PADDED;
        bool here = call.h0 != nullptr && group * ROWS + row < a.batch && unit < HIDDEN;
        float v = here ? call.h0[(group * ROWS + row) * (long long)HIDDEN + unit] : 0;
        if (isnan(v)) start_nan |= 1u << row;
        float m = quantized(isnan(v) ? 0.0f : v, n.h_steps, n.h_least, n.h_most);
        int code = (int)m + a.h_code;
        s.state[0][unit / 64][0][row][unit % 64] = H_LIMBS == 2 ? upper_limb(code) : code;
        if (H_LIMBS == 2) s.state[0][unit / 64][H_LIMBS - 1][row][unit % 64] = lower_limb(code);
    }
    for (int row = 0; row < ROWS; ++row)
        if (__syncthreads_or(start_nan >> row & 1)) start_nan |= 1u << row;
    if (diverged) start_nan = ~0u;
    real h[TILES_A_WARP][LANE_ELEMENTS];
    bool is_nan[LANE_ROWS];
#pragma unroll
    for (int j = 0; j < LANE_ROWS; ++j) {
        is_nan[j] = start_nan >> row_of(q, part * LANE_ROWS + j) & 1;
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u)
                h[i][2 * j + u] = (real)(read_state(s, row_of(q, part * LANE_ROWS + j), first_unit + unit_of(tile + i, g) + u) - a.h_code);
    }
#if CONSTANTS_IN_REGISTERS
    real constants[2][2][4];
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int i = 0; i < 8; ++i) constants[u][i / 4][i % 4] = s.constants[u][i / 4][unit_of(tile, g) / 2][i % 4];
#endif
    float* out_at[LANE_ROWS];
    bool row_valid[LANE_ROWS];
#pragma unroll
    for (int j = 0; j < LANE_ROWS; ++j) {
        int row = group * ROWS + row_of(q, part * LANE_ROWS + j);
        row_valid[j] = row < a.batch;
        out_at[j] = call.out + t * call.out_time + row * call.out_batch + first_unit + unit_of(tile, g);
    }
    cluster_barrier();

    for (int done = 0, stage = 0, buffer = 0; done < a.time; ++done, buffer ^= 1) {
        wait_copies<STAGES - 2>();
        Products products;
        {
            Sums acc;
            start_sums(s, tile, part, acc);
#pragma unroll
            for (int k = 0; k < HELD_K64; ++k) R.multiply(s, buffer, part, k, acc);
#if HELD_K64 < PART_K64
#pragma unroll 2
            for (int k = HELD_K64; k < PART_K64; ++k) R.multiply(s, buffer, part, k, acc);
#endif
            take_own(s, acc, part, products);
        }
        const byte* flags = s.flags[stage][threadIdx.x];
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i) {
            int unit = unit_of(tile + i, g);
            const word* codes = s.codes[stage][i][threadIdx.x];
#if TRAIN
            word saved[WORDS];
            unsigned short bits[LANE_ROWS] = {};  // of a row's two units
            word states[LANE_ROWS];               // likewise
#endif
#pragma unroll
            for (int j = 0; j < LANE_ROWS; ++j) {
                int row = row_of(q, part * LANE_ROWS + j);
                bool active = flags[row] & ACTIVE;
                if (i == 0) is_nan[j] |= (flags[row] & IS_NAN) != 0;
                int state[2];
                float2 out;
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    int e = 2 * j + u;
                    real z, new_gate;
#if CONSTANTS_IN_REGISTERS
                    const real *scales = constants[u][0], *biases = constants[u][1];
#else
                    const real *scales = s.constants[u][0][unit / 2], *biases = s.constants[u][1][unit / 2];
#endif
                    Gates gates;
                    gates.Rh_inside = 0;
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) {
                        word inside;
                        gates.Rh[gate] =
                            rounded_product(s, n, products[i][gate][j][u], unit + u, gate, scales[gate], inside);
                        gates.Rh_inside |= inside << gate;
                    }
                    gates_of(gates, n, tables, biases, codes + e * CODE_WORDS, z, new_gate);
                    Blend b = blended(n, z, new_gate, h[i][e]);
                    real y = active ? b.h : sum(h[i][e], ROUND);
                    h[i][e] = sum(y, -ROUND);
                    state[u] = low_bits(y) - low_bits(ROUND) + a.h_code;
                    (u ? out.y : out.x) = is_nan[j] ? nan_value() : (float)h[i][e] * n.h_step;
#if TRAIN
                    pack_codes(saved + e * CODE_WORDS, gates.index[0], gates.index[1], gates.index[2],
                               index_of(gates.Rh[2], n.Rh_lo));
                    bits[j] |= (gates.Rh_inside | gates.pre_inside << 3) << 8 * u;
#endif
                }
                write_state(s, buffer ^ 1, row, first_unit + unit, state[0], state[1]);
                if (row_valid[j]) write_pair(out_at[j] + 16 * i, out, first_unit + unit);
#if TRAIN
                states[j] = __byte_perm(state[0], state[1], H_LIMBS == 1 ? 0x0040 : 0x5410);
                if (i == 0 && is_nan[j] && rank == 0 && tile == 0 && g == 0)  // who reads it late knows already
                    flags_at_step(a, group, done)[row] = flags[row] | IS_NAN;
#endif
            }
#if TRAIN
#pragma unroll
            for (int j = 0; j < LANE_ROWS; ++j) {
                store<2 * CODE_WORDS>(codes_at + (i * TILE_ELEMENTS + element_of(part, j)) * CODE_WORDS,
                                      saved + 2 * j * CODE_WORDS);
                *(unsigned short*)(bits_at + i * 2 * TILE_ELEMENTS + bits_of(part, j)) = bits[j];
                store_states(states_at + (i * TILE_ELEMENTS + element_of(part, j)) * H_LIMBS, states[j]);
            }
#endif
        }
        share_state(s, buffer ^ 1, done, rank);
        prefetch(s, stage == 0 ? STAGES - 1 : stage - 1, part, next_codes, flags_at, done + STAGES - 1 < a.time);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        codes_at += slots * SLOT_ELEMENTS * CODE_WORDS;
        bits_at += slots * 2 * SLOT_ELEMENTS;
        states_at += slots * SLOT_ELEMENTS * H_LIMBS;
        if (done + STAGES < a.time) {
            next_codes += slots * SLOT_ELEMENTS * CODE_WORDS;
            flags_at += flags_step;
        }
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) out_at[j] += step * call.out_time;
    }
    cluster_barrier();  // what this CTA sent may still be read here

#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
            int row = group * ROWS + row_of(q, part * LANE_ROWS + j), unit = first_unit + unit_of(tile + i, g);
            float2 out = {(float)h[i][2 * j] * n.h_step, (float)h[i][2 * j + 1] * n.h_step};
            if (is_nan[j]) out = {nan_value(), nan_value()};
            if (row_valid[j]) write_pair(call.last + (long long)row * HIDDEN + unit, out, unit);
        }
}
