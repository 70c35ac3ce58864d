// What all kernels share: types, a row's flags, who owns which unit, rounding to a grid of any size.
#pragma once
#pragma nv_diag_error 193  // an undefined macro in #if: every kernel gets all that macros.py lists for it

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long long address;

#define GATES 3
#define ACTIVE 1  // bits of a row's flags at a time step
#define IS_NAN 2  // NaN in the input; after the time loop, in the output

// rne(v * scale) clamped to [lo, hi], for numbers of any size: slower than adding ROUND.
__device__ __forceinline__ float quantized(float v, float scale, float lo, float hi) {
    return fminf(fmaxf(rintf(v * scale), lo), hi);
}

__device__ __forceinline__ float nan_value() { return __int_as_float(0x7fffffff); }

// The upper and the lower limb of a code in int16.
__device__ __forceinline__ int upper_limb(int code) { return code >> 8; }
__device__ __forceinline__ int lower_limb(int code) { return code & 0xFF; }

// Row g of a tile is its unit 2g and row g + 8 its unit 2g + 1: a lane then owns two neighbours.
__device__ __forceinline__ int unit_of(int tile, int g) { return tile * 16 + 2 * g; }

__device__ __forceinline__ word shared_address(const void* p) { return (word)__cvta_generic_to_shared(p); }
