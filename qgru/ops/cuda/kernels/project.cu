// Multiply the input's codes by W and quantize to matmul.Wx: every time step at once, before the time loop.
//
// The result is laid out as the loop's lanes read it: see `slot_of`, with four codes an element
// (r, z, g and one that the loop fills). A tile of 8 columns is ROWS rows of one time step, or, where a row group has 4
// rows, those of two steps in turn.
//
// A CTA keeps the weights of BLOCK_TILES tiles in shared memory where they fit, and goes over blocks of columns while it
// copies the next one; the warps of a tile share its columns.

#include "call.cuh"
#include "codes.cuh"
#include "copies.cuh"
#include "mma.cuh"
#include "slots.cuh"

#define THREADS (32 * WARPS)
#define TILE_WARPS (WARPS / BLOCK_TILES)
#define COLUMNS (8 * COLUMN_TILES * TILE_WARPS)
#define X_STRIDE ((PADDED + 63) / 128 * 128 + 64)  // 64 bytes past a multiple of 128: 16-byte reads without conflicts
#define W_STRIDE (PADDED + 32)                     // every other row is read: twice this does the same
#define LEVELS (W_LIMBS + X_LIMBS - 1)

struct ProjectArgs {
    Call call;
    long long x_codes;   // sections: (limbs, time, groups * ROWS, padded)
    long long W_codes;   // (limbs, 3, units, padded)
    long long W_scale, W_offset;  // (3, units)
    long long codes;     // four codes an element: see `slot_of`
    long long bits;      // of every slot, twice its elements; this kernel writes the first half
    int time, tiles, groups, blocks;  // blocks: of columns
    float Wx_lo, Wx_hi;
    int train;           // write bits
};

struct __align__(16) Shared {
    signed char x[2][X_LIMBS][COLUMNS][X_STRIDE];
#if W_SHARED
    signed char W[W_LIMBS][GATES][16 * BLOCK_TILES][W_STRIDE];
#endif
};
static_assert(sizeof(Shared) == SHARED_BYTES, "what Python reserves, projection.py");

// The first of a tile's eight columns.
struct Place {
    int t, group, row;
};

__device__ __forceinline__ Place place_of(const ProjectArgs& a, int column) {
#if ROWS == 4
    int pair = (column >> 3) / a.groups;
    return {2 * pair, (column >> 3) % a.groups, 0};
#else
    int step = column / ROWS;
    return {step / a.groups, step % a.groups, column % ROWS};
#endif
}

__device__ __forceinline__ long long x_row(const ProjectArgs& a, int column, bool& valid) {
    Place p = place_of(a, column & ~7);
    int c = column & 7;
#if ROWS == 4
    p.t += c & 1;
    p.row = c >> 1;
#else
    p.row += c;
#endif
    valid = p.t < a.time && p.group < a.groups;
    return ((long long)p.t * a.groups + p.group) * ROWS + p.row;
}

__device__ __forceinline__ void load_inputs(const ProjectArgs& a, Shared& s, int buffer, int block) {
    constexpr int chunks = PADDED / 16;
    const signed char* x_codes = section<signed char>(a.call, a.x_codes);
    long long plane = (long long)a.time * a.groups * ROWS * PADDED;
    for (int i = threadIdx.x; i < X_LIMBS * COLUMNS * chunks; i += THREADS) {
        int k = i % chunks * 16, column = i / chunks % COLUMNS, limb = i / chunks / COLUMNS;
        bool valid;
        long long row = x_row(a, block * COLUMNS + column, valid);
        copy_async<16>(&s.x[buffer][limb][column][k], x_codes + limb * plane + (valid ? row : 0) * PADDED + k, valid);
    }
    commit_copies();
}

__device__ __forceinline__ void load_weights(const ProjectArgs& a, Shared& s, int first_unit) {
#if W_SHARED
    constexpr int chunks = PADDED / 16, rows = 16 * BLOCK_TILES;
    int units = a.tiles * 16;
    for (int i = threadIdx.x; i < W_LIMBS * GATES * rows * chunks; i += THREADS) {
        int k = i % chunks * 16, row = i / chunks % rows, plane = i / chunks / rows;  // limb and gate
        bool valid = first_unit + row < units;
        long long from = (long long)plane * units + (valid ? first_unit + row : 0);
        copy_async<16>(&s.W[0][0][0][0] + ((long long)plane * rows + row) * W_STRIDE + k,
                       section<signed char>(a.call, a.W_codes) + from * PADDED + k, valid);
    }
#endif
}

__device__ __forceinline__ int4 weights_at(const ProjectArgs& a, const Shared& s, int limb, int gate, int row, int unit, int k) {
#if W_SHARED
    return *(const int4*)&s.W[limb][gate][row][k];
#else
    long long from = (long long)(limb * GATES + gate) * a.tiles * 16 + unit;
    return __ldg((const int4*)(section<signed char>(a.call, a.W_codes) + from * PADDED + k));
#endif
}

#if SUM_WIDE
typedef double result;
__device__ __forceinline__ double nearest(double v) { return rint(v); }
#else
typedef float result;
__device__ __forceinline__ float nearest(float v) { return rintf(v); }
#endif

__device__ __forceinline__ int requantized(const ProjectArgs& a, result sum, float scale, word& inside) {
    float v = (float)nearest(sum * scale);  // far outside the grid it may round again
    float c = fminf(fmaxf(v, a.Wx_lo), a.Wx_hi);
    inside = v == c;
    return (int)(c - a.Wx_lo);
}

typedef int Sums[GATES][COLUMN_TILES][LEVELS][4];

struct Lane {
    int g, q, tile, unit;  // its first unit
    int columns;           // the warp's first column in a block
    float scale[GATES][2];
    sum_type offset[GATES][2];
};

__device__ __forceinline__ void multiply(const ProjectArgs& a, const Shared& s, int buffer, const Lane& lane, Sums& acc) {
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int level = 0; level < LEVELS; ++level)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[gate][n][level][i] = SUM_WIDE ? 0 : (int)lane.offset[gate][i >> 1];
    int row = unit_of(threadIdx.x / 32 % BLOCK_TILES, lane.g);
#pragma unroll 2
    for (int k = 16 * lane.q; k < PADDED; k += 64)
#pragma unroll
        for (int limb = 0; limb < W_LIMBS; ++limb) {
            int4 low[GATES], high[GATES];
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) {
                low[gate] = weights_at(a, s, limb, gate, row, lane.unit, k);
                high[gate] = weights_at(a, s, limb, gate, row + 1, lane.unit + 1, k);
            }
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; ++n) {
                int4 b[X_LIMBS];
#pragma unroll
                for (int i = 0; i < X_LIMBS; ++i) b[i] = *(const int4*)&s.x[buffer][i][lane.columns + n * 8 + lane.g][k];
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) multiply_limbs<X_LIMBS>(acc[gate][n], limb, low[gate], high[gate], b);
            }
        }
}

__device__ __forceinline__ void write_results(const ProjectArgs& a, const Lane& lane, int first, const Sums& acc) {
    word* all_codes = section<word>(a.call, a.codes);
    byte* all_bits = section<byte>(a.call, a.bits);
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) {
        Place p = place_of(a, first + n * 8);
        if (p.t >= a.time || p.group >= a.groups) continue;
        word codes[4 * CODE_WORDS], bits[2] = {};  // of columns 2q and 2q + 1, two units each
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                int c[GATES];
                word inside;
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) {
                    result sum = acc[gate][n][0][2 * u + j];
#pragma unroll
                    for (int level = 1; level < LEVELS; ++level) sum = sum * 256 + acc[gate][n][level][2 * u + j];
                    if (SUM_WIDE) sum += lane.offset[gate][u];
                    c[gate] = requantized(a, sum, lane.scale[gate][u], inside);
                    bits[j] |= inside << (gate + 8 * u);
                }
                pack_codes(codes + (2 * j + u) * CODE_WORDS, c[0], c[1], c[2], 0);
            }
        long long slot = slot_of(p.t, a.groups, p.group, a.tiles, lane.tile, p.row / 8);
#if ROWS == 4
        long long next = slot_of(p.t + 1, a.groups, p.group, a.tiles, lane.tile, 0);
        bool has_next = p.t + 1 < a.time;
        store<2 * CODE_WORDS>(all_codes + slot * SLOT_ELEMENTS * CODE_WORDS, codes);
        if (has_next) store<2 * CODE_WORDS>(all_codes + next * SLOT_ELEMENTS * CODE_WORDS, codes + 2 * CODE_WORDS);
        if (a.train) *(unsigned short*)(all_bits + 2 * slot * SLOT_ELEMENTS) = bits[0];
        if (a.train && has_next) *(unsigned short*)(all_bits + 2 * next * SLOT_ELEMENTS) = bits[1];
#else
        store<4 * CODE_WORDS>(all_codes + slot * SLOT_ELEMENTS * CODE_WORDS, codes);
        if (a.train) *(word*)(all_bits + 2 * slot * SLOT_ELEMENTS) = bits[0] | bits[1] << 16;
#endif
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) project(const __grid_constant__ ProjectArgs a) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    int warp = threadIdx.x >> 5, block = blockIdx.x, first_unit = blockIdx.y * BLOCK_TILES * 16;
    load_weights(a, s, first_unit);
    load_inputs(a, s, 0, block);
    Lane lane;
    lane.g = (threadIdx.x & 31) >> 2;
    lane.q = threadIdx.x & 3;
    lane.tile = blockIdx.y * BLOCK_TILES + warp % BLOCK_TILES;
    bool here = lane.tile < a.tiles;
    lane.unit = here ? unit_of(lane.tile, lane.g) : 0;
    lane.columns = warp / BLOCK_TILES * 8 * COLUMN_TILES;
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
            int row = gate * a.tiles * 16 + lane.unit + u;
            lane.scale[gate][u] = section<float>(a.call, a.W_scale)[row];
            lane.offset[gate][u] = section<sum_type>(a.call, a.W_offset)[row];
        }
    for (int buffer = 0; block < a.blocks; block += gridDim.x, buffer ^= 1) {
        load_inputs(a, s, buffer ^ 1, min(block + (int)gridDim.x, a.blocks - 1));
        wait_copies<1>();
        __syncthreads();
        if (here) {
            Sums acc;
            multiply(a, s, buffer, lane, acc);
            write_results(a, lane, block * COLUMNS + lane.columns, acc);
        }
        __syncthreads();
    }
}
