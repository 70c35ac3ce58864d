// Around the input's gradient, a product of the gates' gradients with W: W's terms before, the clamps after.
#pragma once
#include "base.cuh"

struct InputTensors {
    const byte* workspace;
    const int* exponents;     // (4, 3 * hidden)
    unsigned short* weights;  // (12 * pairs of units, terms * x_width) bfloat16: exact, see pairs.cuh
    const void* x;            // (steps, batch, input), strided
    const float* products;    // (steps, batch, terms * x_width)
    float* dx;                // (steps, batch, input)
    long long x_time, x_batch;
    int rows;                 // steps * batch
};

struct InputArgs {
    InputTensors tensors;
    long long W_codes;        // section (terms, 3, units, W_padded)
    int batch, input, x_width, hidden, units, W_padded;
    float x_scale, x_lo, x_hi;
};
