// What the kernels share: rounding, packed codes, the 8-bit matrix product, asynchronous copies, clusters.
//
// Numbers are mantissas m = q - zero_point held in `real`. Adding ROUND leaves the nearest integer, ties to even, in
// the low bits of the sum: exact where |m| < LIMIT, which the plan has proved for every rounding before it compiled.

#ifdef WIDE
typedef double real;
#define ROUND 6755399441055744.0  // 1.5 * 2^52
__device__ __forceinline__ int low_bits(real y) { return __double2loint(y); }
__device__ __forceinline__ real plus_round(int m) { return __hiloint2double(0x43380000 + (m >> 31), m); }
__device__ __forceinline__ real fused(real a, real b, real c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ real sum(real a, real b) { return __dadd_rn(a, b); }
__device__ __forceinline__ real least(real a, real b) { return fmin(a, b); }
__device__ __forceinline__ real most(real a, real b) { return fmax(a, b); }
#else
typedef float real;
#define ROUND 12582912.0f  // 1.5 * 2^23
__device__ __forceinline__ int low_bits(real y) { return __float_as_int(y); }
__device__ __forceinline__ real plus_round(int m) { return __int_as_float(0x4B400000 + m); }
__device__ __forceinline__ real fused(real a, real b, real c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ real sum(real a, real b) { return __fadd_rn(a, b); }
__device__ __forceinline__ real least(real a, real b) { return fminf(a, b); }
__device__ __forceinline__ real most(real a, real b) { return fmaxf(a, b); }
#endif

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long long address;

#define GATES 3
#define ACTIVE 1  // bits of a row's flags at a time step
#define LOST 2    // NaN in the input

__device__ __forceinline__ real clamped(real y, real lo, real hi) { return least(most(y, lo), hi); }

// rne(v * scale) clamped to [lo, hi], for numbers of any size: slower than adding ROUND.
__device__ __forceinline__ float quantized(float v, float scale, float lo, float hi) {
    return fminf(fmaxf(rintf(v * scale), lo), hi);
}

__device__ __forceinline__ float nan_value() { return __int_as_float(0x7fffffff); }

#if SUM_WIDE
typedef double sum_type;  // of what an offset adds to a product
#else
typedef int sum_type;
#endif

#if CODE_BYTES == 1
typedef unsigned char code;
#define CODE_WORDS 1  // words that hold the four codes of one element
#else
typedef unsigned short code;
#define CODE_WORDS 2
#endif

// The unsigned code number `i` of an element, as 2^23 + code in float: no conversion instruction.
__device__ __forceinline__ float biased_code(const word* words, int i) {
#if CODE_BYTES == 1
    return __int_as_float(__byte_perm(words[0], 0x4B000000, 0x7440 | i));
#else
    return __int_as_float(__byte_perm(words[i >> 1], 0x4B000000, i & 1 ? 0x7432 : 0x7410));
#endif
}

__device__ __forceinline__ int plain_code(const word* words, int i) {
#if CODE_BYTES == 1
    return words[0] >> 8 * i & 0xFF;
#else
    return words[i >> 1] >> 16 * (i & 1) & 0xFFFF;
#endif
}

__device__ __forceinline__ void pack_codes(word* words, int a, int b, int c, int d) {
#if CODE_BYTES == 1
    words[0] = __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
    words[0] = __byte_perm(a, b, 0x5410);
    words[1] = __byte_perm(c, d, 0x5410);
#endif
}

// D (16 x 8) += A (16 x 32) B (32 x 8), 8 bits to int32. Lane 4g + q holds rows g and g + 8, columns 2q and 2q + 1.
// The lower limb of a wide operand is unsigned, the upper one signed.
#define MMA(a_type, b_type)                                                                                            \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." a_type "." b_type ".s32 "                                    \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                               \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                      \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
template <bool unsigned_a, bool unsigned_b>
__device__ __forceinline__ void mma(int* d, int a0, int a1, int a2, int a3, int b0, int b1) {
    if constexpr (unsigned_a && unsigned_b) MMA("u8", "u8");
    else if constexpr (unsigned_a) MMA("u8", "s8");
    else if constexpr (unsigned_b) MMA("s8", "u8");
    else MMA("s8", "s8");
}

// Two products over 64 consecutive k: each lane's 16 bytes at k = 16q hold what it contributes to both, so that one
// 16-byte load of plain row-major memory fills the fragments. The order of k inside a product does not matter.
template <bool unsigned_a = false, bool unsigned_b = false>
__device__ __forceinline__ void mma64(int* d, int4 low, int4 high, int4 b) {
    mma<unsigned_a, unsigned_b>(d, low.x, high.x, low.y, high.y, b.x, b.y);
    mma<unsigned_a, unsigned_b>(d, low.z, high.z, low.w, high.w, b.z, b.w);
}

// Operands of more than 8 bits are two limbs, 256 * upper + lower, the upper one first in memory. Products of limbs add
// up in levels of equal weight: level 0 is the most significant.
template <int b_limbs, int levels_of_d, int stride>
__device__ __forceinline__ void multiply_limbs(int (&d)[levels_of_d][stride], int a_limb, int4 low, int4 high, const int4* b) {
    constexpr int a_limbs = levels_of_d + 1 - b_limbs;
#pragma unroll
    for (int limb = 0; limb < b_limbs; ++limb) {
        int* sum = d[a_limb + limb];
        bool lower_a = a_limbs == 2 && a_limb == 1, lower_b = b_limbs == 2 && limb == 1;
        if (lower_a && lower_b) mma64<true, true>(sum, low, high, b[limb]);
        else if (lower_a) mma64<true, false>(sum, low, high, b[limb]);
        else if (lower_b) mma64<false, true>(sum, low, high, b[limb]);
        else mma64<false, false>(sum, low, high, b[limb]);
    }
}

// The upper and the lower limb of a code in int16.
__device__ __forceinline__ int upper_limb(int code) { return code >> 8; }
__device__ __forceinline__ int lower_limb(int code) { return code & 0xFF; }

// A forward call's tensors. Everything that a layer keeps between its kernels is in the workspace, at the offsets that
// each kernel's own arguments give.
struct Call {
    const float *W, *R, *bw, *br;
    const int* exponents;    // (4, 3 * hidden): of W, R, bw, br
    const void* x;           // (time, batch, input), strided
    const byte* active;      // (time, batch), or null
    const byte* diverged;    // (1): a NaN in another layer's parameters, or null
    const float* h0;         // (batch, hidden), or null for zeros
    float* out;              // (time, batch, hidden), strided
    float* last;             // (batch, hidden)
    byte* workspace;
    long long x_time, x_batch, out_time, out_batch;
    int reverse, unused;
};

template <typename T>
__device__ __forceinline__ T* section(const Call& call, long long offset) { return (T*)(call.workspace + offset); }

// Row g of a tile is its unit 2g and row g + 8 its unit 2g + 1: a lane then owns two neighbours.
__device__ __forceinline__ int unit_of(int tile, int g) { return tile * 16 + 2 * g; }

__device__ __forceinline__ word shared_address(const void* p) { return (word)__cvta_generic_to_shared(p); }

// Copy `bytes` (4, 8 or 16) to shared memory in the background; zeros where `valid` is false.
template <int bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(bytes),
                 "r"(valid ? bytes : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

template <int bytes>
__device__ __forceinline__ void copy_all(void* to, const void* from, bool valid) {
    constexpr int piece = bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
#pragma unroll
    for (int i = 0; i < bytes; i += piece) copy_async<piece>((byte*)to + i, (const byte*)from + i, valid);
}

template <int words>
__device__ __forceinline__ void store(word* to, const word* from) {
    if constexpr (words == 1) {
        *to = *from;
    } else if constexpr (words % 4) {
#pragma unroll
        for (int i = 0; i < words; i += 2) *(uint2*)(to + i) = make_uint2(from[i], from[i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < words; i += 4) *(uint4*)(to + i) = make_uint4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}

#ifdef ROWS
// A row group's ROWS rows, 4, 8, 16 or 24: a lane of quad position q owns ROWS / 4 of them, in every tile two units.
#define ELEMENTS (ROWS / 2)
__device__ __forceinline__ int row_of(int q, int j) {
    return ROWS == 4 ? q : ROWS == 8 ? 2 * q + j : (j >> 1) * 8 + 2 * q + (j & 1);
}
// Stored elements are laid out (time, groups, tiles, column tiles of 8 rows, 32 lanes, 2 rows, 2 units): what a warp
// reads or writes at once lies in a row. Four rows make half a column tile.
#define SLOT_TILES ((ROWS + 7) / 8)
#define SLOT_ELEMENTS (ROWS == 4 ? 2 : 4)
__device__ __forceinline__ long long slot_of(int t, int groups, int group, int tiles, int tile, int column_tile) {
    return ((((long long)t * groups + group) * tiles + tile) * SLOT_TILES + column_tile) * 32 + (threadIdx.x & 31);
}
#endif

#if defined(CLUSTER) && CLUSTER > 1
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_barrier() {
    cluster_arrive();
    cluster_wait();
}
__device__ __forceinline__ word address_in(word local, int rank) {
    word remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    return remote;
}
// An exchange of slices between the CTAs of a cluster: each copies its slice of a double buffer to the same place of
// all others and waits on its own barrier for theirs. One barrier a buffer: a CTA is at most one step ahead, and its
// slice of the step after next leaves only once every other has this step's, so that nothing is overwritten unread.
struct Arrivals {
    address barriers[2];

    __device__ __forceinline__ void init() {  // one thread, before a cluster_barrier
        for (int i = 0; i < 2; ++i)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barriers[i])) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    // Lanes 0 to CLUSTER - 1 of one warp; the slice is complete, and every thread that wrote it called `publish` before
    // the barrier that says so.
    template <int bytes>
    __device__ __forceinline__ void send(int buffer, const void* slice, int lane, int rank) {
        word own = shared_address(&barriers[buffer]), from = shared_address(slice);
        if (lane == rank)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own), "n"(bytes * (CLUSTER - 1))
                         : "memory");
        else if (lane < CLUSTER)
            asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                             address_in(from, lane)),
                         "r"(from), "n"(bytes), "r"(address_in(own, lane))
                         : "memory");
    }

    __device__ __forceinline__ void wait(int buffer, int phase) {
        word done;
        do asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                        "selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(shared_address(&barriers[buffer])), "r"(phase)
                        : "memory");
        while (!done);
    }
};
// What this thread wrote to shared memory may be read by copies that start after the next barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_barrier() { __syncthreads(); }
#endif
