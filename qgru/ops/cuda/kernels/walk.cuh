// What the reverse walk keeps in shared memory, reads ahead, and exchanges.
#pragma once
#include "chunk.cuh"
#include "cluster.cuh"
#include "copies.cuh"

#define K64 (PADDED / 64)          // blocks of 64 hidden units
#define SLICE_K64 (K64 / CLUSTER)  // of a CTA
#define BLOCKS (GATES * K64)       // of the product's columns, in order of CTA, gate and unit
#define SLICE_BLOCKS (GATES * SLICE_K64)
#define TILE_WARPS (CTA_TILES / TILES_A_WARP)
#define LANE_ROWS (ROWS_A_LANE * TILE_WARPS / WARPS)  // warps that share a tile take some of its rows each
#define ROWS_A_LANE (ROWS / 4)     // of a column tile: columns 2q and 2q + 1 are two limbs of a lane's row
#define COLUMN_TILES (ROWS_A_LANE * (LIMBS == 3 ? 2 : 1))
// A product's warps are TILE_GROUPS by K_PARTS: many tiles a warp read the other operand less often.
#define K_PARTS (WARPS / TILE_GROUPS)
#define GROUP_TILES (CTA_TILES / TILE_GROUPS)
#define PART_BLOCKS ((BLOCKS + K_PARTS - 1) / K_PARTS)
#define HELD_BLOCKS (REGISTER_BLOCKS + SHARED_BLOCKS)
#define CHAINS (GROUP_TILES * COLUMN_TILES * R_LIMBS <= 2 ? 3 : 1)  // independent sums, for the latency of the product
#define THREADS (32 * WARPS)
#define UNITS (16 * CTA_TILES)
#define LARGEST (LIMBS == 3 ? 4161536.0f : 32512.0f)  // 127 in the first limb, and below the limit of ROUND

struct WalkArgs {
    Chunk chunk;
    long long Rt_codes;  // section (limbs, units, 3, PADDED)
    int batch;
    float dh_value;      // from (R h) in units of the scales to real numbers
    float h_steps, h_least, h_most;
};

// What one CTA gives the others: limbs of its units' gates, and the value of their step, which a row shares.
struct __align__(16) Slice {
    signed char limbs[GATES][SLICE_K64][8 * COLUMN_TILES][64];  // a fragment's lanes read 512 bytes in a row
    float steps[ROWS];
};

struct __align__(128) Shared {
    Slice slices[CLUSTER];
    int4 fragments[SHARED_BLOCKS * GROUP_TILES * R_LIMBS * 2 + 1][THREADS];
    float4 k[STAGES][TILES_A_WARP][LANE_ROWS][2][THREADS];
    float2 d_out[STAGES][TILES_A_WARP][LANE_ROWS][THREADS];
    word largest[ROWS][TILE_WARPS];
#if K_PARTS > 1
    float2 partial[K_PARTS][CTA_TILES][ROWS_A_LANE][32];
#endif
#if CLUSTER > 1
    Arrivals arrivals;
#endif
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "what Python reserves, geometry.py");

// Two neighbours' floats in the background.
__device__ __forceinline__ void copy_pair(float2* to, const float* from, bool first, bool second, bool aligned) {
    if (aligned) {
        copy_async<8>(to, from, first);
    } else {
        copy_async<4>(&to->x, from, first);
        copy_async<4>(&to->y, from + 1, second);
    }
}

// A lane's elements: where they are at a step of the walk, and which exist.
struct Lane {
    int g, q, part, tile, first_unit;  // tile: the warp's first, of this CTA
    bool rows[LANE_ROWS], units[TILES_A_WARP][2];
    bool d_aligned;
    const float4* k[LANE_ROWS];
    const float* d_out[LANE_ROWS];
    float* d[LANE_ROWS];
    long long k_step, d_step;

    __device__ __forceinline__ int row(int j) const { return 4 * (part * LANE_ROWS + j) + q; }  // of the group
    __device__ __forceinline__ int unit(int i) const { return first_unit + unit_of(tile + i, g); }

    __device__ __forceinline__ Lane(const WalkArgs& a, int group, int rank) {
        const Chunk& c = a.chunk;
        int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        g = lane >> 2, q = lane & 3, part = warp / TILE_WARPS, tile = warp % TILE_WARPS * TILES_A_WARP;
        first_unit = rank * UNITS;
        int t = c.reverse ? 0 : c.end - c.start - 1, step = c.reverse ? 1 : -1;  // of the chunk
        k_step = (long long)step * a.batch * HIDDEN;
        d_step = step * c.d_time;
        d_aligned = HIDDEN % 2 == 0 && (c.d_time | c.d_batch) % 2 == 0 && ((address)c.d_out & 7) == 0;
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
            rows[j] = group * ROWS + row(j) < a.batch;
            long long b = rows[j] ? group * ROWS + row(j) : 0, first = unit(0) < HIDDEN ? unit(0) : 0;
            long long at = ((long long)t * a.batch + b) * HIDDEN + first;
            k[j] = c.k + at;
            d[j] = c.d + at;
            // Without gradients it points at something that exists, though nothing is read of it.
            d_out[j] = c.d_out ? c.d_out + (c.first_time + t) * c.d_time + b * c.d_batch + first : c.d;
        }
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int u = 0; u < 2; ++u) units[i][u] = unit(i) + u < HIDDEN;
    }

    // Copy what the step in `ahead` steps from the one being copied needs.
    __device__ __forceinline__ void prefetch(const WalkArgs& a, Shared& s, int stage, bool valid) {
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
#pragma unroll
            for (int i = 0; i < TILES_A_WARP; ++i) {
                bool here = valid && rows[j], wanted = here && a.chunk.d_out != nullptr;
#pragma unroll
                for (int u = 0; u < 2; ++u)
                    copy_async<16>(&s.k[stage][i][j][u][threadIdx.x], k[j] + 16 * i + u, here && units[i][u]);
                copy_pair(&s.d_out[stage][i][j][threadIdx.x], d_out[j] + 16 * i, wanted && units[i][0],
                          wanted && units[i][1], d_aligned);
            }
            k[j] += valid ? k_step : 0;
            d_out[j] += valid && a.chunk.d_out != nullptr ? d_step : 0;
        }
        commit_copies();
    }
};

// A pair of neighbours' limbs into the columns of a lane's row, number `j` of its part.
__device__ __forceinline__ void write_limbs(Slice& s, const Lane& lane, int i, int j, int gate, float a, float b, float scale) {
    int unit = unit_of(lane.tile + i, lane.g), row = lane.part * LANE_ROWS + j;
    signed char(*block)[64] = s.limbs[gate][unit / 64];
    int m = __float_as_int(__fmaf_rn(a, scale, 12582912.0f)) - 0x4B400000;
    int n = __float_as_int(__fmaf_rn(b, scale, 12582912.0f)) - 0x4B400000;
#pragma unroll
    for (int limb = LIMBS - 1; limb >= 0; --limb) {
        int column = limb == 2 ? (ROWS_A_LANE + row) * 8 + 2 * lane.q : row * 8 + 2 * lane.q + limb;
        *(unsigned short*)&block[column][unit % 64] = __byte_perm(m, n, 0x0040);
        m = m + 128 >> 8;
        n = n + 128 >> 8;
    }
}
