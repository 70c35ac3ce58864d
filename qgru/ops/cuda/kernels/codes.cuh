// Stored codes of an element, four packed side by side: of matmul.Wx or the pre-activations r, z, g, and of matmul.Rh.
#pragma once
#include "base.cuh"

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
