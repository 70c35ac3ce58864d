// R h of a warp's tiles: the weights where they stay, the product, and its rounding to matmul.Rh.
#pragma once
#include "loop.cuh"
#include "mma.cuh"

#define HELD_K64 (REGISTER_K64 + SHARED_K64)  // the rest is read from L2 at every step

typedef int Sums[TILES_A_WARP][GATES][COLUMN_TILES][LEVELS][4];
typedef int Products[TILES_A_WARP][GATES][LANE_ROWS][2][LEVELS];  // of the lane's elements

struct Weights {
    int4 held[TILES_A_WARP][GATES][R_LIMBS][REGISTER_K64 > 0 ? REGISTER_K64 : 1][2];
    const signed char* codes;  // the lane's first row and column

    __device__ __forceinline__ const int4* at(int i, int gate, int limb, int k, int high) const {
        constexpr long long units = CLUSTER * UNITS;
        return (const int4*)(codes + ((limb * GATES + gate) * units + i * 16 + high) * PADDED + k * 64);
    }
    // Where shared memory holds the weights of a block of 64 columns past those in registers.
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

    __device__ __forceinline__ void load_block(const Shared& s, int k, int i, int limb, int4 (&low)[GATES],
                                               int4 (&high)[GATES]) const {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
            if (k < REGISTER_K64) {
                low[gate] = held[i][gate][limb][k < REGISTER_K64 ? k : 0][0];
                high[gate] = held[i][gate][limb][k < REGISTER_K64 ? k : 0][1];
            } else if (k < HELD_K64) {
                const int4(*from)[THREADS] = s.fragments + fragment(k, i, gate, limb);
                low[gate] = from[0][threadIdx.x];
                high[gate] = from[1][threadIdx.x];
            } else {
                low[gate] = __ldg(at(i, gate, limb, k, 0));
                high[gate] = __ldg(at(i, gate, limb, k, 1));
            }
    }

    // Add the product with 64 columns of the state, those of block `k` of the warp's part.
    __device__ __forceinline__ void multiply(const Shared& s, int buffer, int part, int k, Sums& acc) const {
        int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
        int4 b[COLUMN_TILES][H_LIMBS];
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
            for (int limb = 0; limb < H_LIMBS; ++limb) {
                int row = ROWS == 4 ? g >> 1 : c * 8 + g;  // four rows: each stands in two columns
                b[c][limb] = *(const int4*)&s.state[buffer][part * PART_K64 + k][limb][row][q * 16];
            }
#pragma unroll
        for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
            for (int limb = 0; limb < R_LIMBS; ++limb) {
                int4 low[GATES], high[GATES];
                load_block(s, k, i, limb, low, high);
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate)
                        multiply_limbs<H_LIMBS>(acc[i][gate][c], limb, low[gate], high[gate], b[c]);
            }
    }
};

// Sums start where their conversion to floating point wants them: with the state's offset taken back, or unsigned.
__device__ __forceinline__ void start_sums(const Shared& s, int tile, int part, Sums& acc) {
    int g = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                int start = SUM_WIDE ? (int)0x80000000 : BIASED_SUMS ? 0x4B400000 : 0;
#if STATE_OFFSET && !SUM_WIDE
                start += s.offsets[unit_of(tile + i, g) + u][gate];
#endif
                if (part) start = 0;
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
                    for (int level = 0; level < LEVELS; ++level)
                        acc[i][gate][c][level][2 * u] = acc[i][gate][c][level][2 * u + 1] = start;
            }
}

// The sum of a row `j` of part `p`, and of unit `u`.
__device__ __forceinline__ int sum_of(const int (&acc)[COLUMN_TILES][LEVELS][4], int level, int p, int j, int u) {
    int row = p * LANE_ROWS + j;
    return acc[ROWS > 8 ? row >> 1 : 0][level][ROWS == 4 ? 2 * u : 2 * u + (row & 1)];
}

// Every lane's own elements; the parts of a product exchange what the other one needs.
__device__ __forceinline__ void take_own(Shared& s, const Sums& acc, int part, Products& own) {
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
            for (int j = 0; j < LANE_ROWS; ++j)
#pragma unroll
                for (int u = 0; u < 2; ++u)
#pragma unroll
                    for (int level = 0; level < LEVELS; ++level) {
                        int first = sum_of(acc[i][gate], level, 0, j, u);
#if K_SPLIT > 1
                        int second = sum_of(acc[i][gate], level, 1, j, u);
                        int at = (((i * GATES + gate) * LANE_ROWS + j) * 2 + u) * LEVELS + level;
                        s.partial[at][threadIdx.x] = part ? first : second;
                        own[i][gate][j][u][level] = part ? second : first;
#else
                        own[i][gate][j][u][level] = first;
#endif
                    }
#if K_SPLIT > 1
    asm volatile("bar.sync %0, 64;" ::"r"(1 + threadIdx.x / 32 % (WARPS / 2)) : "memory");
    int* flat = (int*)own;
#pragma unroll
    for (int at = 0; at < TILES_A_WARP * GATES * LANE_ELEMENTS * LEVELS; ++at)
        flat[at] += s.partial[at][threadIdx.x ^ THREADS / 2];
#endif
}

// R h on its grid, plus ROUND.
__device__ __forceinline__ real rounded_product(const Shared& s, const Numbers& n, const int (&levels)[LEVELS], int unit,
                                                int gate, real scale, word& inside) {
#if SUM_WIDE
    double total = 0;
#pragma unroll
    for (int level = 0; level < LEVELS; ++level)  // started at 2^31: unsigned in the low bits of 2^52
        total = __fma_rn(total, 256, __hiloint2double(0x43300000, levels[level]) - (4503599627370496.0 + 2147483648.0));
#if STATE_OFFSET
    total += s.offsets[unit][gate];
#endif
    int y = __double2loint(__fma_rn(total, s.scales[unit][gate], 6755399441055744.0));
    int held = min(max(y, low_bits(n.Rh_lo) - low_bits(ROUND)), low_bits(n.Rh_hi) - low_bits(ROUND));
    inside = y == held;
    return plus_round(held);
#else
#if BIASED_SUMS
    real total = sum(__int_as_float(levels[0]), -ROUND);
#else
    real total = (real)levels[0];
#endif
    real y = fused(total, scale, ROUND), held = clamped(y, n.Rh_lo, n.Rh_hi);
    inside = same(y, held);
    return held;
#endif
}
