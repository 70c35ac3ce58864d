// R^T d(Rh) of a CTA's units: the weights where they stay, the product, and what its parts add up to.
#pragma once
#include "mma.cuh"
#include "walk.cuh"

// Parts that begin and end with a slice leave nothing to decide at run time.
#define ALIGNED (PART_BLOCKS % SLICE_BLOCKS == 0 && K_PARTS * PART_BLOCKS == BLOCKS)

typedef float Totals[GROUP_TILES][ROWS_A_LANE][2];
typedef int Sums[CHAINS][R_LIMBS][GROUP_TILES][COLUMN_TILES][4];

struct Weights {
    int4 held[REGISTER_BLOCKS > 0 ? REGISTER_BLOCKS : 1][GROUP_TILES][R_LIMBS][2];
    const signed char* codes;  // the lane's first unit and column
    int first;                 // of the warp's blocks

    // A block past the last one repeats it, and is never asked for.
    __device__ __forceinline__ const int4* at(int n, int i, int limb, int high) const {
        constexpr long long units = CLUSTER * UNITS;
        int block = min(first + n, BLOCKS - 1), source = block / SLICE_BLOCKS, gate = block / SLICE_K64 % GATES;
        int column = gate * PADDED + (source * SLICE_K64 + block % SLICE_K64) * 64;
        return (const int4*)(codes + (limb * units + i * 16 + high) * GATES * PADDED + column);
    }
    static __device__ __forceinline__ int fragment(int n, int i, int limb) {
        return (((n - REGISTER_BLOCKS) * GROUP_TILES + i) * R_LIMBS + limb) * 2;
    }

    __device__ __forceinline__ void load(Shared& s, const signed char* from, int part) {
        codes = from;
        first = K_PARTS > 1 ? part * PART_BLOCKS : 0;
#pragma unroll
        for (int n = 0; n < HELD_BLOCKS; ++n)
#pragma unroll
            for (int i = 0; i < GROUP_TILES; ++i)
#pragma unroll
                for (int limb = 0; limb < R_LIMBS; ++limb)
#pragma unroll
                    for (int high = 0; high < 2; ++high) {
                        int4 v = *at(n, i, limb, high);
                        if (n < REGISTER_BLOCKS) held[n < REGISTER_BLOCKS ? n : 0][i][limb][high] = v;
                        else s.fragments[fragment(n, i, limb) + high][threadIdx.x] = v;
                    }
    }

    // The slice that block number `n` is of, and its place there.
    __device__ __forceinline__ int source(int n) const {
        return ALIGNED ? first / SLICE_BLOCKS + n / SLICE_BLOCKS : (first + n) / SLICE_BLOCKS;
    }
    __device__ __forceinline__ int place(int n) const { return ALIGNED ? n % SLICE_BLOCKS : (first + n) % SLICE_BLOCKS; }

    __device__ __forceinline__ int4 get(const Shared& s, int n, int i, int limb, int high) const {
        if (n < REGISTER_BLOCKS) return held[n < REGISTER_BLOCKS ? n : 0][i][limb][high];
        if (n < HELD_BLOCKS) return s.fragments[fragment(n, i, limb) + high][threadIdx.x];
        return __ldg(at(n, i, limb, high));
    }

    // Add the product with the warp's block number `n`.
    __device__ __forceinline__ void multiply(const Shared& s, int n, Sums& acc) const {
        int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
        const signed char(*limbs)[64] = (&s.slices[source(n)].limbs[0][0])[place(n)];
        int4 b[COLUMN_TILES];
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) b[c] = *(const int4*)&limbs[c * 8 + g][q * 16];
#pragma unroll
        for (int i = 0; i < GROUP_TILES; ++i)
#pragma unroll
            for (int limb = 0; limb < R_LIMBS; ++limb) {
                int4 low = get(s, n, i, limb, 0), high = get(s, n, i, limb, 1);
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c) {
                    if (limb) mma64<true, false>(acc[n % CHAINS][limb][i][c], low, high, b[c]);
                    else mma64<false, false>(acc[n % CHAINS][limb][i][c], low, high, b[c]);
                }
            }
    }
};

// Add what the units of one CTA contribute, and start anew.
__device__ __forceinline__ void add_source(const Slice& slice, Sums& acc, Totals& totals) {
    int q = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < GROUP_TILES; ++i)
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

// The warp's blocks of the product, source by source.
__device__ __forceinline__ void product(const Shared& s, const Weights& R, Totals& totals) {
    Sums acc = {};
    auto add_block = [&](int n) {
        if (K_PARTS * PART_BLOCKS > BLOCKS && R.first + n >= BLOCKS) return;
        R.multiply(s, n, acc);
        bool last = n + 1 == PART_BLOCKS || (!ALIGNED && R.first + n + 1 == BLOCKS);
        if (last || R.place(n) == SLICE_BLOCKS - 1) add_source(s.slices[R.source(n)], acc, totals);
    };
#pragma unroll
    for (int n = 0; n < HELD_BLOCKS; ++n) add_block(n);
#if HELD_BLOCKS < PART_BLOCKS
#pragma unroll 2
    for (int n = HELD_BLOCKS; n < PART_BLOCKS; ++n) add_block(n);
#endif
}

// Add the lane's own elements of R^T d(Rh) to `dh`: with parts, what all of them found.
__device__ __forceinline__ void add_product(Shared& s, const Weights& R, const Lane& lane,
                                            float (&dh)[TILES_A_WARP][LANE_ROWS][2]) {
    Totals totals = {};
    product(s, R, totals);
#if K_PARTS > 1
    int warp = threadIdx.x / 32, in_warp = threadIdx.x % 32, tile = warp % TILE_GROUPS * GROUP_TILES;
#pragma unroll
    for (int i = 0; i < GROUP_TILES; ++i)
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j)
            s.partial[warp / TILE_GROUPS][tile + i][j][in_warp] = make_float2(totals[i][j][0], totals[i][j][1]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
            for (int part = 0; part < K_PARTS; ++part) {
                float2 v = s.partial[part][lane.tile + i][lane.part * LANE_ROWS + j][in_warp];
                dh[i][j][0] += v.x;
                dh[i][j][1] += v.y;
            }
#else
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j) {
            dh[i][j][0] += totals[i][j][0];
            dh[i][j][1] += totals[i][j][1];
        }
#endif
}
