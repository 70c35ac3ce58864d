// The carrier of integers, and its rounding.
//
// Numbers are mantissas m = q - zero_point held in `real`. Adding ROUND leaves the nearest integer, ties to even, in
// the low bits of the sum: exact for |m| <= 2^22 (2^51), which the plan has proved for every rounding.
#pragma once
#include "base.cuh"

#if WIDE
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

__device__ __forceinline__ real clamped(real y, real lo, real hi) { return least(most(y, lo), hi); }
