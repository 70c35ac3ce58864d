// What the time loop keeps in shared memory, reads ahead, and exchanges.
#pragma once
#include "call.cuh"
#include "cell.cuh"
#include "cluster.cuh"
#include "copies.cuh"
#include "slots.cuh"

#define K64 (PADDED / 64)
#define PART_K64 (K64 / K_SPLIT)  // of a warp: K_SPLIT warps share a tile's product, then each takes some of its rows
#define COLUMN_TILES ((ROWS + 7) / 8)
#define LEVELS (R_LIMBS + H_LIMBS - 1)
#define THREADS (32 * WARPS)
#define UNITS (16 * CTA_TILES)
#define CONSTANTS_IN_REGISTERS (TILES_A_WARP == 1 && REGISTER_K64 * R_LIMBS <= 4)
#define LANE_ROWS (ROWS / 4 / K_SPLIT)
#define LANE_ELEMENTS (2 * LANE_ROWS)       // of a tile
#define WORDS (LANE_ELEMENTS * CODE_WORDS)  // likewise
#define TILE_ELEMENTS (32 * SLOT_TILES * SLOT_ELEMENTS)  // stored

struct ForwardArgs {
    Call call;
    long long R_codes;    // sections: (limbs, 3, units, PADDED)
    long long constants;  // (units, 8)
    long long R_offset;   // (3, units)
    long long diverged;   // (3, units): a NaN in the parameters
    long long codes;      // four an element: Wx in; pre-activations, Rh_g out
    long long flags;      // (time, groups, ROWS): IS_NAN is added where NaN comes out
    long long bits;       // of every slot, twice its elements: this kernel writes the second half
    long long states;     // codes of the new states, one an element
    const float* tables;  // r, z, g
    int time, batch, groups;
    int z_table, g_table; // where these start
    int h_code;           // code = mantissa + h_code
    Numbers n;
};

struct __align__(128) Shared {
    signed char state[2][K64][H_LIMBS][ROWS][64];  // a fragment's lanes read 512 bytes in a row
    int4 fragments[SHARED_K64 * GATES * TILES_A_WARP * R_LIMBS * 2 + 1][THREADS];
#if K_SPLIT > 1
    int partial[TILES_A_WARP * GATES * LANE_ELEMENTS * LEVELS][THREADS];
#endif
    word codes[STAGES][TILES_A_WARP][THREADS][WORDS];
    byte flags[STAGES][THREADS][ROWS];
    real constants[2][2][UNITS / 2][4];  // of even and odd units: scales, biases; neighbours' without bank conflicts
    sum_type offsets[UNITS][4];
#if SUM_WIDE
    double scales[UNITS][4];
#endif
#if CLUSTER > 1
    Arrivals arrivals;
#endif
#if SHARED_TABLES
    float tables[TABLE_ENTRIES];
#endif
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "what Python reserves, geometry.py");

// Where the units of a lane's row number `j` of its part are, from the first of a tile.
__device__ __forceinline__ int element_of(int part, int j) {
    int row = part * LANE_ROWS + j;
    return (row >> 1) * 32 * SLOT_ELEMENTS + (row & 1) * 2;
}
__device__ __forceinline__ int bits_of(int part, int j) {
    int row = part * LANE_ROWS + j;
    return (row >> 1) * 64 * SLOT_ELEMENTS + (row & 1) * 2;
}

__device__ __forceinline__ void prefetch(Shared& s, int stage, int part, const word* codes, const byte* flags, bool valid) {
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i)
#pragma unroll
        for (int j = 0; j < LANE_ROWS; ++j)
            copy_async<8 * CODE_WORDS>(s.codes[stage][i][threadIdx.x] + 2 * j * CODE_WORDS,
                                       codes + (i * TILE_ELEMENTS + element_of(part, j)) * CODE_WORDS, valid);
    copy_all<ROWS>(s.flags[stage][threadIdx.x], flags, valid);
    commit_copies();
}

__device__ __forceinline__ void write_pair(float* to, float2 v, int unit) {
    if (HIDDEN % 2 == 0) {
        if (unit < HIDDEN) *(float2*)to = v;
    } else {
        if (unit < HIDDEN) to[0] = v.x;
        if (unit + 1 < HIDDEN) to[1] = v.y;
    }
}

// A row group's flags at a step of the loop.
__device__ __forceinline__ byte* flags_at_step(const ForwardArgs& a, int group, int done) {
    int t = a.call.reverse ? a.time - 1 - done : done;
    return section<byte>(a.call, a.flags) + ((long long)t * a.groups + group) * ROWS;
}

// Two neighbours' codes, for backward.
__device__ __forceinline__ void store_states(byte* to, word codes) {
    if (H_LIMBS == 1) *(unsigned short*)to = codes;
    else *(word*)to = codes;
}

// The codes of two neighbours' new state.
__device__ __forceinline__ void write_state(Shared& s, int buffer, int row, int unit, int first, int second) {
    signed char(*block)[ROWS][64] = s.state[buffer][unit / 64];
    if (H_LIMBS == 1) {
        *(unsigned short*)&block[0][row][unit % 64] = __byte_perm(first, second, 0x0040);
    } else {
        *(unsigned short*)&block[0][row][unit % 64] = __byte_perm(first, second, 0x0051);
        *(unsigned short*)&block[H_LIMBS - 1][row][unit % 64] = __byte_perm(first, second, 0x0040);
    }
}

__device__ __forceinline__ int read_state(const Shared& s, int row, int unit) {
    const signed char(*block)[ROWS][64] = s.state[0][unit / 64];
    if (H_LIMBS == 1) return block[0][row][unit % 64];
    return block[0][row][unit % 64] * 256 + (byte)block[H_LIMBS - 1][row][unit % 64];
}

// Give the other CTAs of the cluster this CTA's slice of the new state, and wait for theirs.
__device__ __forceinline__ void share_state(Shared& s, int buffer, int done, int rank) {
#if CLUSTER > 1
    constexpr int blocks = UNITS / 64;
    publish();
    __syncthreads();
    int peer = threadIdx.x % 32 * WARPS + threadIdx.x / 32;  // a few copies a warp
    s.arrivals.send<blocks * H_LIMBS * ROWS * 64>(buffer, s.state[buffer][rank * blocks], peer, rank);
    s.arrivals.wait(buffer, done >> 1 & 1);
#else
    __syncthreads();
#endif
}
