// Real tensors as they are stored: float32, bfloat16 or float16.
#pragma once
#include "base.cuh"

#if X_BYTES == 2
typedef unsigned short stored;
#if X_BFLOAT
__device__ __forceinline__ float widened(stored v) { return __int_as_float((word)v << 16); }
#else
__device__ __forceinline__ float widened(stored v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}
#endif
#else
typedef float stored;
__device__ __forceinline__ float widened(stored v) { return v; }
#endif

// Four neighbours from column k on, zeros past the width.
__device__ __forceinline__ void load_four(float* v, const stored* from, int k, int width, bool aligned) {
    if (aligned) {
#if X_BYTES == 2
        ushort4 four = k < width ? *(const ushort4*)(from + k) : ushort4{};
#else
        float4 four = k < width ? *(const float4*)(from + k) : float4{};
#endif
        v[0] = widened(four.x), v[1] = widened(four.y), v[2] = widened(four.z), v[3] = widened(four.w);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = k + i < width ? widened(from[k + i]) : 0.0f;
    }
}
