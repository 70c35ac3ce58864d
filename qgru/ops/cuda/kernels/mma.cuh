// The matrix product of 8-bit integers on tensor cores.
#pragma once
#include "base.cuh"

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
