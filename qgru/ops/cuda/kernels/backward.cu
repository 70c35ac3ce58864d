// Backward through time: the forward's walk in reverse, with the transposed R on the chip.
//
// dh_{t-1} = dh * z + R^T d(Rh): R is integers, so only d(Rh) is rounded. It goes to fixed point with LIMBS 8-bit limbs on
// one scale a row and step, which makes the product exact in int8. What the clamps let through is read from the saved
// bits, or found again from the saved integers by the forward's own arithmetic.

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(const __grid_constant__ BackwardArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    int rank = cluster_rank(), group = blockIdx.x / CLUSTER, first_unit = rank * UNITS, tile = warp * TILES_A_WARP;

    Inside inside;
#pragma unroll
    for (int j = 0; j < ROWS_A_LANE; ++j) inside.row[j] = group * ROWS + row_of(q, j) < a.batch;
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i) {
        int unit = first_unit + unit_of(tile + i, g);
        inside.unit[i][0] = unit < HIDDEN;
        inside.unit[i][1] = unit + 1 < HIDDEN;
        inside.pair[i] = unit < 2 * PAIRS;
    }
    bool d_aligned = HIDDEN % 2 == 0 && (a.d_time | a.d_batch) % 2 == 0 && ((address)a.d_out & 7) == 0;
    Cursor at(a, a.end - 1, group, first_unit, tile);
    for (int i = 0; i < STAGES - 1; ++i) prefetch(a, s, at, i, a.end - 1 - i, d_aligned, inside, group, first_unit, tile);
    int first_step = a.reverse ? 0 : a.end - a.start - 1;
    long long row_at = (long long)first_step * a.batch + group * ROWS;
    int row_step = a.reverse ? a.batch : -a.batch;

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
                    int4 v = *(const int4*)(a.Rt_codes + ((long long)unit * GATES + gate) * PADDED + k * 64 + q * 16);
                    if (k < REGISTER_K64) R[i][gate][k < REGISTER_K64 ? k : 0][high] = v;
                    else s.fragments[(((k - REGISTER_K64) * GATES + gate) * TILES_A_WARP + i) * 2 + high][threadIdx.x] = v;
                }
    for (int i = threadIdx.x; i < UNITS * 8; i += THREADS)
        s.constants[i / 8 % 2][i / 4 % 2][i / 16][i % 4] = a.constants[first_unit * 8 + i];
    for (int i = threadIdx.x; i < 8 * COLUMN_TILES * K_STRIDE / 16; i += THREADS) ((int4*)s.limbs)[i] = make_int4(0, 0, 0, 0);
#if SHARED_TABLES
    for (int i = threadIdx.x; i < TABLE_ENTRIES; i += THREADS) {
        s.tables[i] = a.tables[i];
        s.slopes[i] = a.slopes[i];
    }
    const float *from_values = s.tables, *from_slopes = s.slopes;
#else
    const float *from_values = a.tables, *from_slopes = a.slopes;
#endif
    Tables values = {from_values, from_values + a.z_table, from_values + a.g_table};
    Tables slopes = {from_slopes, from_slopes + a.z_table, from_slopes + a.g_table};

    float dh[TILES_A_WARP][ELEMENTS], d_bias[TILES_A_WARP][2][4] = {};  // of the lane's rows together
    bool lost[ROWS_A_LANE];  // NaN came out of this step: no gradient comes in
    int last = a.reverse ? a.time - a.end : a.end - 1;
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) {
            int row = group * ROWS + row_of(q, e / 2), unit = first_unit + unit_of(tile + i, g) + e % 2;
            bool valid = row < a.batch && unit < HIDDEN;
            dh[i][e] = valid && !a.dh_is_zero ? a.dh[(long long)row * HIDDEN + unit] : 0.0f;
            bool nan = valid && isnan(a.out[last * a.out_time + row * a.out_batch + unit]);
            if (e % 2 == 0) lost[e / 2] = nan;
            if (nan) dh[i][e] = 0;
        }
    cluster_barrier();

    Factors factors[TILES_A_WARP][ELEMENTS];
    wait_copies<STAGES - 2>();
    load_factors(a, s, values, slopes, 0, tile, factors);
    for (int walk = a.end - 1, stage = 0; walk >= a.start; --walk) {
        float pre[TILES_A_WARP][ELEMENTS][GATES], d_c[TILES_A_WARP][ELEMENTS];  // gradients, as of the biases
        float scaled[TILES_A_WARP][ELEMENTS][GATES];                             // d(Rh) times the scale of R's row
        word largest[ROWS_A_LANE];
        int next = stage == 0 ? STAGES - 1 : stage - 1;  // where the copies for the steps to come go

        auto write_gradients = [&]() {
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                for (int j = 0; j < ROWS_A_LANE; ++j) {
#pragma unroll
                    for (int u = 0; u < 2; ++u) {
                        for (int gate = 0; gate < GATES; ++gate) d_bias[i][u][gate] += pre[i][2 * j + u][gate];
                        d_bias[i][u][3] += d_c[i][2 * j + u];
                    }
                    bool here = inside.row[j] && inside.pair[i];
                    long long row = row_at + row_of(q, j);
                    int pair = (first_unit + unit_of(tile + i, g)) / 2;
                    const Factors &f = factors[i][2 * j], &f1 = factors[i][2 * j + 1];
                    float *a0 = pre[i][2 * j], *a1 = pre[i][2 * j + 1];
                    uint2 dWx[GATES], dRh[GATES];
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) {
                        dWx[gate] = pieces(where(f.bits >> gate & 1, a0[gate]), where(f1.bits >> gate & 1, a1[gate]));
                        float b0 = gate == 2 ? d_c[i][2 * j] : a0[gate], b1 = gate == 2 ? d_c[i][2 * j + 1] : a1[gate];
                        dRh[gate] = pieces(where(f.bits >> 3 + gate & 1, b0), where(f1.bits >> 3 + gate & 1, b1));
                    }
                    if (here) {
                        store_gates(a.dWx + row * GATES * PAIRS, pair, dWx);
                        store_gates(a.dRh + row * GATES * PAIRS, pair, dRh);
                    }
                    if (here) a.h_operand[row * PAIRS + pair] = bfloat_pair(f.h, f1.h);
                }
            row_at += row_step;
        };
        auto next_factors = [&]() {
            stage = stage == STAGES - 1 ? 0 : stage + 1;
            wait_copies<STAGES - 3>();
            load_factors(a, s, values, slopes, stage, tile, factors);
        };
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            largest[j] = 0;
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i) {
                int pair = unit_of(tile + i, g) / 2;
                bool active = s.flags[stage][threadIdx.x][row_of(q, j)] & ACTIVE;
                float2 d_out = s.d_out[stage][i][j][threadIdx.x];
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    int e = 2 * j + u;
                    const Factors& f = factors[i][e];
                    float d = dh[i][e] + (lost[j] ? 0.0f : u ? d_out.y : d_out.x), into = active ? d : 0.0f;
                    dh[i][e] = active ? d * f.direct : d;
                    float* gates = pre[i][e];
                    gates[2] = into * f.g;
                    gates[1] = into * f.z;
                    gates[0] = gates[2] * f.r;
                    d_c[i][e] = gates[2] * f.c;
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate) {
                        float v = where(f.bits >> 3 + gate & 1, gate == 2 ? d_c[i][e] : gates[gate]);
                        scaled[i][e][gate] = v * (float)s.constants[u][0][pair][gate];
                        largest[j] = max(largest[j], __float_as_int(scaled[i][e][gate]) & 0x7FFFFFFF);  // NaN is largest
                    }
                }
            }
            for (int i = 4; i < 32; i <<= 1) largest[j] = max(largest[j], __shfl_xor_sync(~0u, largest[j], i));
            if (g == 0) s.largest[row_of(q, j)][warp] = largest[j];
            lost[j] = walk > 0 && isnan(s.before[stage][0][j][threadIdx.x].x);
        }
        if (!SHADOWED) write_gradients();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            word most = 0;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) most = max(most, s.largest[row_of(q, j)][w]);
            float size = fmaxf(__int_as_float(most), 1e-30f), scale = __fdividef(LARGEST, size);
            if (most >= 0x7F800000) size = nan_value(), scale = 0;
            if (warp == 0 && g == 0) s.steps[rank][row_of(q, j)] = size * (a.dh_value / LARGEST);
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate)
                    write_limbs(s, j, q, gate * PADDED + first_unit + unit_of(tile + i, g), scaled[i][2 * j][gate],
                                scaled[i][2 * j + 1][gate], scale);
        }
        share_limbs(s, first_unit);

#pragma unroll
        for (int source = 0; source < SOURCES; ++source) {
            int acc[CHAINS][TILES_A_WARP][COLUMN_TILES][4] = {};
#pragma unroll
            for (int k = source * SOURCE_K64; k < (source + 1) * SOURCE_K64; ++k)
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
                    for (int c = 0; c < COLUMN_TILES; ++c) {
                        int4 b = *(const int4*)&s.limbs[c * 8 + g][gate * PADDED + k * 64 + q * 16];
#pragma unroll
                        for (int i = 0; i < TILES_A_WARP; ++i) {
                            if (k < REGISTER_K64) {
                                int4* pair = R[i][gate][k < REGISTER_K64 ? k : 0];
                                mma64(acc[gate % CHAINS][i][c], pair[0], pair[1], b);
                            } else {
                                int at = (((k - REGISTER_K64) * GATES + gate) * TILES_A_WARP + i) * 2;
                                mma64(acc[gate % CHAINS][i][c], s.fragments[at][threadIdx.x], s.fragments[at + 1][threadIdx.x], b);
                            }
                        }
                    }
            if (SHADOWED && source == SOURCES - 1) {
                write_gradients();
                next_factors();
            }
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                for (int e = 0; e < ELEMENTS; ++e) {
                    int j = e / 2, u = e % 2;
                    int limbs[3] = {};
#pragma unroll
                    for (int chain = 0; chain < CHAINS; ++chain) {
                        limbs[0] += acc[chain][i][j][2 * u];
                        limbs[1] += acc[chain][i][j][2 * u + 1];
                        if (LIMBS == 3) limbs[2] += acc[chain][i][COLUMN_TILES - ROWS_A_LANE + j][2 * u];
                    }
                    float v = fmaf((float)limbs[0], 256.0f, (float)limbs[1]);
                    if (LIMBS == 3) v = fmaf(v, 256.0f, (float)limbs[2]);
                    dh[i][e] = fmaf(v, s.steps[source][row_of(q, j)], dh[i][e]);
                }
        }
#if CLUSTER > 1
        cluster_barrier();  // before a faster CTA writes the next step's limbs here
#endif
        if (!SHADOWED) next_factors();
        prefetch(a, s, at, next, walk - (STAGES - 1), d_aligned, inside, group, first_unit, tile);
    }

#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int e = 0; e < ELEMENTS; ++e) {
            int row = group * ROWS + row_of(q, e / 2), unit = first_unit + unit_of(tile + i, g) + e % 2;
            if (row >= a.batch || unit >= HIDDEN) continue;
            long long at = (long long)row * HIDDEN + unit;
            if (a.start == 0) {
                float m = rintf(a.h0[at] * a.n.h_steps);
                if (!(m >= a.n.h_least && m <= a.n.h_most)) dh[i][e] = 0;  // clamped, or NaN
            }
            a.dh[at] = dh[i][e];
        }
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int u = 0; u < 2; ++u)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                // The quad's lanes hold the group's rows: add them in a fixed order.
                float v = d_bias[i][u][part];
                v += __shfl_xor_sync(~0u, v, 1);
                v += __shfl_xor_sync(~0u, v, 2);
                if (q != 0 || !inside.unit[i][u]) continue;
                float* to = a.d_bias + ((long long)group * 4 + part) * HIDDEN + first_unit + unit_of(tile + i, g) + u;
                *to = a.end == a.time ? v : *to + v;
            }
}
