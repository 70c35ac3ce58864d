// Backward through time: the reverse walk of one chunk, with the transposed R on the chip.
//
// dh_{t-1} = dh * z + R^T d(Rh): R is integers, so only d(Rh) is rounded. It goes to fixed point with LIMBS 8-bit limbs on
// one scale a row and step (of each CTA's units), which makes the product exact in int8. Everything else was computed
// before, or is left for after; see factors.cu and operands.cu.

#include "reverse.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) walk(const __grid_constant__ WalkArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    const Chunk& c = a.chunk;
    int rank = cluster_rank(), group = blockIdx.x / CLUSTER, steps = c.end - c.start;
    Lane lane(a, group, rank);
    for (int i = 0; i < STAGES - 1; ++i) lane.prefetch(a, s, i, i < steps);
    Weights R;
    int warp = threadIdx.x >> 5, product_unit = rank * UNITS + unit_of(warp % TILE_GROUPS * GROUP_TILES, lane.g);
    R.load(s, (const signed char*)c.workspace + a.Rt_codes + (long long)product_unit * GATES * PADDED + lane.q * 16,
           warp / TILE_GROUPS);
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
                    bool is_nan = k.x < 0;
                    d[u] = is_nan ? 0.0f : dh[i][j][u] + (u ? d_out.y : d_out.x);
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
        add_product(s, R, lane, dh);
#if CLUSTER > 1
        cluster_arrive();
#endif
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
