// What the forward's kernels are given.
#pragma once
#include "base.cuh"

#if SUM_WIDE
typedef double sum_type;  // of what an offset adds to a product
#else
typedef int sum_type;
#endif

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
    int reverse;
};

template <typename T>
__device__ __forceinline__ T* section(const Call& call, long long offset) { return (T*)(call.workspace + offset); }
