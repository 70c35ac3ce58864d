// What the backward's kernels share: its tensors, for the time steps of one chunk.
#pragma once
#include "base.cuh"

struct Chunk {
    byte* workspace;        // the forward's
    const float* h0;        // (batch, hidden), or null for zeros
    const float* d_out;     // (time, batch, hidden), strided, or null for zeros
    const float* dh_in;     // (batch, hidden), of the state after the chunk, or null for zeros
    float* dh;              // (batch, hidden), of the state before it
    float4* k;              // (steps, batch, hidden): see factors.cu
    float* d;               // (steps, batch, hidden): gradient of every state
    uint2 *dWx, *dRh;       // (steps, batch, 3 * pairs): see pairs.cuh
    word* h_operand;        // (steps, batch, terms, pairs) bfloat16 pairs: the state before each step, as integers
    unsigned short* x_operand;  // (steps, batch, terms, x_width) bfloat16: the input, as integers
    float* d_bias;          // (partials, 4, hidden): sums for r, z, g and br_g
    long long d_time, d_batch;
    int start, end;         // of the walk's steps
    int reverse, first_time;  // first_time: of the chunk's rows, which are in order of time, also where the walk is not
};

// Two neighbours; an odd number of hidden units leaves no 8-byte alignment.
__device__ __forceinline__ float2 load_pair(const float* from, bool first, bool second, bool aligned) {
    if (aligned) return first ? *(const float2*)from : make_float2(0, 0);
    return make_float2(first ? from[0] : 0.0f, second ? from[1] : 0.0f);
}
__device__ __forceinline__ void store_pair(float* to, float a, float b, bool first, bool second, bool aligned) {
    if (aligned) {
        if (first) *(float2*)to = make_float2(a, b);
    } else {
        if (first) to[0] = a;
        if (second) to[1] = b;
    }
}
