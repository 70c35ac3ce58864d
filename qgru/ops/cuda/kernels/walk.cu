// Backward through time: the reverse walk of one chunk, with the transposed R on the chip.
//
// dh_{t-1} = dh * z + R^T d(Rh): R is integers, so only d(Rh) is rounded. It goes to fixed point with LIMBS 8-bit limbs on
// one scale a row and step (of each CTA's units), which makes the product exact in int8. Everything else was computed
// before, or is left for after; see factors.cu and pieces.cu.

typedef float Totals[TILES_A_WARP][ROWS_A_LANE][2];
typedef int Sums[CHAINS][R_LIMBS][TILES_A_WARP][COLUMN_TILES][4];

struct Weights {
    int4 held[TILES_A_WARP][GATES][R_LIMBS][REGISTER_K64 > 0 ? REGISTER_K64 : 1][2];
    const signed char* codes;  // the lane's first unit and column

    __device__ __forceinline__ const int4* at(int i, int gate, int limb, int k, int high) const {
        constexpr long long units = CLUSTER * UNITS;
        return (const int4*)(codes + ((limb * units + i * 16 + high) * GATES + gate) * PADDED + k * 64);
    }
    static __device__ __forceinline__ int fragment(int k, int i, int gate, int limb) {
        return ((((k - REGISTER_K64) * R_LIMBS + limb) * GATES + gate) * TILES_A_WARP + i) * 2;
    }
    __device__ __forceinline__ void load(Shared& s, const signed char* from) {
        codes = from;
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
                for (int limb = 0; limb < R_LIMBS; ++limb)
#pragma unroll
                    for (int k = 0; k < HELD_K64; ++k)
#pragma unroll
                        for (int high = 0; high < 2; ++high) {
                            int4 v = *at(i, gate, limb, k, high);
                            if (k < REGISTER_K64) held[i][gate][limb][k < REGISTER_K64 ? k : 0][high] = v;
                            else s.fragments[fragment(k, i, gate, limb) + high][threadIdx.x] = v;
                        }
    }

    // Add the product with the gates of 64 units, those of block `k` of the warp's part.
    __device__ __forceinline__ void multiply(const Shared& s, int part, int k, Sums& acc) const {
        int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, block = part * PART_K64 + k;
        const Slice& slice = s.slices[block / SLICE_K64];
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) {
            int4 low[TILES_A_WARP][R_LIMBS], high[TILES_A_WARP][R_LIMBS];
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                for (int limb = 0; limb < R_LIMBS; ++limb)
                    if (k < REGISTER_K64) {
                        low[i][limb] = held[i][gate][limb][k < REGISTER_K64 ? k : 0][0];
                        high[i][limb] = held[i][gate][limb][k < REGISTER_K64 ? k : 0][1];
                    } else if (k < HELD_K64) {
                        const int4(*from)[THREADS] = s.fragments + fragment(k, i, gate, limb);
                        low[i][limb] = from[0][threadIdx.x];
                        high[i][limb] = from[1][threadIdx.x];
                    } else {
                        low[i][limb] = __ldg(at(i, gate, limb, k, 0));
                        high[i][limb] = __ldg(at(i, gate, limb, k, 1));
                    }
#pragma unroll
            for (int c = 0; c < COLUMN_TILES; ++c) {
                int4 b = *(const int4*)&slice.limbs[gate][block % SLICE_K64][c * 8 + g][q * 16];
#pragma unroll
                for (int i = 0; i < TILES_A_WARP; ++i) {
                    mma64<false, false>(acc[gate % CHAINS][0][i][c], low[i][0], high[i][0], b);
                    if (R_LIMBS == 2)
                        mma64<true, false>(acc[gate % CHAINS][R_LIMBS - 1][i][c], low[i][R_LIMBS - 1], high[i][R_LIMBS - 1], b);
                }
            }
        }
    }
};

// Add what the units of one CTA contribute, and start anew.
__device__ __forceinline__ void add_source(const Slice& slice, int q, Sums& acc, Totals& totals) {
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                float total = 0;
#pragma unroll
                for (int limb = 0; limb < R_LIMBS; ++limb) {
                    int limbs[3] = {};
#pragma unroll
                    for (int chain = 0; chain < CHAINS; ++chain) {
                        limbs[0] += acc[chain][limb][i][j][2 * u];
                        limbs[1] += acc[chain][limb][i][j][2 * u + 1];
                        if (LIMBS == 3) limbs[2] += acc[chain][limb][i][COLUMN_TILES - ROWS_A_LANE + j][2 * u];
                    }
                    float v = fmaf((float)limbs[0], 256.0f, (float)limbs[1]);
                    if (LIMBS == 3) v = fmaf(v, 256.0f, (float)limbs[2]);
                    total = fmaf(total, 256.0f, v);
                }
                totals[i][j][u] = fmaf(total, slice.steps[4 * j + q], totals[i][j][u]);
            }
#pragma unroll
    for (int i = 0; i < sizeof(Sums) / sizeof(int); ++i) ((int*)acc)[i] = 0;
}

__device__ __forceinline__ void product(const Shared& s, const Weights& R, int part, int q, Totals& totals) {
    Sums acc = {};
#pragma unroll
    for (int k = 0; k < HELD_K64; ++k) {
        R.multiply(s, part, k, acc);
        int block = part * PART_K64 + k;
        if ((k + 1) % SLICE_K64 == 0) add_source(s.slices[block / SLICE_K64], q, acc, totals);
    }
#if HELD_K64 < PART_K64
#pragma unroll 2
    for (int k = HELD_K64; k < PART_K64; ++k) {
        R.multiply(s, part, k, acc);
        int block = part * PART_K64 + k;
        if ((k + 1) % SLICE_K64 == 0) add_source(s.slices[block / SLICE_K64], q, acc, totals);
    }
#endif
    if (PART_K64 % SLICE_K64 != 0) add_source(s.slices[0], q, acc, totals);  // a part of the only slice
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) walk(const __grid_constant__ WalkArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    const Chunk& c = a.chunk;
    int rank = cluster_rank(), group = blockIdx.x / CLUSTER, steps = c.end - c.start;
    Lane lane(a, group, rank);
    for (int i = 0; i < STAGES - 1; ++i) lane.prefetch(a, s, i, i < steps);
    Weights R;
    R.load(s, (const signed char*)c.workspace + a.Rt_codes + (long long)lane.unit(0) * GATES * PADDED + lane.part * PART_K64 * 64 + lane.q * 16);
    for (int i = threadIdx.x; i < sizeof(s.slices) / 16; i += THREADS) ((int4*)s.slices)[i] = make_int4(0, 0, 0, 0);
    float dh[TILES_A_WARP][LANE_ROWS][2];
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                long long at = (long long)(group * ROWS + lane.row(j)) * HIDDEN + lane.unit(i) + u;
                dh[i][j][u] = lane.rows[j] && lane.units[i][u] && c.dh_in != nullptr ? c.dh_in[at] : 0.0f;
            }
#if CLUSTER > 1
    if (threadIdx.x == 0) s.arrivals.init();
    cluster_barrier();
    cluster_arrive();
#endif

    for (int done = 0, stage = 0; done < steps; ++done) {
        wait_copies<STAGES - 2>();
        float scaled[TILES_A_WARP][LANE_ROWS][GATES][2];
        word largest[LANE_ROWS];
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
            largest[j] = 0;
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i) {
                float2 d_out = s.d_out[stage][i][j][threadIdx.x];
                float d[2];
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    float4 k = s.k[stage][i][j][u][threadIdx.x];
                    bool lost = __float_as_int(k.x) < 0;
                    d[u] = lost ? 0.0f : dh[i][j][u] + (u ? d_out.y : d_out.x);
                    dh[i][j][u] = d[u] * k.x;
                    scaled[i][j][0][u] = d[u] * k.y;
                    scaled[i][j][1][u] = d[u] * k.z;
                    scaled[i][j][2][u] = d[u] * k.w;
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate)  // NaN is largest
                        largest[j] = max(largest[j], __float_as_int(scaled[i][j][gate][u]) & 0x7FFFFFFF);
                }
                if (lane.rows[j]) store_pair(lane.d[j] + 16 * i, d[0], d[1], lane.units[i][0], lane.units[i][1], HIDDEN % 2 == 0);
            }
            for (int i = 4; i < 32; i <<= 1) largest[j] = max(largest[j], __shfl_xor_sync(~0u, largest[j], i));
            if (lane.g == 0) s.largest[lane.row(j)][lane.tile / TILES_A_WARP] = largest[j];
            lane.d[j] += lane.k_step;
        }
        lane.prefetch(a, s, stage == 0 ? STAGES - 1 : stage - 1, done + STAGES - 1 < steps);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        __syncthreads();
#if CLUSTER > 1
        cluster_wait();  // the others have read the last step's slices
#endif
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
            word most = 0;
#pragma unroll
            for (int w = 0; w < TILE_WARPS; ++w) most = max(most, s.largest[lane.row(j)][w]);
            float size = fmaxf(__int_as_float(most), 1e-30f), scale = __fdividef(LARGEST, size);
            if (most >= 0x7F800000) size = nan_value(), scale = 0;
            if (lane.tile == 0 && lane.g == 0) s.slices[rank].steps[lane.row(j)] = size * (a.dh_value / LARGEST);
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate)
                    write_limbs(s.slices[rank], lane, i, j, gate, scaled[i][j][gate][0], scaled[i][j][gate][1], scale);
        }
#if CLUSTER > 1
        publish();
        __syncthreads();
        s.arrivals.send<sizeof(Slice)>(0, &s.slices[rank], threadIdx.x % 32 * WARPS + threadIdx.x / 32, rank);
        s.arrivals.wait(0, done & 1);
#else
        __syncthreads();
#endif
        Totals totals = {};
        product(s, R, lane.part, lane.q, totals);
#if CLUSTER > 1
        cluster_arrive();
#endif
#if K_SPLIT > 1
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
                for (int u = 0; u < 2; ++u)
                    s.partial[i][j][u][threadIdx.x] = lane.part ? totals[i][j][u] : totals[i][LANE_ROWS + j][u];
        asm volatile("bar.sync %0, 64;" ::"r"(1 + threadIdx.x / 32 % TILE_WARPS) : "memory");
#endif
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
                for (int u = 0; u < 2; ++u) {
#if K_SPLIT > 1
                    float own = lane.part ? totals[i][LANE_ROWS + j][u] : totals[i][j][u];
                    dh[i][j][u] += own + s.partial[i][j][u][threadIdx.x ^ THREADS / 2];
#else
                    dh[i][j][u] += totals[i][j][u];
#endif
                }
    }
#if CLUSTER > 1
    cluster_wait();
#endif

#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                if (!lane.rows[j] || !lane.units[i][u]) continue;
                long long at = (long long)(group * ROWS + lane.row(j)) * HIDDEN + lane.unit(i) + u;
                float v = dh[i][j][u];
                if (c.start == 0 && c.h0 != nullptr) {
                    float m = rintf(c.h0[at] * a.h_steps);
                    if (!(m >= a.h_least && m <= a.h_most)) v = 0;  // clamped, or NaN
                }
                c.dh[at] = v;
            }
}
